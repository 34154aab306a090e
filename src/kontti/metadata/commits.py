"""Commits of snapshots under way, noted before the backend is asked.

A commit is two: the backend's, which consumes the active snapshot, and that of the records. What
a crash leaves between them is known from its note, and finished by a later collection.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

_COLUMNS = "snapshotter, backend, namespace, key, consumed, name, parent, labels, lease"


class Commit(NamedTuple):
    """Of active ``key``, ``consumed`` in the backend, to ``name``, which is ``backend`` there."""

    snapshotter: str
    backend: str
    namespace: str
    key: str
    consumed: str
    name: str
    parent: str
    labels: str
    lease: str


def note(connection: sqlite3.Connection, commit: Commit) -> None:
    """It may be half-made from now on."""
    connection.execute("INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", commit)


def is_noted(connection: sqlite3.Connection, commit: Commit) -> bool:
    """Whether it is still under way."""
    query = "SELECT 1 FROM commits WHERE snapshotter = ? AND backend = ?"
    return connection.execute(query, commit[:2]).fetchone() is not None


def strike(connection: sqlite3.Connection, commit: Commit) -> None:
    """It is whole, or not there at all."""
    connection.execute("DELETE FROM commits WHERE snapshotter = ? AND backend = ?", commit[:2])


def noted(connection: sqlite3.Connection) -> list[Commit]:
    """All that are under way, in the order of their making."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM commits ORDER BY rowid")
    return [Commit(*row) for row in rows]
