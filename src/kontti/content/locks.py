"""Locks by name, for one process: a root has one owner."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from kontti.errors import Unavailable

WAIT_SECONDS = 600.0


class Held:
    """Names in somebody's hands. Nobody waits: a name is free or it is not."""

    def __init__(self) -> None:
        self._names: set[Hashable] = set()
        self._mutex = threading.Lock()

    def take(self, name: Hashable) -> bool:
        """Whether ``name`` was free; it is the caller's then, until released."""
        with self._mutex:
            if name in self._names:
                return False
            self._names.add(name)
            return True

    def release(self, name: Hashable) -> None:
        """Give ``name`` back."""
        with self._mutex:
            self._names.discard(name)

    def names(self) -> frozenset[Hashable]:
        """What is held now."""
        with self._mutex:
            return frozenset(self._names)

    def __contains__(self, name: Hashable) -> bool:
        with self._mutex:
            return name in self._names


@dataclass(slots=True)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class NamedLocks:
    """A lock for each name, made when wanted and forgotten when free."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}
        self._mutex = threading.Lock()

    @contextlib.contextmanager
    def hold(self, *names: Hashable, timeout: float = WAIT_SECONDS) -> Iterator[None]:
        """Hold every name, taken in one order so that two callers cannot block each other.

        Raises Unavailable where one stays held for ``timeout`` seconds.
        """
        with contextlib.ExitStack() as stack:
            for name in sorted(set(names), key=repr):
                stack.enter_context(self._one(name, timeout))
            yield

    @contextlib.contextmanager
    def _one(self, name: Hashable, timeout: float) -> Iterator[None]:
        entry = self._enter(name)
        try:
            if not entry.lock.acquire(timeout=timeout):
                raise Unavailable(f"{name!r} is held by another operation")
            try:
                yield
            finally:
                entry.lock.release()
        finally:
            self._leave(name, entry)

    def _enter(self, name: Hashable) -> _Entry:
        with self._mutex:
            entry = self._entries.setdefault(name, _Entry())
            entry.users += 1
            return entry

    def _leave(self, name: Hashable, entry: _Entry) -> None:
        with self._mutex:
            entry.users -= 1
            if not entry.users:
                del self._entries[name]
