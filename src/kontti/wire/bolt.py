"""A bbolt database, read: pages in, keys and values out. No file, and nothing is ever written.

https://pkg.go.dev/go.etcd.io/bbolt. A file is pages; two of them (the meta pages) name the root
bucket, and the one with the higher transaction and a right checksum counts. A bucket is a tree of
branch and leaf pages; a leaf's value may be another bucket, on pages of its own or inline.

Numbers are in the byte order of the machine that wrote the file; little-endian is read.
"""

from __future__ import annotations

from struct import Struct

from kontti.errors import DataLoss, InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC, VERSION = 0xED0CDAED, 2
BRANCH, LEAF, META = 1, 2, 4
PAGE_SIZES = tuple(1 << shift for shift in range(9, 17))
MAX_DEPTH = 64
VISITS = 64
"""How often a page may be gone through, on average, by one reader."""
_PAGE = Struct("<QHHI")
_META = Struct("<IIIIQQQQQQ")
_BRANCH = Struct("<IIQ")
_LEAF = Struct("<IIII")
_BUCKET = Struct("<QQ")
_FNV_BASIS, _FNV_PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


class Bucket:
    """Keys of one bucket, each with its value or the bucket that it names."""

    def __init__(self, database: Database, page: int, inline: memoryview | None = None) -> None:
        self._database = database
        self._page = page
        self._inline = inline

    def items(self) -> Iterator[tuple[bytes, bytes | Bucket]]:
        """Every key in order; raises DataLoss where the file is damaged."""
        return self._walk(self._start(), 0)

    def _start(self) -> memoryview:
        return self._database.page(self._page) if self._inline is None else self._inline

    def _walk(self, page: memoryview, depth: int) -> Iterator[tuple[bytes, bytes | Bucket]]:
        if depth > MAX_DEPTH:
            raise DataLoss("bolt: tree is too deep")
        self._database.note_visit()
        flags, count = _head(page)
        if flags & LEAF:
            for index in range(count):
                yield self._leaf(page, index)
        elif flags & BRANCH and self._inline is None:
            for index in range(count):
                _, child = _branch(page, index)
                yield from self._walk(self._database.page(child), depth + 1)
        else:
            raise DataLoss(f"bolt: page with flags {flags:#x} in a tree")

    def _leaf(self, page: memoryview, index: int) -> tuple[bytes, bytes | Bucket]:
        flags, key, value = _entry(page, index)
        if not flags & 1:
            return key, bytes(value)
        if len(value) < _BUCKET.size:
            raise DataLoss("bolt: bucket is cut short")
        root, _ = _BUCKET.unpack_from(value)
        inline = value[_BUCKET.size :] if root == 0 else None
        return key, Bucket(self._database, root, inline)

    def find(self, key: bytes) -> bytes | Bucket | None:
        """What ``key`` has, None where it is not there."""
        page = self._start()
        for _ in range(MAX_DEPTH):
            flags, count = _head(page)
            if flags & LEAF:
                index = _search(page, count, key, _leaf_key, exact=True)
                return None if index < 0 else self._leaf(page, index)[1]
            if not flags & BRANCH or not count:
                raise DataLoss(f"bolt: page with flags {flags:#x} in a tree")
            index = max(0, _search(page, count, key, _branch_key, exact=False))
            page = self._database.page(_branch(page, index)[1])
        raise DataLoss("bolt: tree is too deep")

    def bucket(self, *path: str) -> Bucket | None:
        """The bucket at ``path``, None where there is none."""
        found: Bucket = self
        for name in path:
            step = found.find(name.encode())
            if not isinstance(step, Bucket):
                return None
            found = step
        return found

    def value(self, name: str) -> bytes:
        """A key's value, b"" where it is not there."""
        found = self.find(name.encode())
        return found if isinstance(found, bytes) else b""

    def buckets(self) -> Iterator[tuple[str, Bucket]]:
        """The buckets in it by name; names that are no text raise DataLoss."""
        for key, found in self.items():
            if isinstance(found, Bucket):
                yield text(key), found

    def values(self) -> Iterator[tuple[str, bytes]]:
        """The values in it by name."""
        for key, found in self.items():
            if not isinstance(found, Bucket):
                yield text(key), found


