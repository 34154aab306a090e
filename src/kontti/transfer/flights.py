"""One at a time by key: two transfers of one process do not do the same work twice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from kontti.errors import Unavailable

WAIT_SECONDS = 3600.0


@dataclass(slots=True)
class _Flight:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class Flights:
    """Locks by key that exist while someone holds or waits for them.

    Who waited looks first whether the work is done: it is, unless the one before failed.
    """

    def __init__(self, wait_seconds: float = WAIT_SECONDS) -> None:
        self._wait, self._lock = wait_seconds, threading.Lock()
        self._flights: dict[Hashable, _Flight] = {}

    @contextlib.contextmanager
    def hold(self, key: Hashable) -> Iterator[None]:
        """Hold ``key``; raises Unavailable when the one before takes too long."""
        flight = self._enter(key)
        try:
            if not flight.lock.acquire(timeout=self._wait):
                raise Unavailable(f"{key} is held by another transfer")
            try:
                yield
            finally:
                flight.lock.release()
        finally:
            self._leave(key, flight)

    def _enter(self, key: Hashable) -> _Flight:
        with self._lock:
            flight = self._flights.setdefault(key, _Flight())
            flight.users += 1
            return flight

    def _leave(self, key: Hashable, flight: _Flight) -> None:
        with self._lock:
            flight.users -= 1
            if not flight.users:
                del self._flights[key]

    def __len__(self) -> int:
        return len(self._flights)
