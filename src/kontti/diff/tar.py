"""Reads tar archives as a stream: chunks of bytes in, entries out, nothing else kept.

ustar, pax (local and global records), GNU long names, base-256 numbers and sparse files are read.
Every size that an archive can choose is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from zlib import adler32

from kontti.diff.pax import (
    SECOND,
    XATTR_PREFIX,
    decimal,
    invalid,
    nanoseconds,
    number,
    parse_records,
    shown,
)
from kontti.diff.sparse import Sparse, old_map, pax_map
from kontti.errors import InvalidArgument

BLOCK = 512
MAX_EXTENSION = 1 << 20
MAX_NAME = 4096
# of a whiteout for a name of 255; what is too long as a file the file system refuses
MAX_COMPONENT = 255 + len(".wh.")
MAX_SIZE = (1 << 63) - 1
# -1 as an unsigned id would mean "leave it" to chown(2)
MAX_ID = (1 << 32) - 2
MAX_DEVICE = (1 << 32) - 1

REGULAR, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO = (
    b"0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
)

_OLD_REGULAR, _CONTIGUOUS = b"\0", b"7"
_EXTENSIONS = frozenset((b"x", b"g", b"L", b"K"))
_SPARSE = b"S"
_SPARSE_RECORDS = b"GNU.sparse."
_HEADER = Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x").unpack
_ZERO = bytes(BLOCK)


class Entry:
    """One member of an archive. Names are bytes as found; times are in nanoseconds.

    ``size`` is what is stored, of a file that is ``sparse`` too.
    """

    __slots__ = (
        "device", "gid", "kind", "link", "mode", "mtime", "name", "size", "sparse", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, kind: bytes, name: bytes) -> None:
        self.kind = kind
        self.name = name
        self.link = b""
        self.mode = 0
        self.uid = 0
        self.gid = 0
        self.size = 0
        self.mtime = 0
        self.device = (0, 0)
        self.xattrs: dict[bytes, bytes] | None = None
        self.sparse: Sparse | None = None


class Source:
    """Bytes asked for by count, out of chunks that come as they come."""

    __slots__ = ("_before", "_buffer", "_chunks", "_position")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = b""
        self._position = 0
        self._before = 0

    @property
    def position(self) -> int:
        """How many bytes were taken."""
        return self._before + self._position

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes, or fewer where the stream ends."""
        start = self._position
        end = start + count
        while end > len(self._buffer):
            chunk = next(self._chunks, None)
            if chunk is None:
                end = len(self._buffer)
                break
            self._before += start
            self._buffer = self._buffer[start:] + chunk
            start, end = 0, count
        self._position = end
        return self._buffer[start:end]

    def view(self, most: int) -> memoryview:
        """Some of the next ``most`` bytes, not copied; raises InvalidArgument at the end."""
        if self._position == len(self._buffer) and not self._refill():
            raise InvalidArgument("unexpected EOF in tar entry")
        end = min(len(self._buffer), self._position + most)
        view = memoryview(self._buffer)[self._position : end]
        self._position = end
        return view

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes; raises InvalidArgument where the stream ends before."""
        while (there := len(self._buffer) - self._position) < count:
            count -= there
            self._position += there
            if not self._refill():
                raise InvalidArgument("unexpected EOF in tar entry")
        self._position += count

    def drain(self) -> None:
        """Read to the end of the stream."""
        while self._refill():
            pass

    def _refill(self) -> bool:
        chunk = next(self._chunks, None)
        self._before += len(self._buffer)
        self._buffer, self._position = chunk or b"", 0
        return chunk is not None


class TarReader:
    """Iterates over the entries of an archive; data that is not read is passed over."""

    __slots__ = ("_global", "_left", "_link", "_local", "_name", "_pad", "_source")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._source = Source(chunks)
        self._global: dict[bytes, bytes] = {}
        self._local: dict[bytes, bytes] = {}
        self._name: bytes | None = None
        self._link: bytes | None = None
        self._left = 0
        self._pad = 0

    def __iter__(self) -> Iterator[Entry]:
        """Entries in order; raises InvalidArgument when malformed."""
        while block := self._next_header():
            entry = self._parse(block)
            if entry is not None:
                self._left, self._pad = entry.size, -entry.size % BLOCK
                yield entry

    @property
    def position(self) -> int:
        """How far the archive was read: where the current entry's data is, before it is read."""
        return self._source.position

    def data(self) -> Iterator[memoryview]:
        """The current entry's data, as far as it was not read."""
        while self._left:
            view = self._source.view(self._left)
            self._left -= len(view)
            yield view

    def drain(self) -> None:
        """Read what follows the archive, so that the whole stream is hashed."""
        self._source.drain()

    def _next_header(self) -> bytes:
        if self._left:
            self._source.skip(self._left)
            self._left = 0
        if self._pad:
            self._source.take(self._pad)
        block = self._source.take(BLOCK)
        if not block or block == _ZERO:
            self._check_end()
            return b""
        if len(block) < BLOCK:
            raise InvalidArgument("unexpected EOF in tar header")
        return block

    def _check_end(self) -> None:
        # writers that leave out the second zero block, or both, are put up with
        if self._source.take(BLOCK).strip(b"\0"):
            raise invalid("one zero block and then data")

    def _parse(self, block: bytes) -> Entry | None:
        (
            name,
            mode,
            uid,
            gid,
            size,
            mtime,
            checksum,
            kind,
            link,
            magic,
            _,
            _,
            major,
            minor,
            prefix,
        ) = _HEADER(block)
        _verify(block, checksum)
        if kind in _EXTENSIONS:
            self._extend(kind, number(size))
            return None
        name = name.partition(b"\0")[0]
        if prefix[0] and magic.startswith(b"ustar\0"):
            name = prefix.partition(b"\0")[0] + b"/" + name
        entry = Entry(_kind(kind, name), name)
        entry.link = link.partition(b"\0")[0]
        entry.mode = number(mode) & 0o7777
        entry.uid, entry.gid = number(uid), number(gid)
        entry.size, entry.mtime = number(size), number(mtime) * SECOND
        if kind in (CHAR, BLOCKDEV):
            entry.device = (number(major), number(minor))
        self._apply_extensions(entry)
        if kind == _SPARSE:
            entry.sparse = old_map(block, self._take_block)
        _check(entry)
        if entry.sparse is not None:
            entry.sparse.check(entry.size, entry.name)
        return entry

    def _extend(self, kind: bytes, size: int) -> None:
        if not 0 <= size <= MAX_EXTENSION:
            raise invalid(f"extended header of {size} bytes")
        data = self._source.take(size)
        if len(data) < size:
            raise InvalidArgument("unexpected EOF in tar header")
        self._pad = -size % BLOCK
        if kind == b"x":
            self._local = parse_records(data)
        elif kind == b"g":
            self._extend_all(data)
        elif kind == b"L":
            self._name = data.partition(b"\0")[0]
        else:
            self._link = data.partition(b"\0")[0]

    def _apply_extensions(self, entry: Entry) -> None:
        if self._name is not None:
            entry.name, self._name = self._name, None
        if self._link is not None:
            entry.link, self._link = self._link, None
        if self._local or self._global:
            records = {**self._global, **self._local}
            _override(entry, records)
            self._local = {}
            if any(keyword.startswith(_SPARSE_RECORDS) for keyword in records):
                self._take_map(entry, records)

    def _extend_all(self, data: bytes) -> None:
        self._global.update(parse_records(data))
        if sum(len(k) + len(v) for k, v in self._global.items()) > MAX_EXTENSION:
            raise invalid("global extended headers are too long")

    def _take_map(self, entry: Entry, records: dict[bytes, bytes]) -> None:
        if entry.kind != REGULAR:
            raise invalid(f"sparse records of {shown(entry.name)}, which is no file")
        entry.name = records.get(_SPARSE_RECORDS + b"name", entry.name)
        entry.sparse, taken = pax_map(records, self._take_block)
        entry.size -= taken

    def _take_block(self) -> bytes:
        block = self._source.take(BLOCK)
        if len(block) < BLOCK:
            raise InvalidArgument("unexpected EOF in tar header")
        return block


