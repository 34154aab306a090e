"""What shims of ours leave behind when they are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

from kontti.errors import Error
from kontti.linux import process
from kontti.runtime import probe
from kontti.runtime.bundle import Bundle
from kontti.wire.messages.runtime.task.v2.shim import DeleteResponse

OWN_CLEAN_SECONDS = 30.0
_CLEAN = (
    "from kontti.shim.cleanup import clean; sys.stdout.buffer.write(clean(*sys.argv[1:]).encode())"
)


def clean_own(bundle: Bundle, runtime: str, hide_unified: bool) -> DeleteResponse:
    """End and forget the container of a bundle; raises Error."""
    # a process of its own: the OCI runtime may have to be run without sight of the v2 tree
    argv = [*process.interpreter(_CLEAN), bundle.namespace, bundle.id, bundle.path, runtime]
    if hide_unified:
        argv = probe.without_unified(argv)
    done = process.run(argv, timeout=OWN_CLEAN_SECONDS)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Error(said[-1] if said else f"exit status {done.returncode}")
    return DeleteResponse.decode(done.stdout)


def unlink_dead(address: str) -> None:
    """Remove a unix socket that nobody listens on."""
    path = address.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(path)
        except (OSError, ValueError):
            return


def kill(pid: int) -> None:
    """End a shim that was just started and cannot be reached."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
