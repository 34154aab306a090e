"""A running shim, as the daemon drives it: the Task service over ttrpc, v2 or v3."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

from kontti.errors import Error, Unavailable
from kontti.runtime.bundle import Bootstrap
from kontti.runtime.ttrpc import TtrpcClient
from kontti.wire.messages.google import Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.protobuf import Message

M = TypeVar("M", bound=Message)
CONNECT_SECONDS = 5.0
CALL_SECONDS = 150.0
"""Longer than our shim's own bound on a call of the OCI runtime."""
SHUTDOWN_SECONDS = 3.0


class Shim:
    """One shim, which may keep several tasks of a group."""

    def __init__(self, client: TtrpcClient, bootstrap: Bootstrap) -> None:
        self._client = client
        self._service = f"containerd.task.v{bootstrap.version}.Task/"
        self.bootstrap = bootstrap
        self.tasks: set[str] = set()

    @classmethod
    async def connect(
        cls, bootstrap: Bootstrap, namespace: str, timeout: float = CONNECT_SECONDS
    ) -> Shim:
        """Connect; raises Unavailable."""
        if bootstrap.protocol != "ttrpc":
            raise Unavailable(f"shim speaks {bootstrap.protocol}: not supported")
        return cls(await TtrpcClient.connect(bootstrap.address, namespace, timeout), bootstrap)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called once when the connection breaks."""
        self._client.on_lost = callback

    async def call(
        self, method: str, request: Message, response: type[M], timeout: float | None = CALL_SECONDS
    ) -> M:
        """One call of the Task service; raises what the shim answers."""
        return await self._client.call(self._service + method, request, response, timeout)

    async def wait(self, id: str, exec_id: str) -> api.WaitResponse:
        """Until the process ends, however long that takes."""
        request = api.WaitRequest(id=id, exec_id=exec_id)
        return await self.call("Wait", request, api.WaitResponse, None)

    async def shutdown(self, id: str) -> None:
        """Ask it to end, if it has no task left; a shim that is gone is no error."""
        request = api.ShutdownRequest(id=id)
        with contextlib.suppress(Error, asyncio.CancelledError):
            await self.call("Shutdown", request, Empty, SHUTDOWN_SECONDS)

    async def close(self) -> None:
        """Hang up; it goes on."""
        await self._client.close()
