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
from dataclasses import dataclass

from kontti.errors import Error
from kontti.linux import process
from kontti.runtime.bundle import Bootstrap, Bundle
from kontti.wire.messages.runtime.task.v2.shim import DeleteResponse

START_SECONDS = 30.0
CLEANUP_SECONDS = 30.0
_NAME = re.compile(r"(?:[a-z0-9_-]+\.)+([a-z0-9_-]+)\.(v\d+)")


@dataclass(frozen=True, slots=True)
class External:
    """How shims that are binaries are started; ``environment`` is added to ours."""

    ttrpc_address: str
    grpc_address: str
    publish_binary: str
    environment: tuple[str, ...] = ()

    async def start(self, binary: str, bundle: Bundle, options: bytes) -> Bootstrap:
        """Run ``binary start`` in the bundle; raises Error with what it printed."""
        done = await self._run(binary, bundle, "start", options, START_SECONDS)
        if done.returncode:
            raise Error(f"failed to start shim: {done.stderr.decode(errors='replace').strip()}")
        return parse_bootstrap(done.stdout)

    async def delete(self, binary: str, bundle: Bundle) -> DeleteResponse:
        """Run ``binary delete``; raises Error where it fails."""
        done = await self._run(binary, bundle, "delete", b"", CLEANUP_SECONDS)
        if done.returncode:
            raise Error(f"shim delete: {done.stderr.decode(errors='replace').strip()}")
        return DeleteResponse.decode(done.stdout)

    async def _run(
        self, binary: str, bundle: Bundle, action: str, stdin: bytes, timeout: float
    ) -> process.Completed:
        argv = [
            binary, "-namespace", bundle.namespace, "-address", self.grpc_address,
            "-publish-binary", self.publish_binary, "-id", bundle.id,
        ]  # fmt: skip
        if action == "delete":
            argv += ["-bundle", bundle.path]
        environment = {
            **os.environ,
            **dict(pair.split("=", 1) for pair in self.environment if "=" in pair),
            "TTRPC_ADDRESS": self.ttrpc_address,
            "GRPC_ADDRESS": self.grpc_address,
            "NAMESPACE": bundle.namespace,
            "MAX_SHIM_VERSION": "2",
        }
        # posix_spawn has no working directory: env(1) sets it
        command = ["/usr/bin/env", "-C", bundle.path, *argv, action]
        try:
            return await asyncio.to_thread(
                process.run, command, timeout=timeout, env=environment, input=stdin
            )
        except (OSError, TimeoutError) as error:
            raise Error(f"shim {os.path.basename(binary)} {action}: {error}") from None


def parse_bootstrap(printed: bytes) -> Bootstrap:
    """What ``start`` printed: an address alone, or JSON; raises Error for anything else."""
    text = printed.decode(errors="replace").strip()
    if text.startswith("{"):
        try:
            plain = json.loads(text)
            version, protocol = int(plain["version"]), str(plain["protocol"])
            found = Bootstrap(str(plain["address"]), version, protocol)
        except (ValueError, KeyError, TypeError):
            raise Error(f"shim printed no bootstrap parameters: {text:.200}") from None
        if found.protocol != "ttrpc" or found.version not in (2, 3):
            raise Error(f"shim speaks {found.protocol} version {found.version}: not supported")
        return found
    if not text.startswith("unix://"):
        raise Error(f"shim printed no address: {text:.200}")
    return Bootstrap(text)


def resolve(name: str, path: str = "") -> str:
    """The shim's binary for a runtime's name or path; raises Error as containerd words it."""
    if path or name.startswith("/"):
        binary = path or name
        if not os.access(binary, os.X_OK):
            raise Error(f"invalid runtime path {binary!r}: no such executable")
        return binary
    found = _NAME.fullmatch(name)
    if found is None:
        raise Error(
            f"failed to resolve runtime path: invalid runtime name {name}, correct runtime name "
            "should be either format like `io.containerd.runc.v2` or a full path to the binary"
        )
    file = f"containerd-shim-{found[1]}-{found[2]}"
    binary = shutil.which(file, path=f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/bin") or ""
    if not binary:
        raise Error(
            f'failed to resolve runtime path: runtime "{name}" binary not installed "{file}": '
            "file does not exist"
        )
    return binary
