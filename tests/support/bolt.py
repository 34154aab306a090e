"""Small bolt files, made page by page."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

PAGE = 4096
Tree = Mapping[bytes, "bytes | Tree"]


def leaf_page(number: int, entries: Sequence[tuple[int, bytes, bytes]], size: int = PAGE) -> bytes:
    """A leaf of (flags, key, value)."""
    head = struct.pack("<QHHI", number, 2, len(entries), 0)
    table, data = b"", b""
    for index, (flags, key, value) in enumerate(entries):
        offset = 16 * (len(entries) - index) + len(data)
        table += struct.pack("<IIII", flags, offset, len(key), len(value))
        data += key + value
    page = head + table + data
    return page.ljust(size, b"\0") if size else page


def branch_page(number: int, children: Sequence[tuple[bytes, int]]) -> bytes:
    """A branch of (first key, page)."""
    head = struct.pack("<QHHI", number, 1, len(children), 0)
    table, data = b"", b""
    for index, (key, child) in enumerate(children):
        offset = 16 * (len(children) - index) + len(data)
        table += struct.pack("<IIQ", offset, len(key), child)
        data += key
    return (head + table + data).ljust(PAGE, b"\0")


def meta_page(number: int, root: int, transaction: int) -> bytes:
    """A meta page that is whole."""
    body = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, PAGE, 0, root, 0, 2, 9, transaction)
    checksum = 0xCBF29CE484222325
    for byte in body:
        checksum = (checksum ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    head = struct.pack("<QHHI", number, 4, 0, 0)
    return (head + body + struct.pack("<Q", checksum)).ljust(PAGE, b"\0")


def entries(tree: Tree) -> list[tuple[int, bytes, bytes]]:
    """A tree as a leaf's entries, the buckets in it inline."""
    found = []
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, bytes):
            found.append((0, key, value))
        else:
            inline = leaf_page(0, entries(value), 0)
            found.append((1, key, struct.pack("<QQ", 0, 0) + inline))
    return found


def database(pages: Sequence[bytes], root: int = 3) -> bytes:
    """A file whose pages from the third on are ``pages``; the third is by rights a free list."""
    free = struct.pack("<QHHI", 2, 16, 0, 0).ljust(PAGE, b"\0")
    return meta_page(0, root, 4) + meta_page(1, root, 5) + free + b"".join(pages)


def of_tree(tree: Tree) -> bytes:
    """A file of one leaf, for trees that fit one page."""
    return database([leaf_page(3, entries(tree))])
