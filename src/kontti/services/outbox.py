"""What a service tells a client while it works: never waited for by who works."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from kontti.errors import Error

T = TypeVar("T")
MAX_WAITING = 4096
PAUSE = 0.1
LAST_SECONDS = 2.0
"""How long a client is waited for with the last of it."""


class Outbox(Generic[T]):
    """The newest of each key goes out, in order, as fast as ``send`` takes it, in rounds.

    One that is not taken in time is replaced by the next of its key. Beyond ``MAX_WAITING`` keys
    the oldest is dropped.
    """

    def __init__(self, send: Callable[[T], Awaitable[object]], pause: float = PAUSE) -> None:
        self._send, self._pause = send, pause
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, T] = {}
        self._some = asyncio.Event()

    def post(self, key: str, message: T) -> None:
        """Have it sent; from any thread, and never waits."""
        self._loop.call_soon_threadsafe(self._put, key, message)

    def _put(self, key: str, message: T) -> None:
        # the last change is the last to be told
        self._waiting.pop(key, None)
        self._waiting[key] = message
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._some.set()

    @contextlib.asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send what is posted in the block; all of it by the end, if the client takes it."""
        task = self._loop.create_task(self._run())
        try:
            yield
            task.cancel()
            await asyncio.wait([task])
            with contextlib.suppress(TimeoutError, Error):
                async with asyncio.timeout(LAST_SECONDS):
                    await self._round()
        finally:
            task.cancel()

    async def _run(self) -> None:
        with contextlib.suppress(Error):
            while True:
                await self._some.wait()
                self._some.clear()
                await self._round()
                await asyncio.sleep(self._pause)

    async def _round(self) -> None:
        while self._waiting:
            key, message = next(iter(self._waiting.items()))
            await self._send(message)
            # one that came meanwhile is to be sent as well; one whose sending was given up too
            if self._waiting.get(key) is message:
                del self._waiting[key]
