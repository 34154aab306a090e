"""Durations as Go's time package writes them: ``1m30s``, ``250ms``, ``-1.5h``."""

from __future__ import annotations

from kontti.errors import InvalidArgument

MICROSECOND, MILLISECOND, SECOND = 1_000, 1_000_000, 1_000_000_000
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
UNITS = {
    "ns": 1,
    "us": MICROSECOND,
    "\u00b5s": MICROSECOND,
    "\u03bcs": MICROSECOND,
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}
_LIMIT = 1 << 63
_DIGITS = "0123456789"


class Duration(int):
    """Nanoseconds."""

    __slots__ = ()

    @property
    def seconds(self) -> float:
        """As seconds."""
        return self / SECOND

    def __str__(self) -> str:
        return format_duration(self)

    def __repr__(self) -> str:
        return f"Duration({format_duration(self)})"


def parse_duration(text: str) -> Duration:
    """The duration ``text`` says; raises InvalidArgument."""
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return Duration(0)
    if not rest or len(rest) > 100:
        raise _invalid(text)
    total = 0
    while rest:
        value, rest = _part(rest, text)
        total += value
    negative = text.startswith("-")
    if total > (_LIMIT if negative else _LIMIT - 1):
        raise _invalid(text)
    return Duration(-total if negative else total)


def _part(rest: str, text: str) -> tuple[int, str]:
    """The first number with its unit, in ns, and what follows it."""
    whole, rest = _span(rest, _DIGITS)
    fraction = ""
    if rest.startswith("."):
        fraction, rest = _span(rest[1:], _DIGITS)
    if not (whole or fraction):
        raise _invalid(text)
    length = next((i for i, c in enumerate(rest) if c in "." + _DIGITS), len(rest))
    unit, rest = rest[:length], rest[length:]
    if not unit:
        raise InvalidArgument(f"time: missing unit in duration {_quoted(text)}")
    if unit not in UNITS:
        raise InvalidArgument(f"time: unknown unit {_quoted(unit)} in duration {_quoted(text)}")
    scale = UNITS[unit]
    return int(whole or 0) * scale + int(fraction or 0) * scale // 10 ** len(fraction), rest


def _span(text: str, characters: str) -> tuple[str, str]:
    rest = text.lstrip(characters)
    return text[: len(text) - len(rest)], rest


def _invalid(text: str) -> InvalidArgument:
    return InvalidArgument(f"time: invalid duration {_quoted(text)}")


def _quoted(text: str) -> str:
    return f'"{text:.100}"'


def format_duration(duration: int) -> str:
    """``duration``, in ns, as Go prints it: ``1h0m0s``, ``1.5s``, ``250ms``, ``0s``."""
    sign, left = "-" if duration < 0 else "", abs(int(duration))
    if left == 0:
        return "0s"
    if left < SECOND:
        for unit, scale in (("ms", MILLISECOND), ("\u00b5s", MICROSECOND)):
            if left >= scale:
                return f"{sign}{_decimal(left, scale)}{unit}"
        return f"{sign}{left}ns"
    minutes, left = divmod(left, MINUTE)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(left, SECOND)}s"
    if hours:
        text = f"{hours}h{minutes}m{text}"
    elif minutes:
        text = f"{minutes}m{text}"
    return sign + text


def _decimal(value: int, scale: int) -> str:
    whole, left = divmod(value, scale)
    if not left:
        return str(whole)
    return f"{whole}.{str(left).zfill(len(str(scale)) - 1).rstrip('0')}"
