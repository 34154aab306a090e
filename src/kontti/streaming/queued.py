"""A stream of two bounded queues: one end for the service that pumps it, one for who uses it."""

from __future__ import annotations

import asyncio
from collections import deque

from kontti.errors import Canceled
from kontti.values import AnyValue

DEPTH = 16
"""Messages that wait in each direction before a sender does."""


class Channel:
    """A bounded queue that ends, or breaks. Lives on one event loop."""

    def __init__(self) -> None:
        self._items: deque[AnyValue] = deque()
        self._changed = asyncio.Event()
        self._over = False
        self._broken = ""

    async def put(self, item: AnyValue) -> None:
        """Once there is room; raises Canceled where it is over."""
        while len(self._items) >= DEPTH and not self._over:
            await self._changed.wait()
        if self._over:
            raise Canceled(self._broken or "stream is closed")
        self._items.append(item)
        self._wake()

    async def get(self) -> AnyValue | None:
        """The next one, None after the last; raises Canceled where it is broken."""
        while not self._items and not self._over:
            await self._changed.wait()
        if self._broken:
            raise Canceled(self._broken)
        if not self._items:
            return None
        item = self._items.popleft()
        self._wake()
        return item

    async def drained(self) -> None:
        """Once all of it was taken, or lost."""
        while self._items:
            await self._changed.wait()

    def end(self, broken: str = "") -> None:
        """Take no more; ``broken`` says why what is in it is lost as well."""
        self._over = True
        if broken and not self._broken:
            self._broken = broken
            self._items.clear()
        self._wake()

    def _wake(self) -> None:
        # each event wakes those that wait now; whoever comes later waits for the next
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class QueuedStream:
    """streaming.base.Stream; ``incoming`` and ``outgoing`` are for who pumps it."""

    def __init__(self) -> None:
        self.incoming = Channel()
        self.outgoing = Channel()

    async def send(self, message: AnyValue) -> None:
        """Stream.send."""
        await self.outgoing.put(message)

    async def recv(self) -> AnyValue | None:
        """Stream.recv."""
        return await self.incoming.get()

    def close(self) -> None:
        """Stream.close."""
        self.outgoing.end()

    async def drained(self) -> None:
        """Stream.drained."""
        await self.outgoing.drained()

    def fail(self, reason: str) -> None:
        """It broke off: whoever waits is told so."""
        self.incoming.end(reason)
        self.outgoing.end(reason)
