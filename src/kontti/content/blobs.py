"""Committed blobs as files: ``blobs/<algorithm>/<hex>``, mode 0444, never changed."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from io import BufferedReader
from types import TracebackType
from typing import Self

from kontti.content.base import Info
from kontti.content.disk import disk_errors, make_directory, sync_directory
from kontti.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from kontti.values import Digest


class LocalReader:
    """A blob's file, open; it can be read to its end even when the blob is removed meanwhile."""

    def __init__(self, path: str, fd: int) -> None:
        self._fd = fd
        self._path = path
        self._size = os.fstat(fd).st_size

    @property
    def size(self) -> int:
        """The blob's size in bytes."""
        return self._size

    @property
    def path(self) -> str | None:
        """The blob's file."""
        return self._path

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; b"" at the end."""
        if offset < 0 or length < 0:
            raise InvalidArgument(f"read of {length} bytes at {offset}")
        with disk_errors(f"read {self._path}"):
            return os.pread(self._fd, length, offset)

    def read_now(self, offset: int, length: int) -> bytes:
        """Of up to ``length`` bytes from ``offset`` what is in memory; b"" where that is none."""
        buffer = bytearray(min(length, max(self._size - offset, 0)))
        try:
            count = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError:
            # not in memory, or a file system that cannot tell: who waits for it learns of errors
            return b""
        return bytes(memoryview(buffer)[:count])

    def close(self) -> None:
        """Close the file; twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class Blobs:
    """The directory of committed blobs."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._mutex = threading.Lock()
        make_directory(os.path.join(root, "sha256"))

    def path(self, digest: Digest) -> str:
        """Where the blob is, or would be; raises InvalidArgument for what is no digest."""
        checked = Digest.parse(digest)
        return os.path.join(self._root, checked.algorithm, checked.encoded)

    def exists(self, digest: Digest) -> bool:
        """Whether the blob is there."""
        return os.path.lexists(self.path(digest))

    def info(self, digest: Digest) -> Info:
        """Raises NotFound."""
        with disk_errors(f"stat {digest}", f"content {digest}"):
            stat = os.stat(self.path(digest))
        return Info(digest, stat.st_size, stat.st_mtime_ns, stat.st_mtime_ns)

    def open(self, digest: Digest) -> LocalReader:
        """Raises NotFound."""
        path = self.path(digest)
        with disk_errors(f"open {digest}", f"content {digest}"):
            return LocalReader(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def put(self, source: str, digest: Digest) -> None:
        """Move the synced file ``source`` here, durably; raises AlreadyExists."""
        target = self.path(digest)
        directory = os.path.dirname(target)
        make_directory(directory)
        # rename replaces: the check and it are one step, so that one of two writers is told
        with self._mutex:
            if os.path.lexists(target):
                raise AlreadyExists(f"content {digest}")
            os.rename(source, target)
        sync_directory(directory)

    def adopt(self, source: str, digest: Digest) -> int:
        """Make ``source`` a blob by a hard link, durably, when its bytes are right; its size.

        Raises AlreadyExists, DataLoss for other bytes, FailedPrecondition on another file system.
        """
        target = self.path(digest)
        make_directory(os.path.dirname(target))
        with disk_errors(f"adopt {source}", source), open(source, "rb") as file:
            _check(file, digest)
            os.fsync(file.fileno())
            # the very file that was read, whatever its name stands for by now
            self._link(file.fileno(), target, digest)
            size = os.fstat(file.fileno()).st_size
        sync_directory(os.path.dirname(target))
        return size

    @staticmethod
    def _link(source: int, target: str, digest: Digest) -> None:
        folder = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # a directory of its own makes this linkat(2), which can follow; link(2) cannot
            os.link(str(source), target, src_dir_fd=folder, follow_symlinks=True)
        except FileExistsError:
            raise AlreadyExists(f"content {digest}") from None
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise FailedPrecondition(f"content {digest} is on another file system") from None
        finally:
            os.close(folder)

    def walk(self) -> Iterator[Info]:
        """Every blob; names that are no digests are not ours and are left out."""
        for digest in self._digests():
            try:
                yield self.info(digest)
            except NotFound:
                continue

    def _digests(self) -> Iterator[Digest]:
        for algorithm in sorted(os.listdir(self._root)):
            directory = os.path.join(self._root, algorithm)
            if not os.path.isdir(directory):
                continue
            for name in sorted(os.listdir(directory)):
                try:
                    yield Digest.parse(f"{algorithm}:{name}")
                except InvalidArgument:
                    continue

    def delete(self, digest: Digest) -> None:
        """Raises NotFound."""
        with disk_errors(f"remove {digest}", f"content {digest}"):
            os.unlink(self.path(digest))


def _check(file: BufferedReader, digest: Digest) -> None:
    """Raises DataLoss where a file's bytes are not those of ``digest``."""
    found = hashlib.file_digest(file, digest.algorithm).hexdigest()
    if found != digest.encoded:
        raise DataLoss(f"content {digest} is damaged: {file.name} has {digest.algorithm}:{found}")
