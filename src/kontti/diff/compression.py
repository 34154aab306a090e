"""Layers are compressed with gzip, zstd or not at all; streams in, bounded chunks out.

What is compressed decides how much it becomes, so no call here gives more than ``CHUNK`` bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Protocol

from kontti.diff.zstd_frames import FrameTracker
from kontti.errors import InvalidArgument, ResourceExhausted, Unimplemented

try:
    from isal import igzip_lib, isal_zlib

    HAS_ISAL = True
    # its stub takes this class for an instance
    ISAL_ERROR: type[Exception] = igzip_lib.error  # type: ignore[assignment]
except ImportError:  # there is no wheel for every machine
    HAS_ISAL = False

CHUNK = 1 << 20
READ = 1 << 18
GZIP, ZSTD, NONE = "gzip", "zstd", "none"
# what the zstd format asks decoders to support; more is a memory bomb
MAX_WINDOW = 1 << 27

_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"

Read = Callable[[int], bytes]


class Compressor(Protocol):
    """As in zlib: what is fed comes back compressed, at once or later."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def detect(head: bytes) -> str:
    """How a stream that starts with ``head`` is compressed."""
    if head.startswith(_GZIP_MAGIC):
        return GZIP
    if head.startswith(_ZSTD_MAGIC) or (head[1:4] == _SKIPPABLE_MAGIC and head[0] & 0xF0 == 0x50):
        return ZSTD
    return NONE


def decompressed(read: Read, compression: str = "", limit: int = 0) -> Iterator[bytes]:
    """The plain bytes of the stream behind ``read(count)``, in chunks.

    ``compression`` "" goes by the first bytes. Raises InvalidArgument for a damaged or truncated
    stream or one with something behind it, ResourceExhausted past ``limit`` bytes (0: no limit).
    """
    head = read(READ)
    chunks = _decoder(compression or detect(head))(Rewound(head, read).read)
    return _limited(chunks, limit) if limit else chunks


def preload(compression: str) -> None:
    """Import all that ``decompressed`` needs, for a caller about to lose its file system."""
    if compression in ("", ZSTD):
        _zstandard()


class Rewound:
    """A stream of which the first bytes were read already."""

    def __init__(self, head: bytes, read: Read) -> None:
        self._head = head
        self._read = read

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes; none at the end."""
        if self._head:
            part, self._head = self._head[:count], self._head[count:]
            return part
        return self._read(count)


def _decoder(compression: str) -> Callable[[Read], Iterator[bytes]]:
    if compression == GZIP:
        return _gunzip_isal if HAS_ISAL else _gunzip_zlib
    if compression == ZSTD:
        return _unzstd
    if compression == NONE:
        return _plain
    raise Unimplemented(f"compression {compression:.40}")


def _limited(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise ResourceExhausted(f"layer is more than {limit} bytes uncompressed")
        yield chunk


def _plain(read: Read) -> Iterator[bytes]:
    while chunk := read(CHUNK):
        yield chunk


def _gunzip_isal(read: Read) -> Iterator[bytes]:
    data = read(READ)
    while data:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while not member.eof:
            if member.needs_input and not data:
                data = read(READ)
                if not data:
                    raise InvalidArgument("unexpected EOF in gzip stream")
            try:
                chunk = member.decompress(data, CHUNK)
            except ISAL_ERROR as error:
                raise InvalidArgument(f"gzip: {error}") from error
            data = b""
            if chunk:
                yield chunk
        data = member.unused_data or read(READ)


def _gunzip_zlib(read: Read) -> Iterator[bytes]:
    data = read(READ)
    while data:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        while not member.eof:
            data = data or read(READ)
            if not data:
                raise InvalidArgument("unexpected EOF in gzip stream")
            try:
                chunk = member.decompress(data, CHUNK)
            except zlib.error as error:
                raise InvalidArgument(f"gzip: {error}") from error
            data = member.unconsumed_tail
            if chunk:
                yield chunk
        data = member.unused_data or read(READ)


class _Tracked:
    """A file-like reader that follows the frames of what passes."""

    def __init__(self, read: Read, tracker: FrameTracker) -> None:
        self._source = read
        self._tracker = tracker

    def read(self, count: int) -> bytes:
        data = self._source(count)
        self._tracker.feed(data)
        return data


def _unzstd(read: Read) -> Iterator[bytes]:
    zstd = _zstandard()
    tracker = FrameTracker()
    stream = zstd.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(
        _Tracked(read, tracker),
        read_size=READ,
        read_across_frames=True,
    )
    while True:
        try:
            chunk = stream.read(CHUNK)
        except zstd.ZstdError as error:
            raise InvalidArgument(f"zstd: {error}") from error
        if not chunk:
            break
        yield chunk
    # the library takes a stream that stops within a frame for a short one
    if not tracker.complete:
        raise InvalidArgument("unexpected EOF in zstd stream")


def _zstandard() -> ModuleType:
    # costs milliseconds that callers without zstd layers do not pay
    import zstandard

    return zstandard


def compressor(compression: str) -> Compressor:
    """A new compressor whose output depends on its input only; raises Unimplemented for others."""
    if compression == GZIP:
        return _GzipCompressor()
    if compression == ZSTD:
        made: Compressor = _zstandard().ZstdCompressor(level=3).compressobj()
        return made
    if compression == NONE:
        return _Plain()
    raise Unimplemented(f"compression {compression:.40}")


class _GzipCompressor:
    """gzip without a time or name in its header."""

    def __init__(self) -> None:
        # zlib writes the header itself for wbits 31: no name, time 0
        if HAS_ISAL:
            self._inner: Compressor = isal_zlib.compressobj(2, isal_zlib.DEFLATED, 31)
        else:
            self._inner = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)

    def compress(self, data: bytes, /) -> bytes:
        return bytes(self._inner.compress(data))

    def flush(self) -> bytes:
        return bytes(self._inner.flush())


class _Plain:
    """No compression."""

    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""
