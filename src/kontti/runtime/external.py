"""Shims that are binaries of their own: found by a runtime's name, driven by command line.

Runtime v2 shim protocol: ``start`` prints where the shim listens, ``delete`` clears what a dead
one left and prints how its process ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass

from kontti.errors import Error
from kontti.linux import process
from kontti.runtime import dial
from kontti.runtime.bundle import Bootstrap, Bundle
from kontti.runtime.shim import PROTOCOLS
from kontti.wire.messages.runtime.bootstrap.v1.bootstrap import BootstrapResult
from kontti.wire.messages.runtime.task.v2.shim import DeleteResponse

START_SECONDS = 30.0
INFO_SECONDS = 10.0
MAX_VERSION = 3
"""Of the Task service that we speak."""
_NAME = re.compile(r"(?:[A-Za-z0-9_-]+\.)*([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
# posix_spawn(3) has no working directory
_IN_BUNDLE = ("/bin/sh", "-c", 'cd "$0" && exec "$@"')
_LIMITED = ("/bin/sh", "-c", 'ulimit -Sn "$1" && shift && cd "$0" && exec "$@"')


@dataclass(frozen=True, slots=True)
class External:
    """How shims that are binaries are started; ``environment`` is added to ours."""

    ttrpc_address: str
    grpc_address: str
    publish_binary: str
    environment: tuple[str, ...] = ()
    delete_seconds: float = 5.0
    open_files: int = 0

    async def start(self, binary: str, bundle: Bundle, options: bytes) -> Bootstrap:
        """Run ``binary start`` in the bundle; raises Error with what it printed."""
        done = await self._run(binary, bundle, "start", options, START_SECONDS)
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise Error(f"start failed: {said}: exit status {done.returncode}")
        return parse_bootstrap(done.stdout)

    async def delete(self, binary: str, bundle: Bundle) -> DeleteResponse:
        """Run ``binary delete``; raises Error where it fails."""
        done = await self._run(binary, bundle, "delete", b"", self.delete_seconds)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise Error(f"delete failed: {said}: exit status {done.returncode}")
        return DeleteResponse.decode(done.stdout)

    async def _run(
        self, binary: str, bundle: Bundle, action: str, stdin: bytes, timeout: float
    ) -> process.Completed:
        try:
            return await asyncio.to_thread(
                process.run,
                [*self._head(bundle), *self._command(binary, bundle, action)],
                timeout=timeout,
                env=self._environment(bundle.namespace),
                input=stdin,
            )
        except (OSError, TimeoutError) as error:
            raise Error(f"shim {os.path.basename(binary)} {action}: {error}") from None

    def _head(self, bundle: Bundle) -> list[str]:
        if self.open_files:
            return [*_LIMITED, bundle.path, str(self.open_files)]
        return [*_IN_BUNDLE, bundle.path]

    def _command(self, binary: str, bundle: Bundle, action: str) -> list[str]:
        flags = [
            "-namespace", bundle.namespace, "-address", self.grpc_address,
            "-publish-binary", self.publish_binary, "-id", bundle.id,
        ]  # fmt: skip
        if action == "delete":
            flags += ["-bundle", bundle.path]
        return [binary, *flags, action]

    def _environment(self, namespace: str) -> dict[str, str]:
        pairs = (pair.partition("=") for pair in self.environment)
        return {
            **os.environ,
            **{key: value for key, _, value in pairs if key},
            "TTRPC_ADDRESS": self.ttrpc_address,
            "GRPC_ADDRESS": self.grpc_address,
            "NAMESPACE": namespace,
            "MAX_SHIM_VERSION": str(MAX_VERSION),
        }


def parse_bootstrap(printed: bytes) -> Bootstrap:
    """What ``start`` printed: an address alone, JSON, or a BootstrapResult.

    Raises Error for anything else, and for a protocol or version that we do not speak.
    """
    text = printed.decode(errors="replace").strip()
    if text.startswith("{"):
        found = _from_json(text)
    elif text.startswith("unix://") and text.isprintable():
        found = Bootstrap(text)
    else:
        found = _from_message(printed)
    if found.protocol not in PROTOCOLS or found.version not in (2, MAX_VERSION):
        raise Error(f"shim speaks {found.protocol:.20} version {found.version}: not supported")
    if not dial.supported(found.address):
        raise Error(f"shim printed no address: {text:.200}")
    return found


def _from_json(text: str) -> Bootstrap:
    try:
        plain = json.loads(text)
        return Bootstrap(str(plain["address"]), int(plain["version"]), str(plain["protocol"]))
    except (ValueError, KeyError, TypeError):
        raise Error(f"shim printed no bootstrap parameters: {text:.200}") from None


def _from_message(printed: bytes) -> Bootstrap:
    try:
        result = BootstrapResult.decode(printed)
    except Error:
        result = BootstrapResult()
    if not result.address:
        raise Error(f"shim printed no address: {printed.decode(errors='replace').strip():.200}")
    return Bootstrap(result.address, result.version, result.protocol)


def read_info(name: str, options: bytes) -> bytes:
    """What the shim of a runtime tells of itself, a RuntimeInfo; ``options`` is an Any for it.

    Raises Error where there is no such shim, or it does not know the question.
    """
    binary = resolve(name)
    shown = os.path.basename(binary)
    try:
        done = process.run([binary, "-info"], timeout=INFO_SECONDS, input=options)
    except (OSError, TimeoutError) as error:
        raise Error(f"failed to run {shown} -info: {error}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise Error(f"failed to run {shown} -info: {said:.500}: exit status {done.returncode}")
    return done.stdout


def resolve(name: str, path: str = "") -> str:
    """The shim's binary for a runtime's name or path; raises Error as containerd words it."""
    found = path or name
    if os.path.isabs(found):
        if not os.path.exists(found):
            raise Error(
                "failed to resolve runtime path: invalid custom binary path: "
                f"stat {found}: no such file or directory"
            )
        return found
    parts = _NAME.fullmatch(found)
    if parts is None:
        raise Error(
            f"failed to resolve runtime path: invalid runtime name {found}, correct runtime name "
            "should be either format like `io.containerd.runc.v2` or a full path to the binary"
        )
    file = f"containerd-shim-{parts[1]}-{parts[2]}"
    # beside the daemon as well, as containerd looks
    folders = (os.environ.get("PATH", os.defpath), os.path.dirname(os.path.abspath(sys.argv[0])))
    binary = shutil.which(file, path=os.pathsep.join(folders))
    if binary is None:
        raise Error(
            f'failed to resolve runtime path: runtime "{found}" binary not installed "{file}": '
            "file does not exist"
        )
    return binary
