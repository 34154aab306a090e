"""Log lines can be read by what reads containerd's, whatever is in them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import InvalidArgument
from kontti.server.logging import TRACE, JsonFormatter, TextFormatter, level_number, set_up


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = tuple(root.handlers), root.level
    yield root
    for handler in tuple(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


def record(message: str, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("kontti", level, "f", 1, message, (), None)
    made.created = 1_700_000_000.25
    made.fields = fields
    return made


def test_text() -> None:
    line = TextFormatter().format(record("loaded plugin", id="overlayfs", count=3, at="a b"))
    assert line == (
        'time="2023-11-14T22:13:20.250000000Z" level=info msg="loaded plugin" at="a b" count=3 '
        "id=overlayfs"
    )


def test_json() -> None:
    line = JsonFormatter().format(record("loaded", logging.WARNING, count=3, msg="x"))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250000000Z",
        "level": "warning",
        "msg": "loaded",
        "count": 3,
        "fields.msg": "x",
    }


def test_nothing_logged_can_forge_a_line() -> None:
    line = TextFormatter().format(record('a"\nlevel=error msg="\x1b[31m\x9b', key="v\r\n=x"))
    assert line.endswith(r'level=info msg="a\"\nlevel=error msg=\"\u001b[31m\u009b" key="v\r\n=x"')


@given(st.text(), st.text(), st.text())
def test_a_record_is_one_printable_line(message: str, key: str, value: str) -> None:
    made = record(message)
    made.fields = {key: value}
    assert TextFormatter().format(made).isprintable()
    loaded = json.loads(JsonFormatter().format(made))
    assert loaded["msg"] == message
    assert loaded[f"fields.{key}" if key in ("time", "level", "msg") else key] == value


def test_an_exception_is_a_field() -> None:
    made = record("failed")
    try:
        raise InvalidArgument("bad")
    except InvalidArgument as error:
        made.exc_info = (type(error), error, error.__traceback__)
    line = TextFormatter().format(made)
    assert 'error="bad: invalid argument"' in line
    assert 'stack="Traceback' in line
    assert "\n" not in line


def test_set_up_twice_writes_once_and_as_told_last(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    set_up("debug", "json", stream)
    set_up("warn", "text", stream)
    root_logger.info("unheard")
    root_logger.warning("heard")
    assert stream.getvalue().count("\n") == 1
    assert "level=warning msg=heard" in stream.getvalue()


def test_levels_and_formats() -> None:
    assert level_number("") == logging.INFO
    assert level_number("trace") == TRACE
    assert level_number("WARN") == logging.WARNING
    with pytest.raises(InvalidArgument, match="not a valid log level"):
        level_number("loud")
    with pytest.raises(InvalidArgument, match="unsupported log format"):
        set_up("info", "xml")
