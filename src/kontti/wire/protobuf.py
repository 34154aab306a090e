"""A small protobuf codec (proto3) whose messages are declared as tables.

For processes that must start quickly and stay small: the shim and ctr. A message class lists its
``FIELDS`` as ``(number, name, kind)``; the classes themselves are generated from ``proto/``.
Wire format: https://protobuf.dev/programming-guides/encoding/. Malformed input raises
InvalidArgument and nothing else; unknown fields are skipped.
"""

from __future__ import annotations

import struct

from kontti.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self

    Value = Any  # a field's value: what its kind says
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


class _Nested(Kind):
    __slots__ = ("_cls",)
    wire = LENGTH

    def __init__(self, cls: type[Message]) -> None:
        self._cls = cls

    def default(self) -> Value:
        return None

    def put(self, out: bytearray, number: int, value: Value) -> None:
        if value is not None:
            put_varint(out, number << 3 | LENGTH)
            self.put_value(out, value)

    def put_value(self, out: bytearray, value: Value) -> None:
        encoded = value.encode()
        put_varint(out, len(encoded))
        out += encoded

    def take(self, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        return self.merge(None, data, pos, end, depth)

    def merge(self, old: Value, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        start, after = take_length(data, pos, end)
        target = self._cls() if old is None else old
        _fill(target, data, start, after, depth + 1)
        return target, after


class _Optional(Kind):
    """A field with presence: None where it is absent."""

    __slots__ = ("_kind", "wire")

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.wire = kind.wire

    def default(self) -> Value:
        return None

    def put(self, out: bytearray, number: int, value: Value) -> None:
        if value is not None:
            put_varint(out, number << 3 | self.wire)
            self._kind.put_value(out, value)

    def take(self, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        return self._kind.take(data, pos, end, depth)

    def merge(self, old: Value, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        return self._kind.merge(old, data, pos, end, depth)


class _Repeated(Kind):
    """A list: scalars are written packed, and read packed or not."""

    __slots__ = ("item", "wire")

    def __init__(self, kind: Kind) -> None:
        self.item = kind
        self.wire = kind.wire

    def default(self) -> Value:
        return []

    def put(self, out: bytearray, number: int, value: Value) -> None:
        if not value:
            return
        if self.wire == LENGTH:
            for item in value:
                put_varint(out, number << 3 | LENGTH)
                self.item.put_value(out, item)
            return
        packed = bytearray()
        for item in value:
            self.item.put_value(packed, item)
        put_varint(out, number << 3 | LENGTH)
        put_varint(out, len(packed))
        out += packed

    def merge(self, old: Value, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        value, pos = self.item.take(data, pos, end, depth)
        old.append(value)
        return old, pos

    def merge_packed(self, old: Value, data: Data, pos: int, end: int, depth: int) -> int:
        """Append the items of a packed field; gives the position after it."""
        start, after = take_length(data, pos, end)
        while start < after:
            value, start = self.item.take(data, start, after, depth)
            old.append(value)
        return after


class _Map(Kind):
    """A mapping: on the wire a list of messages with key 1 and value 2."""

    __slots__ = ("_key", "_value")
    wire = LENGTH

    def __init__(self, key: Kind, value: Kind) -> None:
        self._key = key
        self._value = value

    def default(self) -> Value:
        return {}

    def put(self, out: bytearray, number: int, value: Value) -> None:
        for key, item in value.items():
            entry = bytearray()
            self._put_entry(entry, 1, self._key, key)
            self._put_entry(entry, 2, self._value, item)
            put_varint(out, number << 3 | LENGTH)
            put_varint(out, len(entry))
            out += entry

    @staticmethod
    def _put_entry(out: bytearray, number: int, kind: Kind, value: Value) -> None:
        put_varint(out, number << 3 | kind.wire)
        kind.put_value(out, value)

    def merge(self, old: Value, data: Data, pos: int, end: int, depth: int) -> tuple[Value, int]:
        start, after = take_length(data, pos, end)
        if depth + 1 > MAX_DEPTH:
            raise Malformed("nested too deeply")
        key, value = self._key.default(), self._value.default()
        while start < after:
            tag, start = take_varint(data, start, after)
            if tag == 8 | self._key.wire:
                key, start = self._key.take(data, start, after, depth + 1)
            elif tag == 16 | self._value.wire:
                value, start = self._value.merge(value, data, start, after, depth + 1)
            else:
                start = skip(data, start, after, tag, depth + 1)
        if value is None and isinstance(self._value, _Nested):
            value, _ = self._value.take(b"\0", 0, 1, depth)
        old[key] = value
        return old, after


INT32, INT64 = _Signed(32), _Signed(64)
UINT32, UINT64 = _Unsigned(32), _Unsigned(64)
SINT32, SINT64 = _ZigZag(32), _ZigZag(64)
FIXED_32, FIXED_64 = _Fixed("<I"), _Fixed("<Q")
SFIXED_32, SFIXED_64 = _Fixed("<i"), _Fixed("<q")
FLOAT, DOUBLE = _Fixed("<f"), _Fixed("<d")
BOOL, STRING, BYTES, ENUM = _Bool(), _String(), _Bytes(), INT32


def repeated(kind: Kind | type[Message]) -> Kind:
    """A list of ``kind``."""
    return _Repeated(_kind(kind))


def map_of(key: Kind, value: Kind | type[Message]) -> Kind:
    """A mapping of ``key`` to ``value``."""
    return _Map(key, _kind(value))


def optional(kind: Kind) -> Kind:
    """A scalar with presence."""
    return _Optional(kind)


def _kind(kind: Kind | type[Message]) -> Kind:
    return kind if isinstance(kind, Kind) else _Nested(kind)


class Message:
    """Base of the generated classes. ``NAME`` is the full protobuf name."""

    __slots__ = ()
    NAME: ClassVar[str] = ""
    FIELDS: ClassVar[tuple[tuple[int, str, Kind | type[Message]], ...]] = ()
    _BY_NUMBER: ClassVar[dict[int, tuple[str, Kind]] | None] = None

    def encode(self) -> bytes:
        """The message's bytes; raises InvalidArgument for values out of range."""
        out = bytearray()
        for number, (name, kind) in _table(type(self)).items():
            kind.put(out, number, getattr(self, name))
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Self:
        """The message in ``data``; raises InvalidArgument."""
        message = cls()
        whole = bytes(data)
        _fill(message, whole, 0, len(whole), 0)
        return message

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, n) == getattr(other, n) for _, n, _ in self.FIELDS)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = (f"{n}={getattr(self, n)!r}" for _, n, _ in self.FIELDS if getattr(self, n))
        return f"{type(self).__name__}({', '.join(shown)})"


def _table(cls: type[Message]) -> dict[int, tuple[str, Kind]]:
    table = cls.__dict__.get("_BY_NUMBER")
    if table is None:
        table = {number: (name, _kind(kind)) for number, name, kind in cls.FIELDS}
        cls._BY_NUMBER = table
    return table


def _fill(message: Message, data: Data, pos: int, end: int, depth: int) -> None:
    """Merge the fields in ``data[pos:end]`` into ``message``."""
    if depth > MAX_DEPTH:
        raise Malformed("nested too deeply")
    table = _table(type(message))
    while pos < end:
        tag, pos = take_varint(data, pos, end)
        field = table.get(tag >> 3)
        if field is None:
            pos = skip(data, pos, end, tag, depth)
            continue
        name, kind = field
        old = getattr(message, name)
        if tag & 7 == kind.wire:
            value, pos = kind.merge(old, data, pos, end, depth)
            setattr(message, name, value)
        elif tag & 7 == LENGTH and isinstance(kind, _Repeated):
            pos = kind.merge_packed(old, data, pos, end, depth)
        else:
            pos = skip(data, pos, end, tag, depth)


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
