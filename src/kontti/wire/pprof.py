"""Profiles as ``go tool pprof`` reads them: gzipped protobuf, functions for addresses.

https://github.com/google/pprof/blob/main/proto/profile.proto
"""

from __future__ import annotations

import gzip

from kontti.wire.protobuf import INT64, STRING, UINT64, Message, repeated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import ClassVar

    Line = tuple[str, str, int]
    """A function, its file, and the line that is executed."""
    Stack = tuple[Line, ...]
    """Lines, the innermost first."""


class ValueType(Message):
    """What a number is, and its unit."""

    FIELDS: ClassVar = ((1, "type", INT64), (2, "unit", INT64))

    def __init__(self, type: int = 0, unit: int = 0) -> None:
        self.type, self.unit = type, unit


class Sample(Message):
    """A stack and its numbers."""

    FIELDS: ClassVar = ((1, "location_id", repeated(UINT64)), (2, "value", repeated(INT64)))

    def __init__(self, location_id: Sequence[int] = (), value: Sequence[int] = ()) -> None:
        self.location_id, self.value = [*location_id], [*value]


class LineOf(Message):
    """A line of a function."""

    FIELDS: ClassVar = ((1, "function_id", UINT64), (2, "line", INT64))

    def __init__(self, function_id: int = 0, line: int = 0) -> None:
        self.function_id, self.line = function_id, line


class Location(Message):
    """A place in a stack."""

    FIELDS: ClassVar = ((1, "id", UINT64), (4, "line", repeated(LineOf)))

    def __init__(self, id: int = 0, line: Sequence[LineOf] = ()) -> None:
        self.id, self.line = id, [*line]


class Function(Message):
    """A function, its strings by number."""

    FIELDS: ClassVar = (
        (1, "id", UINT64),
        (2, "name", INT64),
        (3, "system_name", INT64),
        (4, "filename", INT64),
    )

    def __init__(self, id: int = 0, name: int = 0, system_name: int = 0, filename: int = 0) -> None:
        self.id, self.name, self.system_name, self.filename = id, name, system_name, filename


class Profile(Message):
    """Everything."""

    FIELDS: ClassVar = (
        (1, "sample_type", repeated(ValueType)),
        (2, "sample", repeated(Sample)),
        (4, "location", repeated(Location)),
        (5, "function", repeated(Function)),
        (6, "string_table", repeated(STRING)),
        (9, "time_nanos", INT64),
        (10, "duration_nanos", INT64),
        (11, "period_type", ValueType),
        (12, "period", INT64),
    )

    def __init__(self) -> None:
        self.sample_type: list[ValueType] = []
        self.sample: list[Sample] = []
        self.location: list[Location] = []
        self.function: list[Function] = []
        self.string_table: list[str] = []
        self.time_nanos = self.duration_nanos = self.period = 0
        self.period_type: ValueType | None = None


class Builder:
    """A profile of stacks. ``types`` are the names and units of each stack's numbers."""

    def __init__(self, types: Iterable[tuple[str, str]]) -> None:
        self._profile = Profile()
        self._strings = {"": 0}
        self._functions: dict[tuple[str, str], int] = {}
        self._locations: dict[Line, int] = {}
        self._profile.sample_type = [self._type(name, unit) for name, unit in types]

    def _type(self, name: str, unit: str) -> ValueType:
        return ValueType(self._string(name), self._string(unit))

    def add(self, stack: Stack, values: Sequence[int]) -> None:
        """A stack with its numbers."""
        self._profile.sample.append(Sample([self._location(line) for line in stack], values))

    def _string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))

    def _location(self, line: Line) -> int:
        found = self._locations.get(line)
        if found is None:
            found = self._locations[line] = len(self._locations) + 1
            place = LineOf(self._function(line[0], line[1]), line[2])
            self._profile.location.append(Location(found, [place]))
        return found

    def _function(self, name: str, file: str) -> int:
        found = self._functions.get((name, file))
        if found is None:
            found = self._functions[name, file] = len(self._functions) + 1
            text = self._string(name)
            self._profile.function.append(Function(found, text, text, self._string(file)))
        return found

    def packed(
        self, began: int, lasted: int = 0, period: tuple[str, str, int] = ("", "", 0)
    ) -> bytes:
        """The profile of ``lasted`` ns from ``began``; ``period`` is between two samples."""
        profile = self._profile
        profile.time_nanos, profile.duration_nanos = began, lasted
        profile.period_type, profile.period = self._type(*period[:2]), period[2]
        profile.string_table = list(self._strings)
        return gzip.compress(profile.encode(), mtime=0)
