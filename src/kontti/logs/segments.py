"""Reading one numbered file of a log, compressed or not, also while it is written to or removed."""

from __future__ import annotations

import os
import time
import zlib

from kontti.errors import DataLoss
from kontti.shim import log_files
from kontti.shim.log_files import PACKED, PLAIN
from kontti.wire.log_record import STDERR, Record, decode, stamp_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

CHUNK = 64 << 10
_GZIP = 31
# between two looks, one form may become the other
_ATTEMPTS = 3


class Segment:
    """One file, read from its beginning. A plain one may grow: after its end there may be more."""

    def __init__(self, fd: int, packed: bool, name: str) -> None:
        self._fd = fd
        self._name = name
        self._unpacker = zlib.decompressobj(_GZIP) if packed else None
        self._held = b""
        self.modified = os.fstat(fd).st_mtime_ns
        """When it was last written to, in ns since the epoch."""

    @classmethod
    def open(cls, folder: str, number: int) -> Self | None:
        """The file of a number, None where it is there no more. Raises OSError."""
        for _ in range(_ATTEMPTS):
            for suffix in (PLAIN, PACKED):
                path = os.path.join(folder, log_files.name_of(number, suffix))
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    continue
                return cls(fd, suffix == PACKED, path)
        return None

    def read(self) -> bytes:
        """The next bytes; none at its end. Raises DataLoss where it is damaged."""
        if self._unpacker is None:
            return os.read(self._fd, CHUNK)
        try:
            return self._unpack(self._unpacker)
        except zlib.error as error:
            raise DataLoss(f"log file {self._name}: {error}") from None

    def _unpack(self, unpacker: zlib._Decompress) -> bytes:
        while not unpacker.eof:
            data = self._held or os.read(self._fd, CHUNK)
            if not data:
                raise DataLoss(f"log file {self._name}: its end is missing")
            made = unpacker.decompress(data, CHUNK)
            self._held = unpacker.unconsumed_tail
            if made:
                return made
        return b""

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Parser:
    """Records of bytes, however they are cut. ``rest`` is the beginning of a record."""

    def __init__(self) -> None:
        self.rest = b""
        self.offset = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, int, Record]]:
        """The records that ``data`` completes, each with where it begins and its length."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            begin, size = self.offset, len(line) + 1
            self.offset += size
            yield begin, size, decode(line) or damaged(line)


def damaged(line: bytes) -> Record:
    """In place of what is no record: a crash of the host may leave such."""
    text = b"%d bytes of the log are damaged\n" % len(line)
    return Record(stamp_of(time.time_ns()), STDERR, text, len(line))
