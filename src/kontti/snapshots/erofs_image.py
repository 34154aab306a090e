"""The file of an EROFS image, whoever makes it. Light to import: workers start with it."""

from __future__ import annotations

import os

from kontti.wire.erofs import SUPERBLOCK_OFFSET, Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

OPAQUE_XATTR = "trusted.overlay.opaque"
"""The mark of directories that hide their parents'."""
_WRITE_SIZE = 1 << 20


def write_metadata(fd: int, layout: Layout, uuid: bytes) -> None:
    """Write inodes, directories and superblock of an image whose data is there."""
    os.lseek(fd, layout.start, os.SEEK_SET)
    for piece in pieces(layout.metadata()):
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]
    os.ftruncate(fd, layout.size)
    os.pwrite(fd, layout.superblock(uuid), SUPERBLOCK_OFFSET)


def pieces(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in fewer pieces."""
    gathered = bytearray()
    for part in parts:
        gathered += part
        if len(gathered) >= _WRITE_SIZE:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)
