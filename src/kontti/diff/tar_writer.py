"""Entries to tar bytes: ustar, with pax for what that cannot say. Same entry, same bytes."""

from __future__ import annotations

from functools import lru_cache
from zlib import adler32

from kontti.diff.pax import SECOND, XATTR_PREFIX, format_record
from kontti.diff.tar import BLOCK, BLOCKDEV, CHAR, Entry

ARCHIVE_END = bytes(2 * BLOCK)

_MAX_OCTAL_ID = 0o7777777
_MAX_OCTAL_SIZE = 0o77777777777
_CHECKSUM = slice(148, 156)


def padding(size: int) -> bytes:
    """What follows ``size`` bytes of data."""
    return bytes(-size % BLOCK)


def header(entry: Entry) -> bytes:
    """All that goes before an entry's data."""
    records = _records(entry)
    if not records:
        return _block(entry)
    data = b"".join(format_record(k, v) for k, v in sorted(records.items()))
    extension = Entry(
        b"x", b"PaxHeaders.0/" + _ascii(entry.name.rstrip(b"/").rpartition(b"/")[2])[:80]
    )
    extension.mode, extension.size = 0o644, len(data)
    return _block(extension) + data + padding(len(data)) + _block(entry)


def _records(entry: Entry) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    if len(entry.name) > 100 or not entry.name.isascii():
        records[b"path"] = entry.name
    if len(entry.link) > 100 or not entry.link.isascii():
        records[b"linkpath"] = entry.link
    if entry.size > _MAX_OCTAL_SIZE:
        records[b"size"] = b"%d" % entry.size
    if entry.mtime % SECOND or not 0 <= entry.mtime // SECOND <= _MAX_OCTAL_SIZE:
        records[b"mtime"] = _time(entry.mtime)
    if entry.uid > _MAX_OCTAL_ID:
        records[b"uid"] = b"%d" % entry.uid
    if entry.gid > _MAX_OCTAL_ID:
        records[b"gid"] = b"%d" % entry.gid
    for name, value in (entry.xattrs or {}).items():
        records[XATTR_PREFIX + name] = value
    return records


def _time(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, fraction = divmod(abs(nanoseconds), SECOND)
    tail = (b".%09d" % fraction).rstrip(b"0") if fraction else b""
    return sign + b"%d" % seconds + tail


def _ascii(name: bytes) -> bytes:
    if name.isascii():
        return name
    return bytes(b if b < 128 else 0x5F for b in name)


def _sum(block: bytes | bytearray) -> int:
    # adler32's low half is 1 + the sum of all bytes modulo 65521, which 256 bytes do not reach
    return (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2


# headers of one layer repeat their modes, owners and times
@lru_cache(maxsize=4096)
def _octal(value: int, width: int, most: int) -> bytes:
    return b"%0*o\0" % (width - 1, value if 0 <= value <= most else 0)


def _block(entry: Entry) -> bytes:
    device = entry.kind in (CHAR, BLOCKDEV)
    block = bytearray(
        b"".join(
            (
                _ascii(entry.name[:100]).ljust(100, b"\0"),
                _octal(entry.mode, 8, 0o7777777),
                _octal(entry.uid, 8, _MAX_OCTAL_ID),
                _octal(entry.gid, 8, _MAX_OCTAL_ID),
                _octal(entry.size, 12, _MAX_OCTAL_SIZE),
                _octal(entry.mtime // SECOND, 12, _MAX_OCTAL_SIZE),
                b"        ",
                entry.kind,
                _ascii(entry.link[:100]).ljust(100, b"\0"),
                b"ustar\x0000",
                bytes(64),
                _octal(entry.device[0], 8, _MAX_OCTAL_ID) if device else bytes(8),
                _octal(entry.device[1], 8, _MAX_OCTAL_ID) if device else bytes(8),
                bytes(167),
            )
        )
    )
    block[_CHECKSUM] = b"%06o\0 " % _sum(block)
    return bytes(block)
