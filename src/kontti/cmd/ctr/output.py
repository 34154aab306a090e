"""How ctr prints: Go's tabwriter columns, sizes, times, JSON."""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kontti.logs.reader import Query

_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def table(rows: Iterable[Sequence[str]], minimum: int = 1, width: int = 8, padding: int = 1) -> str:
    """Rows in columns as Go's text/tabwriter does with blanks: every cell but a row's last
    is padded to its column's width, where a column is a run of rows that have that cell."""
    lines = [list(row) for row in rows]
    widths = _widths(lines, minimum, padding)
    out = []
    for line, row_widths in zip(lines, widths, strict=True):
        cells = [cell.ljust(w) for cell, w in zip(line[:-1], row_widths, strict=True)]
        out.append("".join(cells) + (line[-1] if line else ""))
    return "".join(f"{text}\n" for text in out)


def _widths(lines: list[list[str]], minimum: int, padding: int) -> list[list[int]]:
    widths: list[list[int]] = [[] for _ in lines]
    columns = max((len(line) for line in lines), default=0)
    for column in range(columns - 1):
        start = 0
        while start < len(lines):
            if len(lines[start]) - 1 <= column:
                start += 1
                continue
            end = start
            while end < len(lines) and len(lines[end]) - 1 > column:
                end += 1
            size = max(len(line[column]) for line in lines[start:end])
            cell = max(minimum, size + padding) if size else max(minimum, padding)
            for index in range(start, end):
                widths[index].append(cell)
            start = end
    return widths


def write_table(rows: Iterable[Sequence[str]], *, minimum: int = 1, padding: int = 1) -> None:
    """Print rows in columns, each row ended by an empty last cell as containerd's tables are."""
    sys.stdout.write(table(([*row, ""] for row in rows), minimum=minimum, padding=padding))


def binary_size(size: int) -> str:
    """``1009.5 KiB``: one decimal, powers of 1024."""
    value = float(size)
    for unit in _BINARY_UNITS:
        if value < 1024 or unit == _BINARY_UNITS[-1]:
            return f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def decimal_size(size: int) -> str:
    """``1.033MB``: four significant digits, powers of 1000."""
    value = float(size)
    for unit in _DECIMAL_UNITS:
        if value < 1000 or unit == _DECIMAL_UNITS[-1]:
            return f"{value:.4g}{unit}"
        value /= 1000
    raise AssertionError


def age(ns: int) -> str:
    """How long ago, in words: ``5 minutes``."""
    seconds = int((time.time_ns() - ns) // 1_000_000_000)
    steps = (
        (1, "Less than a second"),
        (2, "1 second"),
        (60, f"{seconds} seconds"),
        (120, "About a minute"),
        (3600, f"{seconds // 60} minutes"),
        (7200, "About an hour"),
        (48 * 3600, f"{(seconds + 1800) // 3600} hours"),
        (14 * 86400, f"{seconds // 86400} days"),
        (60 * 86400, f"{seconds // (7 * 86400)} weeks"),
        (730 * 86400, f"{seconds // (30 * 86400)} months"),
    )
    for limit, words in steps:
        if seconds < limit:
            return words
    return f"{seconds // (365 * 86400)} years"


def rfc3339(ns: int, *, fraction: bool = True) -> str:
    """``2026-11-23T08:30:44.013561008Z``, without trailing zeros."""
    seconds, rest = divmod(ns, 1_000_000_000)
    if ns <= -62135596800 * 1_000_000_000:
        return "0001-01-01T00:00:00Z"
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    if fraction and rest:
        text += f".{rest:09}".rstrip("0")
    return text + "Z"


def go_time(ns: int) -> str:
    """Go's ``time.String``: ``2026-11-23 08:30:44.127196698 +0000 UTC``."""
    return rfc3339(ns).replace("T", " ").removesuffix("Z") + " +0000 UTC"


def write_log(folder: str, query: Query, *, timestamps: bool) -> None:
    """A log's stdout to ours and its stderr to ours, with what is to be said of lost bytes."""
    from kontti.logs.output import Shown
    from kontti.logs.reader import read
    from kontti.wire.log_record import STDOUT

    shown = Shown(timestamps=timestamps)
    out, err = sys.stdout.buffer, sys.stderr.buffer
    last = out
    for record in read(folder, query):
        target = out if record.stream == STDOUT and not record.lost else err
        if target is not last:
            # both may be one terminal
            last.flush()
            last = target
        target.write(shown.text(record))
        if query.follow:
            target.flush()
    last.flush()


def labels_text(labels: Mapping[str, str], empty: str = "-") -> str:
    """``a=b,c=d`` in order of keys."""
    return ",".join(f"{k}={labels[k]}" for k in sorted(labels)) or empty


def print_json(value: object) -> None:
    """JSON as ctr prints it: four blanks, as it is."""
    import json

    print(json.dumps(value, indent=4, ensure_ascii=False))


def warn(message: str) -> None:
    """A warning, on stderr, in the logger's form."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print(f'time="{stamp}" level=warning msg="{message}"', file=sys.stderr)


def error(message: str, problem: str) -> None:
    """An error that does not end the command, on stderr, in the logger's form."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text, cause = (t.replace('"', '\\"') for t in (message, problem))
    print(f'time="{stamp}" level=error msg="{text}" error="{cause}"', file=sys.stderr)
