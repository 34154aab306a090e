"""Open streams by id: streaming.base.Streams, with what garbage collection needs of them."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kontti.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted
from kontti.namespaces import Scope
from kontti.streaming.base import Stream
from kontti.values import EMPTY, Held

MAX_STREAMS = 1024
MAX_ID = 1024
UNTAKEN_SECONDS = 600.0
"""How long a stream waits for the service that it was opened for."""


@dataclass(slots=True, eq=False)
class _Entry:
    stream: Stream
    lease: str
    since: float
    serial: int
    taken: bool = False


class StreamManager:
    """streaming.base.Streams. ``loop`` is where streams live; other threads may list and remove."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: dict[tuple[str, str], _Entry] = {}
        self._serials = itertools.count(1)
        self._lock = threading.Lock()

    def register(self, scope: Scope, id: str, stream: Stream) -> None:
        """Streams.register. One that nobody took in time makes room."""
        if not id or len(id) > MAX_ID:
            raise InvalidArgument(f"stream id must have 1 to {MAX_ID} characters")
        self.expire()
        with self._lock:
            if (scope.namespace, id) in self._streams:
                raise AlreadyExists(f"stream {id}")
            if len(self._streams) >= MAX_STREAMS:
                raise ResourceExhausted(f"{MAX_STREAMS} streams are open")
            entry = _Entry(stream, scope.lease, time.monotonic(), next(self._serials))
            self._streams[scope.namespace, id] = entry

    def get(self, scope: Scope, id: str) -> Stream:
        """Streams.get."""
        with self._lock:
            entry = self._streams.get((scope.namespace, id))
            if entry is None:
                raise NotFound(f"stream {id}")
            entry.taken = True
            return entry.stream

    def unregister(self, scope: Scope, id: str, stream: Stream) -> None:
        """Forget ``stream``, and not another that has its id by now."""
        with self._lock:
            entry = self._streams.get((scope.namespace, id))
            if entry is not None and entry.stream is stream:
                del self._streams[scope.namespace, id]

    def expire(self, now: float | None = None) -> None:
        """Close those that nobody has taken for too long."""
        latest = (time.monotonic() if now is None else now) - UNTAKEN_SECONDS
        with self._lock:
            late = [k for k, e in self._streams.items() if not e.taken and e.since <= latest]
            entries = [self._streams.pop(key) for key in late]
        self._close(entries)

    def held(self) -> Sequence[Held]:
        """Every stream, for garbage collection: one with a lease lives as long as that."""
        with self._lock:
            return [
                Held(namespace, id, EMPTY, e.lease, root=not e.lease, serial=e.serial)
                for (namespace, id), e in self._streams.items()
            ]

    def collect(self, garbage: Iterable[Held]) -> None:
        """Close what nothing refers to any more."""
        entries = []
        with self._lock:
            for found in garbage:
                key = found.namespace, found.key
                entry = self._streams.get(key)
                if entry is not None and entry.serial == found.serial:
                    entries.append(self._streams.pop(key))
        self._close(entries)

    def _close(self, entries: Iterable[_Entry]) -> None:
        for entry in entries:
            self._loop.call_soon_threadsafe(entry.stream.close)
