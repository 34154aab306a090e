"""Durations read and print as Go's do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.config.duration import Duration, format_duration, parse_duration
from kontti.errors import InvalidArgument

# text, nanoseconds, as Go prints them
CASES = [
    ("0", 0, "0s"),
    ("-0", 0, "0s"),
    ("5s", 5_000_000_000, "5s"),
    ("1m30s", 90_000_000_000, "1m30s"),
    ("1h", 3_600_000_000_000, "1h0m0s"),
    ("1.5h", 5_400_000_000_000, "1h30m0s"),
    ("24h", 86_400_000_000_000, "24h0m0s"),
    ("100ms", 100_000_000, "100ms"),
    ("1.000000001s", 1_000_000_001, "1.000000001s"),
    ("1500us", 1_500_000, "1.5ms"),
    ("12\u00b5s", 12_000, "12\u00b5s"),
    ("12\u03bcs", 12_000, "12\u00b5s"),
    ("7ns", 7, "7ns"),
    (".5s", 500_000_000, "500ms"),
    ("5.s", 5_000_000_000, "5s"),
    ("-1m", -60_000_000_000, "-1m0s"),
    ("+2s", 2_000_000_000, "2s"),
    ("9223372036854775807ns", (1 << 63) - 1, "2562047h47m16.854775807s"),
]


@pytest.mark.parametrize(("text", "nanoseconds", "printed"), CASES)
def test_known(text: str, nanoseconds: int, printed: str) -> None:
    assert parse_duration(text) == nanoseconds
    assert format_duration(nanoseconds) == printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'invalid duration ""'),
        ("-", "invalid duration"),
        ("s", "invalid duration"),
        (".s", "invalid duration"),
        ("3", 'missing unit in duration "3"'),
        ("1m3", "missing unit"),
        ("3x", 'unknown unit "x" in duration "3x"'),
        ("1 s", "unknown unit"),
        ("9223372036854775808ns", "invalid duration"),
        ("9" * 5000 + "s", "invalid duration"),
        ("\u0661s", "invalid duration"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_duration(text)


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_what_is_printed_reads_back(nanoseconds: int) -> None:
    assert parse_duration(str(Duration(nanoseconds))) == nanoseconds


@given(st.text(alphabet="0123456789.hmsnu\u00b5+- ", max_size=20))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        parse_duration(text)
    except InvalidArgument:
        return


def test_seconds() -> None:
    assert parse_duration("250ms").seconds == 0.25
