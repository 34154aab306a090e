"""Tables to values: by the types of a dataclass's fields, whose names are the keys."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import TypeVar

from kontti.config.document import Table
from kontti.config.duration import Duration, parse_duration
from kontti.errors import InvalidArgument

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
# fields with this in their metadata are not keys
DERIVED: Mapping[str, bool] = {"derived": True}
_NAMES = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}


class Decoder:
    """Decodes what one file says. ``warnings`` gathers the keys that mean nothing."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.warnings: list[str] = []

    def decode(self, kind: type[T], table: Table, where: str = "") -> T:
        """A ``kind`` of ``table``; raises InvalidArgument naming the file and the key."""
        hints = _hints(kind)
        given: dict[str, object] = {}
        for key, value in table.items():
            name = f"{where}.{key}" if where else key
            if key in hints:
                given[key] = self._value(value, hints[key], name)
            else:
                self.warnings.append(f"config {self.path}: ignoring unknown key {name}")
        try:
            return kind(**given)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"failed to load TOML from {self.path}: {where}: {error.message}"
            ) from error

    def _value(self, value: object, hint: object, name: str) -> object:
        if hint is object:
            return value
        if hint is Duration:
            return self._duration(value, name)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is types.UnionType:
            # with None, which stands for a key that is not given
            return self._value(value, arguments[0], name)
        if origin is tuple:
            items = self._expect(value, list, name, "a list")
            return tuple(self._value(v, arguments[0], f"{name}[{i}]") for i, v in enumerate(items))
        if origin is Mapping:
            table = self._expect(value, dict, name, "a table")
            entries = {k: self._value(v, arguments[1], f"{name}.{k}") for k, v in table.items()}
            return types.MappingProxyType(entries)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self.decode(hint, self._expect(value, dict, name, "a table"), name)
        return self._scalar(value, hint, name)

    def _scalar(self, value: object, hint: object, name: str) -> object:
        if hint is float and type(value) is int:
            return float(value)
        # bool is an int to Python, but not here
        if type(value) is not hint:
            raise self._wrong(name, _NAMES[typing.cast("type", hint)])
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise self._wrong(name, "a 64-bit number")
        return value

    def _duration(self, value: object, name: str) -> Duration:
        if not isinstance(value, str):
            raise self._wrong(name, "a duration")
        try:
            return parse_duration(value)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"failed to load TOML from {self.path}: {name}: {error.message}"
            ) from error

    def _expect(self, value: object, kind: type[T], name: str, wanted: str) -> T:
        if not isinstance(value, kind):
            raise self._wrong(name, wanted)
        return value

    def _wrong(self, name: str, wanted: str) -> InvalidArgument:
        return InvalidArgument(f"failed to load TOML from {self.path}: {name}: expected {wanted}")


def _hints(kind: type) -> Mapping[str, object]:
    hints = typing.get_type_hints(kind)
    return {key: hints[key] for key in _keys(kind)}


def _keys(kind: object) -> list[str]:
    """The names of a dataclass's fields that are keys."""
    fields = dataclasses.fields(typing.cast("type[DataclassInstance]", kind))
    return [one.name for one in fields if "derived" not in one.metadata]


def encode(value: object) -> object:
    """What ``value`` is in a table: the inverse of decoding."""
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        fields = {name: getattr(value, name) for name in _keys(value)}
        return {name: encode(field) for name, field in fields.items() if field is not None}
    return value