class Database:
    """A whole file as ``data``, which may be a mapping of it."""

    def __init__(self, data: memoryview) -> None:
        """Raises InvalidArgument where it is no bolt file, DataLoss where no meta page is right."""
        self._data = data
        self._size, root = _newest_meta(data)
        # pages that name one another could be gone through for ever
        self._patience = VISITS * (len(data) // self._size) + VISITS
        self.root = Bucket(self, root)

    def note_visit(self) -> None:
        """A page is gone through from end to end; raises DataLoss where that is too often."""
        self._patience -= 1
        if self._patience < 0:
            raise DataLoss("bolt: pages are reached too often")

    def page(self, number: int) -> memoryview:
        """A page with those that continue it; raises DataLoss for one that is not in the file."""
        start = number * self._size
        if number < 2 or start + self._size > len(self._data):
            raise DataLoss(f"bolt: page {number} is not in the file")
        named, _, _, overflow = _PAGE.unpack_from(self._data, start)
        end = start + (overflow + 1) * self._size
        if named != number or end > len(self._data):
            raise DataLoss(f"bolt: page {number} is damaged")
        return self._data[start:end]


def _newest_meta(data: memoryview) -> tuple[int, int]:
    """The page size and the root bucket's page."""
    found = []
    # the second one's place depends on the page size, which only a meta page tells
    for place in (0, *PAGE_SIZES):
        meta = _meta(data, place)
        if meta is not None and (place == 0 or meta[1] == place):
            found.append(meta)
    if found:
        _, size, root = max(found)
        return size, root
    if not any(_is_meta(data, place) for place in (0, *PAGE_SIZES)):
        raise InvalidArgument("bolt: not a database")
    raise DataLoss("bolt: no meta page is whole")


def _is_meta(data: memoryview, place: int) -> bool:
    start = place + _PAGE.size
    return bytes(data[start : start + 4]) == MAGIC.to_bytes(4, "little")


def _meta(data: memoryview, place: int) -> tuple[int, int, int] | None:
    """Transaction, page size and root of the meta page at ``place``; None where there is none."""
    start = place + _PAGE.size
    if len(data) < start + _META.size:
        return None
    magic, version, size, _, root, _, _, _, transaction, checksum = _META.unpack_from(data, start)
    body = data[start : start + _META.size - 8]
    if magic != MAGIC or version != VERSION or size not in PAGE_SIZES or checksum != _fnv1a(body):
        return None
    return transaction, size, root


def _fnv1a(data: memoryview) -> int:
    value = _FNV_BASIS
    for byte in data:
        value = (value ^ byte) * _FNV_PRIME & _MASK
    return value


def _head(page: memoryview) -> tuple[int, int]:
    if len(page) < _PAGE.size:
        raise DataLoss("bolt: page is cut short")
    _, flags, count, _ = _PAGE.unpack_from(page)
    if _PAGE.size + count * _LEAF.size > len(page):
        raise DataLoss("bolt: page has more entries than it holds")
    return flags, count


def _entry(page: memoryview, index: int) -> tuple[int, bytes, memoryview]:
    """Flags, key and value of a leaf's entry."""
    place = _PAGE.size + index * _LEAF.size
    flags, offset, key_size, value_size = _LEAF.unpack_from(page, place)
    start = place + offset
    middle, end = start + key_size, start + key_size + value_size
    if end > len(page):
        raise DataLoss("bolt: entry reaches over its page")
    return flags, bytes(page[start:middle]), page[middle:end]


def _leaf_key(page: memoryview, index: int) -> bytes:
    return _entry(page, index)[1]


def _branch(page: memoryview, index: int) -> tuple[bytes, int]:
    """The first key and the page of a branch's child."""
    place = _PAGE.size + index * _BRANCH.size
    offset, key_size, child = _BRANCH.unpack_from(page, place)
    start = place + offset
    if start + key_size > len(page):
        raise DataLoss("bolt: entry reaches over its page")
    return bytes(page[start : start + key_size]), child


def _branch_key(page: memoryview, index: int) -> bytes:
    return _branch(page, index)[0]


def _search(page: memoryview, count: int, key: bytes, key_of: KeyOf, *, exact: bool) -> int:
    """The last entry whose key is not above ``key``, -1 for none; ``exact``: equal to it."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if key_of(page, middle) <= key:
            low = middle + 1
        else:
            high = middle
    if exact and (not low or key_of(page, low - 1) != key):
        return -1
    return low - 1


def text(key: bytes) -> str:
    """A name in a database; raises DataLoss where it is no text."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise DataLoss(f"bolt: name {key[:40]!r} is no text") from None


if TYPE_CHECKING:
    from collections.abc import Callable

    KeyOf = Callable[[memoryview, int], bytes]
