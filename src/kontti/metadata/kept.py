"""Readers of blobs that were read a moment ago: clients copy a blob by reading it in pieces.

One that is kept is good for as long as nothing was written to the database since its blob was
looked up, and its file has its name.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from kontti.content.base import Provider, Reader
from kontti.metadata.database import Database
from kontti.values import Digest

MOST = 4
Key = tuple[str, Digest]


class KeptReaders:
    """Open readers that nobody uses now, by namespace and digest, at most ``MOST``."""

    def __init__(self, database: Database, content: Provider) -> None:
        self._database = database
        self._content = content
        self._mutex = threading.Lock()
        self._idle: deque[tuple[Key, int, Reader]] = deque()

    def open(
        self, namespace: str, digest: Digest, look_up: Callable[[Digest], object]
    ) -> LentReader:
        """One that was kept, or a new one once ``look_up`` has found the blob; raises NotFound."""
        key = (namespace, digest)
        kept = self._take(key)
        if kept is not None:
            return kept
        generation = self._database.generation
        look_up(digest)
        return LentReader(self, key, generation, self._content.reader(digest))

    def _take(self, key: Key) -> LentReader | None:
        with self._mutex:
            found = next((kept for kept in self._idle if kept[0] == key), None)
            if found is None:
                return None
            self._idle.remove(found)
        _, generation, reader = found
        if generation != self._database.generation or not os.path.lexists(reader.path or ""):
            reader.close()
            return None
        return LentReader(self, key, generation, reader)

    def give_back(self, key: Key, generation: int, reader: Reader) -> None:
        """Keep one that is closed, in the place of the oldest."""
        if generation != self._database.generation or reader.path is None:
            reader.close()
            return
        with self._mutex:
            self._idle.append((key, generation, reader))
            oldest = self._idle.popleft()[2] if len(self._idle) > MOST else None
        if oldest is not None:
            oldest.close()

    def drop(self) -> None:
        """Close those that nobody uses: a blob's space is free once nobody has it open."""
        with self._mutex:
            idle, self._idle = self._idle, deque()
        for _, _, reader in idle:
            reader.close()


class LentReader:
    """content.base.Reader that is given back when it is closed."""

    __slots__ = ("_closed", "_generation", "_inner", "_kept", "_key")

    def __init__(self, kept: KeptReaders, key: Key, generation: int, inner: Reader) -> None:
        self._kept = kept
        self._key = key
        self._generation = generation
        self._inner = inner
        self._closed = False

    @property
    def size(self) -> int:
        """In bytes."""
        return self._inner.size

    @property
    def path(self) -> str | None:
        """The blob's file."""
        return self._inner.path

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; b"" at the end."""
        return self._inner.read_at(offset, length)

    def read_now(self, offset: int, length: int) -> bytes:
        """The same, of what is in memory."""
        return self._inner.read_now(offset, length)

    def close(self) -> None:
        """Give it back; twice is fine."""
        if not self._closed:
            self._closed = True
            self._kept.give_back(self._key, self._generation, self._inner)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
