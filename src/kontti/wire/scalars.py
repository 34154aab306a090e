"""Kinds of protobuf fields that hold one plain value: how each is written and read."""

from __future__ import annotations

import struct

from kontti.wire.primitives import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    Malformed,
    put_varint,
    take_length,
    take_varint,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Value = Any  # a field's value: what its kind says
    Data = bytes

_MASK64 = (1 << 64) - 1


class Kind:
    """How a field's value is written and read. ``wire`` is its wire type."""

    __slots__ = ()
    wire = VARINT

    def default(self) -> Value:
        """The value of an absent field."""
        return 0

    def put(self, out: bytearray, number: int, value: Value) -> None:
        """Append tag and value, unless the value is the default."""
        if value:
            put_varint(out, number << 3 | self.wire)
            self.put_value(out, value)

    def put_value(self, out: bytearray, value: Value) -> None:
        """Append the value alone."""
        put_varint(out, value)

    def take(self, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        """The value at ``pos`` and the position after it."""
        return take_varint(data, pos, end)

    def merge(self, old: Value, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        """The field's value after one more occurrence of it."""
        return self.take(data, pos, end, depth)


class _Unsigned(Kind):
    __slots__ = ("_mask",)

    def __init__(self, bits: int) -> None:
        self._mask = (1 << bits) - 1

    def put_value(self, out: bytearray, value: Value) -> None:
        if not 0 <= value <= self._mask:
            raise Malformed(f"{value} is out of range")
        put_varint(out, value)

    def take(self, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        value, pos = take_varint(data, pos, end)
        return value & self._mask, pos


class _Signed(Kind):
    __slots__ = ("_bits",)

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def put_value(self, out: bytearray, value: Value) -> None:
        limit = 1 << (self._bits - 1)
        if not -limit <= value < limit:
            raise Malformed(f"{value} is out of range")
        put_varint(out, value & _MASK64)

    def take(self, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        value, pos = take_varint(data, pos, end)
        return _signed(value, self._bits), pos


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


class _ZigZag(Kind):
    __slots__ = ("_bits",)

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def put_value(self, out: bytearray, value: Value) -> None:
        put_varint(out, (value << 1 ^ value >> 63) & _MASK64)

    def take(self, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        value, pos = take_varint(data, pos, end)
        value &= (1 << self._bits) - 1
        return value >> 1 ^ -(value & 1), pos


class _Bool(Kind):
    __slots__ = ()

    def default(self) -> Value:
        return False

    def put_value(self, out: bytearray, value: Value) -> None:
        out.append(1 if value else 0)

    def take(self, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        value, pos = take_varint(data, pos, end)
        return value != 0, pos


class _Fixed(Kind):
    __slots__ = ("_struct", "wire")

    def __init__(self, form: str) -> None:
        self._struct = struct.Struct(form)
        self.wire = FIXED64 if self._struct.size == 8 else FIXED32

    def default(self) -> Value:
        return 0.0 if self._struct.format[-1:] in ("d", "f") else 0

    def put(self, out: bytearray, number: int, value: Value) -> None:
        # minus zero is not the default: it has bits of its own
        if value or str(value) == "-0.0":
            put_varint(out, number << 3 | self.wire)
            self.put_value(out, value)

    def put_value(self, out: bytearray, value: Value) -> None:
        try:
            out += self._struct.pack(value)
        except (struct.error, OverflowError) as error:
            raise Malformed(str(error)) from None

    def take(self, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        after = pos + self._struct.size
        if after > end:
            raise Malformed("truncated fixed-size field")
        return self._struct.unpack_from(data, pos)[0], after


class _String(Kind):
    __slots__ = ()
    wire = LENGTH

    def default(self) -> Value:
        return ""

    def put_value(self, out: bytearray, value: Value) -> None:
        try:
            encoded = value.encode()
        except UnicodeEncodeError as error:
            raise Malformed(f"string is not valid Unicode: {error.reason}") from None
        put_varint(out, len(encoded))
        out += encoded

    def take(self, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        start, after = take_length(data, pos, end)
        try:
            return data[start:after].decode(), after
        except UnicodeDecodeError:
            raise Malformed("string is not valid UTF-8") from None


class _Bytes(Kind):
    __slots__ = ()
    wire = LENGTH

    def default(self) -> Value:
        return b""

    def put_value(self, out: bytearray, value: Value) -> None:
        put_varint(out, len(value))
        out += value

    def take(self, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        start, after = take_length(data, pos, end)
        return data[start:after], after


INT32, INT64 = _Signed(32), _Signed(64)
UINT32, UINT64 = _Unsigned(32), _Unsigned(64)
SINT32, SINT64 = _ZigZag(32), _ZigZag(64)
FIXED_32, FIXED_64 = _Fixed("<I"), _Fixed("<Q")
SFIXED_32, SFIXED_64 = _Fixed("<i"), _Fixed("<q")
FLOAT, DOUBLE = _Fixed("<f"), _Fixed("<d")
BOOL, STRING, BYTES, ENUM = _Bool(), _String(), _Bytes(), INT32
