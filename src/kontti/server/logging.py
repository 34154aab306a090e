"""Log lines as containerd writes them: ``time="…" level=info msg="…" key=value``, or JSON.

Fields go in ``extra``: ``log.info("loaded", extra={"fields": {"id": "overlayfs"}})``. What is
logged may come from images or clients: nothing in it can begin a new line or add a field.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

from kontti.errors import InvalidArgument

TRACE = 5
# names that the command line and config.toml know, most talkative first
LEVELS: Mapping[str, int] = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
_WRITTEN = {TRACE: "trace", 10: "debug", 20: "info", 30: "warning", 40: "error", 50: "fatal"}
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/@^+")
_RESERVED = ("time", "level", "msg")


def set_up(level: str = "", format: str = "", stream: TextIO | None = None) -> None:
    """Log to ``stream`` (stderr) from ``level`` (info) on, as ``text`` or ``json``.

    May be called again to change either. Raises InvalidArgument for a level or format it does not
    know.
    """
    formatter = make_formatter(format)
    number = level_number(level)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)


def level_number(name: str) -> int:
    """logging's number of a level's name; info for ""."""
    number = LEVELS.get(name.lower() or "info")
    if number is None:
        raise InvalidArgument(f"not a valid log level: {name!r:.40}")
    return number


def make_formatter(format: str) -> logging.Formatter:
    """By name; text for ""."""
    if format in ("", "text"):
        return TextFormatter()
    if format == "json":
        return JsonFormatter()
    raise InvalidArgument(f"unsupported log format: {format!r:.40}")


class TextFormatter(logging.Formatter):
    """logfmt: values are quoted unless they are plain words."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{_quoted(key)}={_quoted(str(v))}" for key, v in entries(self, record))


class JsonFormatter(logging.Formatter):
    """One object to a line, keys in order."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(dict(entries(self, record)), default=str, sort_keys=True)


def entries(formatter: logging.Formatter, record: logging.LogRecord) -> list[tuple[str, object]]:
    """What a record says: time, level and message, then its fields by name."""
    when = datetime.fromtimestamp(record.created, UTC)
    found: list[tuple[str, object]] = [
        ("time", f"{when:%Y-%m-%dT%H:%M:%S.%f}000Z"),
        ("level", _WRITTEN.get(record.levelno, record.levelname.lower())),
        ("msg", record.getMessage()),
    ]
    fields: dict[str, object] = dict(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[1] is not None:
        fields.setdefault("error", record.exc_info[1])
        fields.setdefault("stack", formatter.formatException(record.exc_info))
    for key in sorted(fields):
        # logrus moves a field that would hide one of its own out of the way like this
        name = f"fields.{key}" if key in _RESERVED else key
        found.append((name, fields[key]))
    return found


def _quoted(text: str) -> str:
    return text if _PLAIN.issuperset(text) else json.dumps(text)
