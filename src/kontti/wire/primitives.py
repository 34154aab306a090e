"""The wire format's own parts: tags, varints, lengths, and passing over what is unknown.

https://protobuf.dev/programming-guides/encoding/. Malformed input raises Malformed.
"""

from __future__ import annotations

from kontti.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    Data = bytes

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 100
_MASK64 = (1 << 64) - 1


class Malformed(InvalidArgument):
    """Bytes that are not a message of the wanted type."""


def put_varint(out: bytearray, value: int) -> None:
    """Append ``value`` (unsigned, up to 64 bits) as a varint."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def take_varint(data: Data, pos: int, end: int) -> tuple[int, int]:
    """The varint at ``pos`` and the position after it; raises Malformed."""
    result = shift = 0
    while True:
        if pos >= end:
            raise Malformed("truncated varint")
        byte = data[pos]
        pos += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift == 63 and byte > 1:
                raise Malformed("varint overflows 64 bits")
            return result, pos
        shift += 7
        if shift > 63:
            raise Malformed("varint is too long")


def take_length(data: Data, pos: int, end: int) -> tuple[int, int]:
    """Start and end of the length-delimited field at ``pos``; raises Malformed."""
    size, pos = take_varint(data, pos, end)
    if size > end - pos:
        raise Malformed("truncated field")
    return pos, pos + size


def skip(data: Data, pos: int, end: int, tag: int, depth: int) -> int:
    """The position after an unknown field's value; raises Malformed."""
    wire = tag & 7
    if tag >> 3 == 0 or tag >> 3 > 0x1FFFFFFF:
        raise Malformed(f"field number {tag >> 3} is out of range")
    if wire == VARINT:
        return take_varint(data, pos, end)[1]
    if wire == LENGTH:
        return take_length(data, pos, end)[1]
    if wire == 3:
        return _skip_group(data, pos, end, tag >> 3, depth)
    if wire not in (FIXED32, FIXED64):
        raise Malformed(f"wire type {wire} is not known")
    after = pos + (8 if wire == FIXED64 else 4)
    if after > end:
        raise Malformed("truncated fixed-size field")
    return after


def _skip_group(data: Data, pos: int, end: int, number: int, depth: int) -> int:
    if depth > MAX_DEPTH:
        raise Malformed("nested too deeply")
    while True:
        tag, pos = take_varint(data, pos, end)
        if tag & 7 == 4:
            if tag >> 3 != number:
                raise Malformed("group ends as another")
            return pos
        pos = skip(data, pos, end, tag, depth + 1)
