"""One command on several containers: what fails for one does not stop the others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from kontti.cmd.kontti.output import show_json
from kontti.cmd.kontti.root import Root
from kontti.engine.engine import Engine
from kontti.errors import Error

Row = dict[str, object]
Report = Callable[[Row], object]


def by_id(row: Row) -> None:
    """Print which container it was."""
    print(row["id"], flush=True)


def each(
    root: Root, names: Iterable[str], act: Callable[[Engine, str], Row], *, report: Report | None
) -> int:
    """``act`` on each with one engine; gives the exit code.

    ``report`` gets what ``act`` gives, and for a failure ``id`` and ``error``.
    """
    with root.engine() as engine:
        return each_by_itself(names, lambda name: act(engine, name), report=report)


def each_by_itself(
    names: Iterable[str], act: Callable[[str], Row], *, report: Report | None
) -> int:
    """The same where each sees to its engine: for what takes long."""
    code = 0
    for name in names:
        try:
            found = act(name)
        except Error as error:
            print(f"kontti: {error.message}", file=sys.stderr, flush=True)
            found, code = {"id": name, "error": error.message}, 1
        if report is not None:
            report(found)
    return code


class Reporter:
    """Prints rows as they come, or all at the end as one JSON list."""

    def __init__(self, format: str, line: Report = by_id) -> None:
        self._json = format == "json"
        self._line = line
        self._rows: list[Row] = []

    def __call__(self, row: Row) -> None:
        self._rows.append(row)
        if not self._json and "error" not in row:
            self._line(row)

    def finish(self) -> None:
        """Print what is to be printed at the end."""
        if self._json:
            show_json(self._rows)
