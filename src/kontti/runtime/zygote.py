"""The daemon's side of the zygote: starts it, asks it for shims, starts it again if it dies."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from dataclasses import dataclass

from kontti.errors import Error, Unavailable, from_code
from kontti.linux import process
from kontti.runtime.bundle import Bootstrap, Bundle

START_SECONDS = 10.0
ANSWER_SECONDS = 10.0
# an interpreter without site: our own path is all that the shim's few imports need
_PROGRAM = "import sys; sys.path[:0] = {path!r}; from kontti.shim.zygote import main; main()"


@dataclass(frozen=True, slots=True)
class ShimSettings:
    """What every shim of this daemon is told. ``socket_dir`` holds their sockets."""

    socket_dir: str
    ttrpc_address: str
    runtime: str = ""
    hide_unified: bool = False


class Zygote:
    """The process that our shims are forked from."""

    def __init__(self, settings: ShimSettings, path: str) -> None:
        self.settings = settings
        self._path = path
        self._control = -1
        self._pid = 0
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Start it, if it does not run."""
        async with self._starting:
            if not self._alive():
                await asyncio.to_thread(self._spawn)
                await self._await_socket()

    def _alive(self) -> bool:
        if not self._pid:
            return False
        pid, _ = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            self._pid = 0
            os.close(self._control)
            self._control = -1
        return pid == 0

    def _spawn(self) -> None:
        os.makedirs(os.path.dirname(self._path), mode=0o711, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        program = _PROGRAM.format(path=[source])
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            argv = [sys.executable, "-I", "-S", "-c", program, self._path, "3"]
            self._pid = process.spawn(argv, files=[(read, 3)], setsid=True)
        finally:
            os.close(read)
        self._control = write

    async def _await_socket(self) -> None:
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while not os.path.exists(self._path):
            if not self._alive() or asyncio.get_running_loop().time() > deadline:
                raise Unavailable("the shims' zygote did not start")
            await asyncio.sleep(0.002)

    def socket_path(self, namespace: str, id: str) -> str:
        """Where the shim of a task or group listens: short, and one for each daemon's state."""
        name = f"{self.settings.ttrpc_address}/{namespace}/{id}"
        digest = hashlib.sha256(name.encode()).hexdigest()
        return os.path.join(self.settings.socket_dir, digest)

    async def shim(self, bundle: Bundle, group: str) -> Bootstrap:
        """Fork a shim for a task, or for the group it is the first of; raises Error."""
        await self.start()
        request = {
            "namespace": bundle.namespace,
            "socket": self.socket_path(bundle.namespace, group or bundle.id),
            "ttrpc_address": self.settings.ttrpc_address,
            "runtime": self.settings.runtime,
            "hide_unified": self.settings.hide_unified,
            "bundle": bundle.path,
        }
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await self._ask(request)
        except TimeoutError:
            raise Unavailable("the shims' zygote did not answer in time") from None
        if "error" in answer:
            raise from_code(int(str(answer.get("code", 2))), str(answer["error"]))
        return Bootstrap(str(answer["address"]), int(str(answer["version"])))

    async def _ask(self, request: dict[str, object]) -> dict[str, object]:
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            raise Unavailable(f"the shims' zygote: {error}") from None
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
        try:
            answer: dict[str, object] = json.loads(line)
        except ValueError:
            raise Error("the shims' zygote answered nothing") from None
        return answer

    def close(self) -> None:
        """End it; shims go on."""
        if self._control >= 0:
            os.close(self._control)
            self._control = -1
        if self._pid:
            try:
                process.wait(self._pid, START_SECONDS)
            except TimeoutError:
                os.kill(self._pid, signal.SIGKILL)
                process.wait(self._pid, None)
            self._pid = 0
