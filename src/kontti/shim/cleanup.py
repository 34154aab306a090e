"""Clearing what a dead shim left of a container: its processes, its runtime's state, its mounts."""

from __future__ import annotations

import os
import signal
import time

from kontti.errors import Error
from kontti.linux import cgroups, mounts
from kontti.shim.container import DEFAULT_ROOT
from kontti.shim.oci_runtime import OciRuntime, find
from kontti.wire.messages.google import Timestamp
from kontti.wire.messages.runtime.task.v2.shim import DeleteResponse
from kontti.wire.messages.types.runc.options.oci import Options

KILLED = 128 + signal.SIGKILL
DIE_SECONDS = 5.0


def clean(namespace: str, id: str, bundle: str, runtime: str) -> DeleteResponse:
    """Kill and delete the container ``id``; how its first process is taken to have ended.

    Raises Error where the runtime will not delete it.
    """
    pid = read_pid(os.path.join(bundle, "init.pid"))
    options = read_options(os.path.join(bundle, "options.pb"))
    if pid and is_of(pid, bundle, id):
        kill(pid)
    root = os.path.join(options.root or DEFAULT_ROOT, namespace)
    binary = find(options.binary_name) if options.binary_name else runtime or find("")
    log = os.path.join(bundle, "log.json")
    problem: Error | None = None
    try:
        OciRuntime(binary, root, log, systemd=options.systemd_cgroup).run("delete", "--force", id)
    except Error as error:
        if os.path.exists(os.path.join(root, id)):
            problem = error
    mounts.unmount_all(os.path.join(bundle, "rootfs"))
    if problem is not None:
        raise problem
    now = time.time_ns()
    return DeleteResponse(
        pid=pid,
        exit_status=KILLED,
        exited_at=Timestamp(seconds=now // 10**9, nanos=now % 10**9),
    )


def read_pid(path: str) -> int:
    """The number in a file, 0 where there is none."""
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def read_options(path: str) -> Options:
    """The runtime options that the container was created with."""
    try:
        with open(path, "rb") as file:
            return Options.decode(file.read())
    except (OSError, Error):
        return Options()


def is_of(pid: int, bundle: str, id: str) -> bool:
    """Whether ``pid`` is still the container's: numbers are used again."""
    try:
        with open(os.path.join(bundle, "cgroups")) as file:
            noted = set(file.read().splitlines())
        # all of them: processes that have nothing to do with each other share a top group
        return bool(noted) and noted <= set(cgroups.paths_of(pid).values())
    except OSError:
        return False


def kill(pid: int) -> None:
    """SIGKILL, and wait (bounded) until it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select

    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], DIE_SECONDS)
    except ProcessLookupError:
        return
    finally:
        os.close(fd)
