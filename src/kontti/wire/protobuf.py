"""A small protobuf codec (proto3) whose messages are declared as tables.

For processes that must start quickly and stay small: the shim and ctr. A message class lists its
``FIELDS`` as ``(number, name, kind)``; the classes themselves are generated from ``proto/``.
Wire format: https://protobuf.dev/programming-guides/encoding/. Malformed input raises
InvalidArgument and nothing else; unknown fields are skipped.
"""

from __future__ import annotations

from kontti.wire.primitives import (
    LENGTH,
    MAX_DEPTH,
    Malformed,
    put_varint,
    skip,
    take_length,
    take_varint,
)
from kontti.wire.scalars import (
    BOOL,
    BYTES,
    DOUBLE,
    ENUM,
    FIXED_32,
    FIXED_64,
    FLOAT,
    INT32,
    INT64,
    SFIXED_32,
    SFIXED_64,
    SINT32,
    SINT64,
    STRING,
    UINT32,
    UINT64,
    Kind,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self

    Value = Any  # a field's value: what its kind says
    Data = bytes

__all__ = [
    "BOOL",
    "BYTES",
    "DOUBLE",
    "ENUM",
    "FIXED_32",
    "FIXED_64",
    "FLOAT",
    "INT32",
    "INT64",
    "SFIXED_32",
    "SFIXED_64",
    "SINT32",
    "SINT64",
    "STRING",
    "UINT32",
    "UINT64",
    "Kind",
    "Malformed",
    "Message",
    "map_of",
    "optional",
    "repeated",
]


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
