"""How kontti prints: tables that fit the terminal, plain columns in a pipe, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from kontti.cmd.ctr.output import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.table import Table

STYLES = {"running": "green", "paused": "yellow", "stopped": "red"}


def show_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under titles."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        sys.stdout.write(table([titles, *rows], padding=3))
        return
    from rich.console import Console

    Console().print(rich_table(titles, rows))


def printable(text: str) -> str:
    """Without what would move a terminal's cursor: a container chooses its processes' names."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def rich_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Rows under titles, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        made.add_column(title, overflow="fold")
    for row in rows:
        made.add_row(*[Text(cell, style=STYLES.get(cell.split(" ")[0], "")) for cell in row])
    return made


def show_json(value: object) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
