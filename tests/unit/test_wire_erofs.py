"""EROFS images as bytes: what is written is read back, and what is damaged is told."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import InvalidArgument
from kontti.wire.erofs import BLOCK, SUPERBLOCK, Inode, Layout, directory_body, inode_body
from kontti.wire.erofs_read import (
    parse_directory,
    parse_inode,
    parse_superblock,
    with_inodes,
)

NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name)
ENTRIES = st.dictionaries(NAMES, st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 7)))


@given(ENTRIES)
def test_directories(entries: dict[bytes, tuple[int, int]]) -> None:
    wanted = sorted((name, *rest) for name, rest in {**entries, b".": (1, 2)}.items())
    body = directory_body(iter(wanted[::-1]))
    assert parse_directory(body) == wanted
    # a block that is not the last may be followed by nothing but zeros
    assert all(len(body[at : at + BLOCK]) for at in range(0, len(body), BLOCK))


@given(
    st.integers(0, 0o7777),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**31),
)
def test_inodes_are_changed_in_place(mode: int, owner: int, time: int, size: int) -> None:
    inode = Inode(stat.S_IFDIR | 0o755, 1, 2, 3)
    inode.size, inode.offset, inode.nlink = 10, 7 * BLOCK, 2
    head = parse_inode(inode_body(inode, 9))
    assert (head.mode, head.size, head.place, head.owner) == (inode.mode, 10, 7 * BLOCK, (1, 2))
    changed = head.owned(mode, owner, owner).timed(time).sized(size)
    again = parse_inode(changed.encode())
    assert (again.mode, again.size, again.owner) == (stat.S_IFDIR | mode, size, (owner, owner))
    wanted = Inode(stat.S_IFDIR | mode, owner, owner, time)
    wanted.size, wanted.offset, wanted.nlink = size or 1, 7 * BLOCK, 2
    assert changed.sized(size or 1).encode() == inode_body(wanted, 9)


def test_the_superblock_counts_inodes_once() -> None:
    root, file = Inode(stat.S_IFDIR | 0o755), Inode(stat.S_IFREG | 0o644)
    root.children = {b"a": file, b"b": file, b"d": Inode(stat.S_IFDIR)}
    layout = Layout(root, 4096)
    data = layout.superblock(bytes(16))
    found = parse_superblock(data)
    assert (found.inodes, found.root, found.start) == (3, root.slot, 4096)
    assert (file.nlink, root.nlink) == (2, 3)
    fewer = with_inodes(data, 2)
    assert len(fewer) == SUPERBLOCK.size
    assert parse_superblock(fewer) == found._replace(inodes=2)


@pytest.mark.parametrize("data", [b"", bytes(200), b"\xe2\xe1\xf5\xe0"])
def test_what_is_no_superblock(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_superblock(data)


@pytest.mark.parametrize("body", [bytes(12), b"\xff" * 512, bytes(8) + b"\x0d\0" + bytes(99)])
def test_directories_that_cannot_be(body: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_directory(body)


def test_an_inode_that_is_cut_off() -> None:
    with pytest.raises(InvalidArgument):
        parse_inode(bytes(63))
