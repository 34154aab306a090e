"""Reads back what kontti.wire.erofs writes: bytes in, values out. No file.

For images made there only: extended inodes, data that is flat and plain, blocks of 512 bytes.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from kontti.errors import InvalidArgument
from kontti.wire.erofs import BLOCK, DIRENT, INODE, MAGIC, SUPERBLOCK

SLOT = 32
_INODE_COUNT = slice(16, 24)

Entries = list[tuple[bytes, int, int]]
"""Names, slots and types."""


class Superblock(NamedTuple):
    """Where inodes are (``start``), the root's slot, and how many ``inodes`` there are."""

    start: int
    root: int
    inodes: int

    def place(self, slot: int) -> int:
        """Where an inode is."""
        return self.start + slot * SLOT


class Head(NamedTuple):
    """An inode; ``place`` is where its data begins, ``fields`` are as they are stored."""

    fields: tuple[int, ...]

    @property
    def mode(self) -> int:
        return self.fields[2]

    @property
    def size(self) -> int:
        return self.fields[4]

    @property
    def place(self) -> int:
        return self.fields[5] * BLOCK

    @property
    def owner(self) -> tuple[int, int]:
        return self.fields[7], self.fields[8]

    def owned(self, mode: int, uid: int, gid: int) -> Head:
        """With other permissions, and another owner."""
        kind = stat.S_IFMT(self.mode)
        return Head((*self.fields[:2], kind | mode, *self.fields[3:7], uid, gid, *self.fields[9:]))

    def timed(self, mtime: int) -> Head:
        """Changed at another time, in ns."""
        return Head((*self.fields[:9], *divmod(mtime, 10**9), *self.fields[11:]))

    def sized(self, size: int) -> Head:
        """Of another size, at the same place."""
        return Head((*self.fields[:4], size, *self.fields[5:]))

    def encode(self) -> bytes:
        """As it stands in an image."""
        return INODE.pack(*self.fields)


def parse_superblock(data: bytes) -> Superblock:
    """Raises InvalidArgument for what is none."""
    if len(data) < SUPERBLOCK.size or int.from_bytes(data[:4], "little") != MAGIC:
        raise InvalidArgument("erofs: no image")
    fields = SUPERBLOCK.unpack_from(data)
    return Superblock(start=fields[10] * BLOCK, root=fields[5], inodes=fields[6])


def with_inodes(superblock: bytes, count: int) -> bytes:
    """A superblock that tells of ``count`` inodes."""
    return (
        superblock[: _INODE_COUNT.start]
        + count.to_bytes(8, "little")
        + superblock[_INODE_COUNT.stop :]
    )


def parse_inode(data: bytes) -> Head:
    """Raises InvalidArgument where it is cut off."""
    if len(data) < INODE.size:
        raise InvalidArgument("erofs: an inode is cut off")
    return Head(INODE.unpack_from(data))


def parse_directory(body: bytes) -> Entries:
    """What a directory has, ``.`` and ``..`` too; raises InvalidArgument for what cannot be."""
    found: Entries = []
    for start in range(0, len(body), BLOCK):
        found += _parse_block(body[start : start + BLOCK])
    return found


def _parse_block(block: bytes) -> Entries:
    first = int.from_bytes(block[8:10], "little")
    if not 0 < first <= len(block) or first % DIRENT.size:
        raise InvalidArgument("erofs: a directory is damaged")
    heads = [DIRENT.unpack_from(block, at) for at in range(0, first, DIRENT.size)]
    ends = [*(offset for _, offset, _ in heads[1:]), len(block)]
    return [
        (block[offset:end].rstrip(b"\0"), slot, kind)
        for (slot, offset, kind), end in zip(heads, ends, strict=True)
    ]
