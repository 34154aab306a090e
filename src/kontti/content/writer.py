"""The local store's writer: bytes are hashed as they come, and synced before they are a blob."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from kontti.content.base import Buffer, Status
from kontti.content.blobs import Blobs
from kontti.content.disk import disk_errors
from kontti.content.ingests import Ingest
from kontti.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from kontti.linux import libc
from kontti.values import EMPTY, Digest

CHUNK = 1 << 20
EARLY = 8 << 20


class LocalWriter:
    """An open ingest of a local store; for one thread at a time."""

    def __init__(
        self, blobs: Blobs, ingest: Ingest, status: Status, released: Callable[[], None]
    ) -> None:
        """Open and hash what is there; raises for a disk error, with nothing left open."""
        self._blobs = blobs
        self._ingest = ingest
        self._status = status
        self._released = released
        self._algorithm = Digest.parse(status.expected).algorithm if status.expected else "sha256"
        self._early = 0
        self._fd = os.open(ingest.data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._rehash(status.offset)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def path(self) -> str | None:
        """The ingest's file."""
        return self._ingest.data

    def status(self) -> Status:
        """How far it is."""
        return self._status

    def digest(self) -> Digest:
        """Of what was written so far."""
        return Digest(f"{self._algorithm}:{self._hash.hexdigest()}")

    def write(self, data: Buffer) -> int:
        """Append ``data``; raises ResourceExhausted on a full disk, with nothing of it kept."""
        fd = self._open_fd()
        size = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        try:
            with disk_errors(f"write to ingest {self._ingest.ref!r}"):
                written = os.write(fd, data)
                while written < size:
                    written += os.write(fd, memoryview(data).cast("B")[written:])
        except BaseException:
            self._cut(self._status.offset)
            raise
        self._hash.update(data)
        self._moved(self._status.offset + size)
        self._write_early()
        return size

    def _write_early(self) -> None:
        """Have the disk begin with what is there: the sync at the end has less to wait for."""
        count = self._status.offset - self._early
        if count >= EARLY:
            with contextlib.suppress(OSError):  # not all can; the sync tells
                libc.sync_file_range(self._fd, self._early, count, libc.SYNC_FILE_RANGE_WRITE)
            self._early = self._status.offset

    def truncate(self, size: int) -> None:
        """Drop what is past ``size``; raises InvalidArgument past the end."""
        self._open_fd()
        if not 0 <= size <= self._status.offset:
            raise InvalidArgument(f"truncate to {size} of {self._status.offset} bytes")
        with disk_errors(f"truncate ingest {self._ingest.ref!r}"):
            self._cut(size)
            self._rehash(size)
        self._moved(size)

    def commit(
        self, size: int = 0, expected: str = "", labels: Mapping[str, str] = EMPTY
    ) -> Digest:
        """Make it a durable blob; after a wrong size or digest it can be truncated and redone.

        ``labels`` are kept by a metadata store over this one, not here.
        """
        self._open_fd()
        digest = self._checked(size, expected or self._status.expected)
        try:
            self._store(digest)
        finally:
            # a failed sync leaves pages that look written and are not: nothing of them is kept
            self._finish()
        return digest

    def _checked(self, size: int, expected: str) -> Digest:
        offset = self._status.offset
        if size and size != offset:
            raise FailedPrecondition(f"unexpected commit size {offset}, expected {size}")
        if not expected:
            return self.digest()
        wanted = Digest.parse(expected)
        if wanted.algorithm != self._algorithm:
            self._algorithm = wanted.algorithm
            self._rehash(offset)
        if self.digest() != wanted:
            raise FailedPrecondition(f"unexpected commit digest {self.digest()}, expected {wanted}")
        return wanted

    def _store(self, digest: Digest) -> None:
        if self._blobs.exists(digest):
            raise AlreadyExists(f"content {digest}")
        with disk_errors(f"commit {digest}"):
            os.fchmod(self._fd, 0o444)
            os.fsync(self._fd)
            self._blobs.put(self._ingest.data, digest)

    def _finish(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._ingest.remove()
        self._released()

    def close(self) -> None:
        """Let go of the ref; what was written stays. Twice is fine."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        os.close(fd)
        try:
            self._ingest.touch()
        except OSError:
            pass  # only the time of the last change is lost
        self._released()

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise FailedPrecondition(f"writer of {self._ingest.ref!r} is closed")
        return self._fd

    def _moved(self, offset: int) -> None:
        self._status = replace(self._status, offset=offset, updated_at=time.time_ns())

    def _cut(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, size, os.SEEK_SET)

    def _rehash(self, size: int) -> None:
        """Hash the first ``size`` bytes anew, and stand after them."""
        self._hash = hashlib.new(self._algorithm)
        self._early = size
        done = 0
        while done < size:
            chunk = os.pread(self._fd, min(CHUNK, size - done), done)
            if not chunk:
                raise FailedPrecondition(f"ingest {self._ingest.ref!r} shrank")
            self._hash.update(chunk)
            done += len(chunk)
        os.lseek(self._fd, size, os.SEEK_SET)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
