"""One at a time by key: two transfers of one process do not do the same work twice."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from kontti.errors import Canceled, Unavailable
from kontti.registry.parallel import Slots

WAIT_SECONDS = 3600.0
STEP = 0.2
MOST_UNPACKS = 8
IsStopped = Callable[[], bool]


def never() -> bool:
    """Waits on."""
    return False


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
    def hold(self, key: Hashable, is_stopped: IsStopped = never) -> Iterator[None]:
        """Hold ``key``; raises Unavailable when the one before takes too long, Canceled."""
        flight = self._enter(key)
        try:
            self._acquire(key, flight, is_stopped)
            try:
                yield
            finally:
                flight.lock.release()
        finally:
            self._leave(key, flight)

    def _acquire(self, key: Hashable, flight: _Flight, is_stopped: IsStopped) -> None:
        until = time.monotonic() + self._wait
        while not flight.lock.acquire(timeout=max(0.0, min(STEP, until - time.monotonic()))):
            if is_stopped():
                raise Canceled(f"{key}")
            if time.monotonic() >= until:
                raise Unavailable(f"{key} is held by another transfer")

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


class Unpacks:
    """How many layers are unpacked at a time, by all transfers together."""

    def __init__(self, count: int = 0) -> None:
        """``count`` 0 stands for one for each processor, but two at least and eight at most."""
        self.count = count or min(max(2, len(os.sched_getaffinity(0))), MOST_UNPACKS)
        self._slots = Slots(self.count)
        # who reads what still comes in waits most of the time: it must not keep back what is there
        self._following = Slots(self.count)

    def hold(self, is_stopped: IsStopped = never) -> AbstractContextManager[None]:
        """Wait until there may be one more; raises Canceled when stopped first."""
        return self._slots.hold(is_stopped)

    def following(self) -> AbstractContextManager[int]:
        """One more that reads a blob on its way, where there may be: 1, or 0."""
        return self._following.more(1)
