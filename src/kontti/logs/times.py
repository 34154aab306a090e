"""Points in time as users of ``logs`` write them: RFC 3339, seconds since the epoch, or ``10m``."""

from __future__ import annotations

import re
import time

from kontti.config.duration import parse_duration
from kontti.errors import InvalidArgument
from kontti.wire.log_record import stamp_of

_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?)?([Zz]|[+-]\d\d:\d\d)?",
    re.ASCII,
)
_EPOCH = re.compile(r"(\d{1,11})(?:\.(\d{1,9}))?", re.ASCII)


def stamp(text: str, now: int | None = None) -> bytes:
    """The time that ``text`` means as records have it; "" is b"", no time at all.

    A duration is counted back from ``now``, ns since the epoch; a time of day without a zone is
    UTC. Raises InvalidArgument.
    """
    return stamp_of(ns_of(text, time.time_ns() if now is None else now)) if text else b""


def ns_of(text: str, now: int) -> int:
    """The same as ns since the epoch."""
    if match := _EPOCH.fullmatch(text):
        return int(match[1]) * 10**9 + _fraction(match[2])
    if match := _RFC3339.fullmatch(text):
        return _seconds(match, text) * 10**9 + _fraction(match[3])
    try:
        return max(0, now - parse_duration(text))
    except InvalidArgument:
        raise InvalidArgument(
            f"time {text!r:.60} is neither like 2006-01-02T15:04:05Z nor like 10m"
        ) from None


def _fraction(digits: str | None) -> int:
    return int((digits or "").ljust(9, "0"))


def _seconds(match: re.Match[str], text: str) -> int:
    from datetime import datetime

    zone = (match[4] or "Z").upper().replace("Z", "+00:00")
    try:
        found = datetime.fromisoformat(f"{match[1]}T{match[2] or '00:00'}{zone}").timestamp()
    except ValueError as error:
        raise InvalidArgument(f"time {text!r:.60}: {error}") from None
    return max(0, int(found))
