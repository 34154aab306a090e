"""What ctr prints can be read by what reads the original's."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.cmd.ctr import output

SECOND = 1_000_000_000


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("TASK", "PID", "STATUS", ""), ("a-long-name", "1", "RUNNING"), ("b", "1000000", "X")]
    assert output.table(rows, minimum=4, padding=4) == (
        "TASK           PID        STATUS    \n"
        "a-long-name    1          RUNNING\n"
        "b              1000000    X\n"
    )


def test_an_empty_column_is_as_wide_as_the_minimum() -> None:
    assert (
        output.table([("a", "", "b"), ("c", "", "d")], minimum=4, padding=1)
        == "a       b\nc       d\n"
    )
    assert output.table([("a", "", "b")], minimum=1, padding=4) == "a        b\n"


def test_a_row_with_fewer_cells_ends_a_column() -> None:
    assert output.table([("long", "x", "y"), ("z",), ("a", "b")]) == "long x y\nz\na b\n"


def test_the_last_cell_is_not_padded() -> None:
    assert output.table([("a", "b"), ("a", "long")]) == "a b\na long\n"
    assert output.table([]) == ""
    assert output.table([()]) == "\n"


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["C"]), max_size=5), max_size=4)))
def test_nothing_is_left_out(rows: list[list[str]]) -> None:
    lines = output.table(rows).split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        for cell in row:
            assert cell in line


def test_ctrs_tables_end_in_an_empty_cell(capsys: pytest.CaptureFixture[str]) -> None:
    output.write_table([("CONTAINER", "IMAGE"), ("one", "x")], minimum=4, padding=4)
    assert capsys.readouterr().out == "CONTAINER    IMAGE    \none          x        \n"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 B"), (1023, "1023.0 B"), (1024, "1.0 KiB"), (1033761, "1009.5 KiB"),
     (5 << 20, "5.0 MiB"), (1 << 60, "1.0 EiB"), (1 << 70, "1024.0 EiB")],
)  # fmt: skip
def test_binary_sizes(size: int, text: str) -> None:
    assert output.binary_size(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (1033000, "1.033MB"), (1 << 30, "1.074GB")],
)
def test_decimal_sizes(size: int, text: str) -> None:
    assert output.decimal_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
     (119, "About a minute"), (120, "2 minutes"), (3599, "59 minutes"), (3600, "About an hour"),
     (7200, "2 hours"), (47 * 3600, "47 hours"), (3 * 86400, "3 days"), (15 * 86400, "2 weeks"),
     (70 * 86400, "2 months"), (800 * 86400, "2 years")],
)  # fmt: skip
def test_ages(monkeypatch: pytest.MonkeyPatch, seconds: int, text: str) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000 * SECOND + seconds * SECOND)
    assert output.age(1_700_000_000 * SECOND) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (1_700_000_000 * SECOND, "2023-11-14T22:13:20Z"),
        (1_700_000_000 * SECOND + 120_000_000, "2023-11-14T22:13:20.12Z"),
        (1_700_000_000 * SECOND + 1, "2023-11-14T22:13:20.000000001Z"),
        (0, "1970-01-01T00:00:00Z"),
        (-SECOND, "1969-12-31T23:59:59Z"),
        (-62135596800 * SECOND, "0001-01-01T00:00:00Z"),
    ],
)
def test_times(ns: int, text: str) -> None:
    assert output.rfc3339(ns) == text
    assert output.go_time(ns) == text.replace("T", " ").replace("Z", " +0000 UTC")
    assert output.rfc3339(ns, fraction=False) == text.partition(".")[0].rstrip("Z") + "Z"


def test_labels_are_in_order() -> None:
    assert output.labels_text({"b": "2", "a": "1", "c": ""}) == "a=1,b=2,c="
    assert output.labels_text({}) == "-"
    assert output.labels_text({}, "") == ""


def test_json_is_indented_and_not_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"b": "ä<&", "a": [1]})
    assert capsys.readouterr().out == '{\n    "b": "ä<&",\n    "a": [\n        1\n    ]\n}\n'


def test_warnings_are_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.warn("task one exit with non-zero exit code 3")
    output.error('unable to delete "x"', "no such: not found")
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith('time="2')
    assert warning.endswith(' level=warning msg="task one exit with non-zero exit code 3"')
    assert error.endswith(' level=error msg="unable to delete \\"x\\"" error="no such: not found"')
