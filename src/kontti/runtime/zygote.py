"""The daemon's side of the zygote: starts it, asks it for shims, starts it again if it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from dataclasses import dataclass

from kontti.errors import Error, Unavailable, from_code
from kontti.linux import process
from kontti.runtime import unix
from kontti.runtime.bundle import Bootstrap, Bundle
from kontti.shim.bootstrap import socket_path

log = logging.getLogger(__name__)
START_SECONDS = 10.0
ANSWER_SECONDS = 10.0
CLOSE_SECONDS = 3.0
POLL_SECONDS = 0.002
ATTEMPTS = 2
TASK_VERSION = 3
"""Of the Task service that our shims serve."""
_ZYGOTE = "from kontti.shim.zygote import main; main()"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class ShimSettings:
    """What every shim of this daemon is told. ``socket_dir`` holds their sockets.

    ``grpc_address`` is the daemon's, "" for one that clients cannot reach;
    ``open_files`` is how many descriptors they may have open, 0 for as many as we may.
    """

    socket_dir: str
    ttrpc_address: str
    runtime: str = ""
    hide_unified: bool = False
    open_files: int = 0
    grpc_address: str = ""


class Zygote:
    """The process that our shims are forked from."""

    def __init__(self, settings: ShimSettings, path: str) -> None:
        self.settings = settings
        self._path = path
        self._control = -1
        self._pid = 0
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int:
        """Its process, 0 where it does not run."""
        return self._pid if self._alive() else 0

    async def start(self) -> None:
        """Start it, if it does not run; raises Unavailable."""
        async with self._starting:
            if not self._alive():
                await asyncio.to_thread(self._spawn)
                deadline = asyncio.get_running_loop().time() + START_SECONDS
                while not os.path.exists(self._path):
                    self._check_start(deadline)
                    await asyncio.sleep(POLL_SECONDS)

    def _check_start(self, deadline: float) -> None:
        if not self._alive() or asyncio.get_running_loop().time() > deadline:
            self._end(0.0)
            raise Unavailable("the shims' zygote did not start")

    def _alive(self) -> bool:
        if not self._pid:
            return False
        try:
            pid, _ = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            pid = self._pid
        if pid:
            self._forget()
        return pid == 0

    def _forget(self) -> None:
        control, self._control, self._pid = self._control, -1, 0
        if control >= 0:
            os.close(control)

    def _spawn(self) -> None:
        os.makedirs(os.path.dirname(self._path), mode=0o711, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            argv = [*process.interpreter(_ZYGOTE), self._path, "3", str(self.settings.open_files)]
            self._pid = process.spawn(argv, files=[(read, 3)], setsid=True)
        except BaseException:
            os.close(write)
            raise
        finally:
            os.close(read)
        self._control = write

    def socket_path(self, namespace: str, id: str) -> str:
        """Where the shim of a task or group listens: as clients compute it, to reach it too."""
        daemon = self.settings.grpc_address or self.settings.ttrpc_address
        return socket_path(self.settings.socket_dir, daemon, namespace, id)

    def bootstrap(self, bundle: Bundle, group: str) -> Bootstrap:
        """How to reach the shim of a task or group, there or not."""
        path = self.socket_path(bundle.namespace, group or bundle.id)
        return Bootstrap(f"unix://{path}", TASK_VERSION)

    async def shim(self, bundle: Bundle, bootstrap: Bootstrap, cgroup: str = "") -> int:
        """Fork a shim to listen as ``bootstrap`` says; its pid. Raises Error.

        It lives in the control group ``cgroup``, "" for the zygote's.
        """
        request = {
            "namespace": bundle.namespace,
            "socket": bootstrap.address.removeprefix("unix://"),
            "ttrpc_address": self.settings.ttrpc_address,
            "runtime": self.settings.runtime,
            "hide_unified": self.settings.hide_unified,
            "bundle": bundle.path,
            "cgroup": cgroup,
        }
        connection = await self._connect()
        pid = self._pid
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await _ask(connection, request)
        except TimeoutError:
            # it hangs: whoever comes next gets another
            log.warning("the shims' zygote, pid %d, did not answer in time; it is killed", pid)
            await self._replace(pid)
            raise Unavailable("the shims' zygote did not answer in time") from None
        if "error" in answer:
            raise from_code(int(str(answer.get("code", 2))), str(answer["error"]))
        return int(str(answer["pid"]))

    async def _connect(self) -> Connection:
        """A connection to it, started (once again) where there is none to be had."""
        for _ in range(ATTEMPTS):
            await self.start()
            pid = self._pid
            deadline = asyncio.get_running_loop().time() + START_SECONDS
            while self._alive() and asyncio.get_running_loop().time() < deadline:
                try:
                    async with asyncio.timeout_at(deadline):
                        return await unix.connect(self._path)
                except TimeoutError:
                    break
                except ConnectionRefusedError:
                    # between its bind(2) and its listen(2)
                    await asyncio.sleep(POLL_SECONDS)
                except OSError as error:
                    log.warning("the shims' zygote: %s", error)
                    break
            # it may be alive and yet out of reach, its socket taken away
            await self._replace(pid)
        raise Unavailable("the shims' zygote cannot be reached")

    async def _replace(self, pid: int) -> None:
        """End the zygote ``pid``, unless that was done; the next request starts another."""
        async with self._starting:
            if self._pid == pid:
                await asyncio.to_thread(self._end, 0.0)

    def _end(self, patience: float) -> None:
        """Have it end, within ``patience`` seconds or by force."""
        pid = self._pid
        if not self._alive():
            return
        self._forget()
        try:
            process.wait(pid, patience)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            process.wait(pid, None)

    def close(self) -> None:
        """End it; shims go on."""
        self._end(CLOSE_SECONDS)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


async def _ask(connection: Connection, request: dict[str, object]) -> dict[str, object]:
    reader, writer = connection
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        line = await reader.readline()
        answer = json.loads(line)
    except OSError as error:
        raise Unavailable(f"the shims' zygote: {error}") from None
    except ValueError:
        raise Error("the shims' zygote answered nothing") from None
    finally:
        writer.close()
    if not isinstance(answer, dict) or not {"pid", "error"} & set(answer):
        raise Error("the shims' zygote answered nothing")
    return answer
