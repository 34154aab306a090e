"""Reads, hashes and inflates a blob in a thread, while the main thread extracts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Semaphore, Thread

from kontti.diff.compression import Read, decompressed

_DEPTH = 8


class Feed:
    """The uncompressed chunks of a blob; its digests and sizes once they are all read."""

    def __init__(self, read: Read, compression: str, algorithm: str, limit: int = 0) -> None:
        """``algorithm`` "": the blob is not hashed."""
        self.read = 0
        self.size = 0
        self._read = read
        self._blob = hashlib.new(algorithm) if algorithm else None
        self._diff = hashlib.sha256()
        self._chunks = decompressed(self._read_hashed, compression, limit)
        self._queue: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
        # bounds what is inflated ahead of the extraction
        self._room = Semaphore(_DEPTH)

    @property
    def digest(self) -> str:
        """Of the blob as stored, "" where it is not hashed."""
        return f"{self._blob.name}:{self._blob.hexdigest()}" if self._blob else ""

    @property
    def diff_id(self) -> str:
        """Of the uncompressed tar."""
        return f"sha256:{self._diff.hexdigest()}"

    def __iter__(self) -> Iterator[bytes]:
        """The chunks, once; what goes wrong in the thread is raised here."""
        Thread(target=self._produce, daemon=True).start()
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._room.release()
            yield item

    def _read_hashed(self, count: int) -> bytes:
        data = self._read(count)
        if self._blob is not None:
            self._blob.update(data)
        self.read += len(data)
        return data

    def _produce(self) -> None:
        try:
            for chunk in self._chunks:
                self._diff.update(chunk)
                self.size += len(chunk)
                self._room.acquire()
                self._queue.put(chunk)
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
            self._queue.put(error)
