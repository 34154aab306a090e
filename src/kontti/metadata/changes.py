"""What is written while a collection looks for garbage: the rows, by their keys.

The one connection that writes notes them itself, by triggers of its own (sqlite, CREATE TEMP
TRIGGER), so no store can forget to.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from kontti.metadata.database import Database

KEYS: dict[str, tuple[str, str]] = {
    "images": ("name", "''"),
    "containers": ("id", "''"),
    "sandboxes": ("id", "''"),
    "blobs": ("digest", "''"),
    "snapshots": ("snapshotter", "key"),
    "leases": ("id", "''"),
    "lease_resources": ("type", "id"),
    "ingests": ("ref", "''"),
}
"""Tables with what their rows are known by, besides the namespace."""
Change = tuple[str, str, str, str]
"""A table, a namespace and a key's two parts."""


class Changes:
    """Rows inserted or updated since recording began, each time those that were not told yet."""

    def __init__(self) -> None:
        self._seen = 0

    def since(self, connection: sqlite3.Connection) -> list[Change]:
        """What is new, in a transaction that writes."""
        rows = connection.execute(
            "SELECT rowid, kind, namespace, a, b FROM temp.changes WHERE rowid > ? ORDER BY rowid",
            (self._seen,),
        ).fetchall()
        if rows:
            self._seen = rows[-1][0]
        return [row[1:] for row in rows]


@contextlib.contextmanager
def recording(database: Database) -> Iterator[Changes]:
    """Note what is written during the block; one at a time."""
    with database.write(durable=False) as connection:
        _drop(connection)
        connection.execute("CREATE TEMP TABLE changes (kind, namespace, a, b)")
        for statement in _triggers():
            connection.execute(statement)
    try:
        yield Changes()
    finally:
        with database.write(durable=False) as connection:
            _drop(connection)


def _triggers() -> Iterator[str]:
    for table, (first, second) in KEYS.items():
        other = second if second == "''" else f"NEW.{second}"
        values = f"'{table}', NEW.namespace, NEW.{first}, {other}"
        for event in ("INSERT", "UPDATE"):
            yield (
                f"CREATE TEMP TRIGGER note_{table}_{event} AFTER {event} ON main.{table} "
                f"BEGIN INSERT INTO changes VALUES ({values}); END"
            )


def _drop(connection: sqlite3.Connection) -> None:
    for table in KEYS:
        for event in ("INSERT", "UPDATE"):
            connection.execute(f"DROP TRIGGER IF EXISTS temp.note_{table}_{event}")
    connection.execute("DROP TABLE IF EXISTS temp.changes")
