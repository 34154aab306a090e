"""Fields of tar headers: numbers and pax records (POSIX.1-2017 pax; GNU base-256)."""

from __future__ import annotations

from functools import lru_cache

from kontti.errors import InvalidArgument

XATTR_PREFIX = b"SCHILY.xattr."
SPARSE_MAP = b"GNU.sparse.map"
SECOND = 10**9

# version 0.0 of sparse files repeats these, in pairs
_SPARSE_PARTS = frozenset((b"GNU.sparse.offset", b"GNU.sparse.numbytes"))


def invalid(what: str) -> InvalidArgument:
    """The error for a malformed archive."""
    return InvalidArgument(f"archive/tar: invalid tar header: {what}")


def shown(name: bytes) -> str:
    """A name as an error tells of it: quoted, and not without end."""
    return repr(name[:200].decode(errors="surrogateescape"))


# headers of one layer repeat their modes, owners and times
@lru_cache(maxsize=4096)
def number(field: bytes) -> int:
    """The value of a numeric header field: octal, or base-256 where its first bit is set."""
    if field[0] & 0x80:
        return _base256(field)
    digits = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    if not digits:
        return 0
    # isdigit first: int() would take signs, underscores and prefixes
    if not digits.isdigit():
        raise invalid(f"number {shown(field)}")
    try:
        return int(digits, 8)
    except ValueError:
        raise invalid(f"number {shown(field)}") from None


def _base256(field: bytes) -> int:
    bits = 8 * len(field) - 1
    value = int.from_bytes(field, "big") & ((1 << bits) - 1)
    return value - (1 << bits) if value >> (bits - 1) else value


def decimal(text: bytes) -> int:
    """A non-negative decimal pax value."""
    if not text.isdigit() or len(text) > 20:
        raise invalid(f"number {shown(text)}")
    return int(text)


def nanoseconds(text: bytes) -> int:
    """A pax time (seconds with an optional fraction) in nanoseconds."""
    negative = text.startswith(b"-")
    whole, dot, fraction = text.removeprefix(b"-").partition(b".")
    if len(whole) > 20 or not whole.isdigit() or (dot and fraction and not fraction.isdigit()):
        raise invalid(f"time {shown(text)}")
    value = int(whole) * SECOND + int((fraction + b"000000000")[:9])
    return -value if negative else value


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax extended header; the last of a key wins.

    A sparse file's parts, each in records of its own, come as one map.
    """
    records: dict[bytes, bytes] = {}
    parts: list[bytes] = []
    position = 0
    while position < len(data):
        length, keyword, value = _record(data, position)
        if keyword in _SPARSE_PARTS:
            parts.append(value)
        records[keyword] = value
        position += length
    if parts:
        records[SPARSE_MAP] = b",".join(parts)
    return records


def _record(data: bytes, start: int) -> tuple[int, bytes, bytes]:
    space = data.find(b" ", start, start + 12)
    if space < 0 or not data[start:space].isdigit():
        raise invalid("pax record length")
    length = int(data[start:space])
    end = start + length
    if end > len(data) or end < space + 2 or data[end - 1] != 0x0A:
        raise invalid("pax record length")
    keyword, equals, value = data[space + 1 : end - 1].partition(b"=")
    if not equals or not keyword:
        raise invalid("pax record without a value")
    return length, keyword, value


def format_record(keyword: bytes, value: bytes) -> bytes:
    """One pax record; its length counts its own digits."""
    body = b" " + keyword + b"=" + value + b"\n"
    size = len(body) + len(str(len(body)))
    if len(str(size)) + len(body) != size:
        size += 1
    return b"%d" % size + body
