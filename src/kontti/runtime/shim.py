"""A running shim, as the daemon drives it: the Task service, v2 or v3, over ttrpc or gRPC."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import TypeVar

from kontti.errors import Unavailable
from kontti.runtime.bundle import Bootstrap
from kontti.runtime.grpc import GrpcClient
from kontti.runtime.shim_log import ShimLog
from kontti.runtime.ttrpc import TtrpcClient
from kontti.wire.messages.google import Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.protobuf import Message

M = TypeVar("M", bound=Message)
Client = TtrpcClient | GrpcClient
PROTOCOLS: Mapping[str, type[TtrpcClient] | type[GrpcClient]] = {
    "ttrpc": TtrpcClient,
    "grpc": GrpcClient,
}
CONNECT_SECONDS = 5.0
SANDBOX = "containerd.runtime.sandbox.v1.Sandbox/"
CALL_SECONDS = 150.0
"""Longer than our shim's own bound on a call of the OCI runtime."""


class Shim:
    """One shim, which may keep several tasks of a group; ``tasks`` are their ids, a sandbox's too.

    ``own`` tells that it is ours, so that who listens at its address is the shim itself; ``pid``
    is 0 where it is not. One that is ``given`` is to be ended by the caller who named it.
    """

    def __init__(self, client: Client, bootstrap: Bootstrap, *, own: bool = False) -> None:
        self._client = client
        self._service = f"containerd.task.v{bootstrap.version}.Task/"
        self.pid = client.listener_pid if own and isinstance(client, TtrpcClient) else 0
        self._process = _pidfd(self.pid) if self.pid else -1
        self._log: ShimLog | None = None
        self.bootstrap = bootstrap
        self.namespace = self.binary = ""
        self.tasks: set[str] = set()
        self.given = False

    @classmethod
    async def connect(
        cls,
        bootstrap: Bootstrap,
        namespace: str,
        timeout: float = CONNECT_SECONDS,
        *,
        own: bool = False,
    ) -> Shim:
        """Connect; raises Unavailable where nobody listens, DeadlineExceeded."""
        protocol = PROTOCOLS.get(bootstrap.protocol)
        if protocol is None:
            raise Unavailable(f"shim speaks {bootstrap.protocol}: not supported")
        client = await protocol.connect(bootstrap.address, namespace, timeout)
        return cls(client, bootstrap, own=own)

    def keep_log(self, log: ShimLog) -> None:
        """Have the shim's log closed with it."""
        self._log = log

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called once when the connection breaks."""
        self._client.on_lost = callback

    async def call(
        self, method: str, request: Message, response: type[M], timeout: float | None = CALL_SECONDS
    ) -> M:
        """One call of the Task service; raises what the shim answers."""
        return await self._client.call(self._service + method, request, response, timeout)

    async def sandbox(
        self, method: str, request: Message, response: type[M], timeout: float | None = CALL_SECONDS
    ) -> M:
        """One call of the Sandbox service; raises what the shim answers."""
        return await self._client.call(SANDBOX + method, request, response, timeout)

    async def state(self, id: str, exec_id: str, timeout: float) -> api.StateResponse:
        """What a process is doing."""
        request = api.StateRequest(id=id, exec_id=exec_id)
        return await self.call("State", request, api.StateResponse, timeout)

    async def wait(self, id: str, exec_id: str) -> api.WaitResponse:
        """Until the process ends, however long that takes."""
        request = api.WaitRequest(id=id, exec_id=exec_id)
        return await self.call("Wait", request, api.WaitResponse, None)

    async def shutdown(self, id: str, timeout: float) -> None:
        """Ask it to end, if it has no task left; raises Error."""
        await self.call("Shutdown", api.ShutdownRequest(id=id), Empty, timeout)

    def kill(self) -> None:
        """End it by force, if it is ours; its containers go on until they are cleaned up."""
        if self._process >= 0:
            try:
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            except ProcessLookupError:
                return

    def release(self) -> None:
        """Let go of the handle on its process, and of its log."""
        if self._log is not None:
            self._log.close()
        process, self._process = self._process, -1
        if process >= 0:
            os.close(process)

    async def close(self) -> None:
        """Hang up; it goes on."""
        self.release()
        await self._client.close()


def _pidfd(pid: int) -> int:
    """A handle on a process that cannot become another's; -1 where there is none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1
