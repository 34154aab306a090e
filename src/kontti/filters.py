"""containerd's filter grammar: which objects of a list a client wants.

    filter    := selector ("," selector)*          all must match
    selector  := fieldpath [operator value]        a bare field must be present
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_]+
    operator  := "==" | "!=" | "~="                "~=" searches for a regular expression
    value     := quoted | [^\\s,]+                  after "~=" quotes may also be / or |

Quoted text is in double quotes, with Go's escapes. Several filters are alternatives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kontti.errors import InvalidArgument

Adaptor = Callable[[Sequence[str]], tuple[str, bool]]

MAX_FILTER = 16 * 1024
MAX_PATTERN = 1024
_FIELD = re.compile(r"[A-Za-z0-9_]+")
_VALUE = re.compile(r"[^\s,]+")
_SPACE = re.compile(r"\s*")
_OPERATOR = re.compile("[=!~]+")
_OPERATORS = ("==", "!=", "~=")
_ESCAPES = dict(zip("abfnrtv\\\"'", "\a\b\f\n\r\t\v\\\"'", strict=True))
_NUMERIC = {"x": 2, "u": 4, "U": 8}
_BARE_QUANTIFIED = re.compile(r"(?:[*+]|\{\d*,\d*\})")


@dataclass(frozen=True, slots=True)
class Selector:
    """One condition on one field; ``operator`` is "" where the field must only be present."""

    path: tuple[str, ...]
    operator: str = ""
    value: str = ""
    pattern: re.Pattern[str] | None = None

    def match(self, adaptor: Adaptor) -> bool:
        """Whether the object behind ``adaptor`` meets the condition."""
        value, present = adaptor(self.path)
        if self.operator == "==":
            return present and value == self.value
        if self.operator == "!=":
            return value != self.value
        if self.pattern is not None:
            return self.pattern.search(value) is not None
        return present


@dataclass(frozen=True, slots=True)
class Filter:
    """Alternatives of conditions; with no alternative it matches everything."""

    alternatives: tuple[tuple[Selector, ...], ...] = ()

    def match(self, adaptor: Adaptor) -> bool:
        """Whether the object whose fields ``adaptor`` gives is wanted."""
        if not self.alternatives:
            return True
        return any(all(s.match(adaptor) for s in group) for group in self.alternatives)


def parse(expression: str) -> Filter:
    """One filter; an empty one matches everything. Raises InvalidArgument with the position."""
    if not expression:
        return Filter()
    return Filter((_Parser(expression).selectors(),))


def parse_all(expressions: Sequence[str]) -> Filter:
    """Filters as alternatives; none match everything. Raises InvalidArgument."""
    parsed = [parse(e) for e in expressions]
    if any(not f.alternatives for f in parsed):
        return Filter()
    return Filter(tuple(group for f in parsed for group in f.alternatives))


def field_adaptor(
    values: Mapping[str, str], maps: Mapping[str, Mapping[str, str]] | None = None
) -> Adaptor:
    """An adaptor over dotted field names and, by first segment, maps such as ``labels``.

    A field with an empty value counts as absent, as in containerd.
    """

    def field(path: Sequence[str]) -> tuple[str, bool]:
        if maps and path[0] in maps:
            found = maps[path[0]].get(".".join(path[1:]))
            return found or "", found is not None
        value = values.get(".".join(path), "")
        return value, value != ""

    return field


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._pos = 0
        if len(text) > MAX_FILTER:
            raise self._error(f"filter is longer than {MAX_FILTER} characters")

    def selectors(self) -> tuple[Selector, ...]:
        found = [self._selector()]
        while self._pos < len(self._text):
            if not self._accept(","):
                raise self._error("expected a comma")
            found.append(self._selector())
        return tuple(found)

    def _selector(self) -> Selector:
        path = self._path()
        self._skip_space()
        found = _OPERATOR.match(self._text, self._pos)
        if found is None:
            return Selector(path)
        operator = found.group()
        if operator not in _OPERATORS:
            raise self._error(f'unsupported operator "{operator[:20]}"')
        self._pos = found.end()
        self._skip_space()
        at = self._pos
        value = self._value(operator)
        self._skip_space()
        pattern = self._pattern(value, at) if operator == "~=" else None
        return Selector(path, operator, value, pattern)

    def _path(self) -> tuple[str, ...]:
        self._skip_space()
        segments = [self._field()]
        while self._accept("."):
            segments.append(self._field())
        return tuple(segments)

    def _field(self) -> str:
        if self._text[self._pos : self._pos + 1] == '"':
            return self._quoted()
        return self._take(_FIELD, "expected a field name")

    def _value(self, operator: str) -> str:
        first = self._text[self._pos : self._pos + 1]
        if first == '"':
            return self._quoted()
        if operator == "~=" and first in ("/", "|"):
            return self._alternately_quoted(first)
        return self._take(_VALUE, "expected a value")

    def _take(self, pattern: re.Pattern[str], complaint: str) -> str:
        found = pattern.match(self._text, self._pos)
        if found is None:
            raise self._error(complaint)
        self._pos = found.end()
        return found.group()

    def _accept(self, char: str) -> bool:
        if self._text[self._pos : self._pos + 1] != char:
            return False
        self._pos += 1
        return True

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._pos)
        self._pos = found.end() if found else self._pos

    def _alternately_quoted(self, quote: str) -> str:
        """A pattern between slashes or bars; escapes stay, for the pattern's own use."""
        start = self._pos
        self._pos += 1
        out: list[str] = []
        while self._pos < len(self._text):
            char = self._text[self._pos]
            self._pos += 1
            if char == quote:
                return "".join(out)
            if char == "\\" and self._text[self._pos : self._pos + 1] == quote:
                char = quote
                self._pos += 1
            elif char == "\\":
                char += self._text[self._pos : self._pos + 1]
                self._pos += 1
            out.append(char)
        self._pos = start
        raise self._error("quoted literal not terminated")

    def _quoted(self) -> str:
        start = self._pos
        self._pos += 1
        out: list[str] = []
        while self._pos < len(self._text):
            char = self._text[self._pos]
            self._pos += 1
            if char == '"':
                return "".join(out)
            out.append(self._escape() if char == "\\" else char)
        self._pos = start
        raise self._error("quoted literal not terminated")

    def _escape(self) -> str:
        letter = self._text[self._pos : self._pos + 1]
        if letter in _ESCAPES:
            self._pos += 1
            return _ESCAPES[letter]
        if letter in _NUMERIC:
            self._pos += 1
            return self._numeric(_NUMERIC[letter], 16)
        return self._numeric(3, 8)

    def _numeric(self, count: int, base: int) -> str:
        digits = self._text[self._pos : self._pos + count]
        allowed = "01234567" if base == 8 else "0123456789abcdefABCDEF"
        if len(digits) != count or any(d not in allowed for d in digits):
            raise self._error("illegal escape")
        code = int(digits, base)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise self._error("illegal escape")
        self._pos += count
        return chr(code)

    def _pattern(self, text: str, at: int) -> re.Pattern[str]:
        if len(text) > MAX_PATTERN:
            raise self._error(f"pattern is longer than {MAX_PATTERN} characters", at)
        if _explodes(text):
            raise self._error("pattern repeats a repetition", at)
        try:
            return re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise self._error(f"bad pattern: {error}", at) from None

    def _error(self, complaint: str, at: int | None = None) -> InvalidArgument:
        position = self._pos if at is None else at
        shown = self._text if len(self._text) <= 200 else self._text[:200] + "..."
        return InvalidArgument(f"parse error: [{shown}] at position {position}: {complaint}")


def _explodes(pattern: str) -> bool:
    """Whether a group that holds a repetition is repeated: such a search can take for ever.

    Go's engine takes linear time for every pattern; Python's takes exponential time for these.
    """
    repeats = [False]
    closed = False
    pos = 0
    bare = _without_classes(pattern)
    while pos < len(bare):
        char = bare[pos]
        quantifier = _BARE_QUANTIFIED.match(bare, pos)
        if quantifier:
            if closed:
                return True
            repeats[-1] = True
            pos = quantifier.end()
            closed = False
            continue
        closed = False
        if char == "(":
            repeats.append(False)
        elif char == ")" and len(repeats) > 1:
            closed = repeats.pop()
            repeats[-1] = repeats[-1] or closed
        pos += 1
    return False


def _without_classes(pattern: str) -> str:
    """``pattern`` with escapes and bracketed classes as plain letters."""
    return re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern, flags=re.DOTALL)