def _verify(block: bytes, checksum: bytes) -> None:
    # adler32's low half is 1 + the sum of all bytes modulo 65521, at a tenth of sum()'s cost
    wanted = number(checksum) - 8 * 0x20 + sum(checksum)
    if (adler32(block) & 0xFFFF) == (wanted + 1) % 65521:
        return
    # some old writers summed signed chars
    signed = sum(b - 256 if b > 127 else b for b in block[:148] + b"        " + block[156:])
    if signed != number(checksum):
        raise invalid("checksum differs")


def _kind(kind: bytes, name: bytes) -> bytes:
    if kind == _OLD_REGULAR:
        return DIRECTORY if name.endswith(b"/") else REGULAR
    if kind in (_CONTIGUOUS, _SPARSE):
        return REGULAR
    if not REGULAR <= kind <= FIFO:
        raise InvalidArgument(f"unhandled tar header type {kind[0]} of {shown(name)}")
    return kind


def _override(entry: Entry, records: dict[bytes, bytes]) -> None:
    for keyword, value in records.items():
        if keyword.startswith(XATTR_PREFIX):
            _add_xattr(entry, keyword[len(XATTR_PREFIX) :], value)
        elif value:
            _override_field(entry, keyword, value)


def _override_field(entry: Entry, keyword: bytes, value: bytes) -> None:
    if keyword == b"path":
        entry.name = value
    elif keyword == b"linkpath":
        entry.link = value
    elif keyword == b"mtime":
        entry.mtime = nanoseconds(value)
    elif keyword == b"size":
        entry.size = decimal(value)
    elif keyword == b"uid":
        entry.uid = decimal(value)
    elif keyword == b"gid":
        entry.gid = decimal(value)


def _add_xattr(entry: Entry, name: bytes, value: bytes) -> None:
    if not name or len(name) > MAX_COMPONENT or b"\0" in name:
        raise invalid(f"xattr name {shown(name)} of {shown(entry.name)}")
    if entry.xattrs is None:
        entry.xattrs = {}
    entry.xattrs[name] = value


def _check(entry: Entry) -> None:
    if entry.kind != REGULAR:
        # sizes of links and directories count nothing that follows (POSIX ustar)
        entry.size = 0
    if not 0 <= entry.size <= MAX_SIZE:
        raise invalid(f"size {entry.size} of {shown(entry.name)}")
    if not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
        raise invalid(f"owner {entry.uid}:{entry.gid} of {shown(entry.name)}")
    if not (0 <= entry.device[0] <= MAX_DEVICE and 0 <= entry.device[1] <= MAX_DEVICE):
        raise invalid(f"device number of {shown(entry.name)}")
    if len(entry.name) > MAX_COMPONENT:
        _check_name(entry.name)
    if len(entry.link) >= MAX_NAME:
        raise InvalidArgument(f"link target of {shown(entry.name)}: file name too long")
    if b"\0" in entry.name or b"\0" in entry.link:
        raise invalid(f"NUL in name {shown(entry.name)}")


def _check_name(name: bytes) -> None:
    if len(name) >= MAX_NAME or max(map(len, name.split(b"/"))) > MAX_COMPONENT:
        raise InvalidArgument(f"{shown(name)}…: file name too long")
