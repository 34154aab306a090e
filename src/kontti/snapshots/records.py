"""What a snapshotter knows of its snapshots, in a sqlite file of its own.

metadata.db (WAL, synchronous=FULL; user_version 1)
├── snapshots (id, name, parent id, kind, labels JSON, size, inodes, created_at, updated_at)
└── removed   (id): directories that nobody names any more, to be deleted
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kontti.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, NotFound
from kontti.errors import ResourceExhausted as Full
from kontti.filters import field_adaptor, parse_all
from kontti.linux import libc
from kontti.snapshots.base import Info, Kind, Usage
from kontti.sqlitefile import open_durable
from kontti.values import merge_labels

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, parent INTEGER,
    kind INTEGER NOT NULL, labels TEXT NOT NULL, size INTEGER NOT NULL, inodes INTEGER NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS children ON snapshots (parent);
CREATE TABLE IF NOT EXISTS removed (id INTEGER PRIMARY KEY);
PRAGMA user_version = 1;
COMMIT;
"""
_COLUMNS = "s.id, s.name, p.name, s.kind, s.labels, s.size, s.inodes, s.created_at, s.updated_at"
_FROM = "FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent"


@dataclass(frozen=True, slots=True)
class Record:
    """A snapshot and the number of its directory."""

    id: int
    info: Info
    usage: Usage


class Records:
    """The file at ``path``. Every method is one transaction, durable when it returns.

    ``lock`` keeps other threads out, for who must do more than one thing undisturbed.
    """

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.lock = threading.RLock()
        with _database_errors():
            btrfs = libc.statfs_type(os.path.dirname(path)) == libc.BTRFS_SUPER_MAGIC
            self._db = open_durable(path, exclusive=btrfs)
            try:
                self._db.executescript(_SCHEMA)
            except BaseException:
                self._db.close()
                raise

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self.lock, _database_errors():
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        # a full disk may have ended it already
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def get(self, name: str) -> Record:
        """Raises NotFound."""
        with self.lock, _database_errors():
            row = self._db.execute(
                f"SELECT {_COLUMNS} {_FROM} WHERE s.name = ?", (name,)
            ).fetchone()
        if row is None:
            raise NotFound(f"snapshot {name} does not exist")
        return _record(row)

    def chain(self, name: str) -> tuple[Record, list[int]]:
        """A snapshot, and its parents' numbers from the nearest to the first."""
        with self.lock, _database_errors():
            record = self.get(name)
            rows = self._db.execute(
                "WITH RECURSIVE above(id, parent, level) AS ("
                "  SELECT id, parent, 0 FROM snapshots WHERE id = ?"
                "  UNION ALL SELECT s.id, s.parent, level + 1"
                "  FROM snapshots s JOIN above ON s.id = above.parent)"
                "SELECT id FROM above WHERE level > 0 ORDER BY level",
                (record.id,),
            ).fetchall()
        return record, [row[0] for row in rows]

    def create(
        self,
        kind: Kind,
        name: str,
        parent: str,
        labels: Mapping[str, str],
        make: Callable[[int, list[int]], None],
    ) -> tuple[Record, list[int]]:
        """Record a new snapshot once ``make(number, parents)`` has made its directory."""
        with self._transaction() as db:
            above = self.committed(parent) if parent else None
            now = time.time_ns()
            try:
                made = db.execute(
                    "INSERT INTO snapshots (name, parent, kind, labels, size, inodes, created_at, "
                    "updated_at) VALUES (?, ?, ?, ?, 0, 0, ?, ?)",
                    (name, above, int(kind), json.dumps(dict(labels)), now, now),
                )
            except sqlite3.IntegrityError:
                raise AlreadyExists(f"snapshot {name}") from None
            record, parents = self.chain(name)
            make(int(made.lastrowid or 0), parents)
        return record, parents

    def check_new(self, name: str) -> None:
        """Raises AlreadyExists."""
        try:
            self.get(name)
        except NotFound:
            return
        raise AlreadyExists(f"snapshot {name}")

    def committed(self, parent: str) -> int:
        """The number of a snapshot that can be a parent; raises NotFound, InvalidArgument."""
        try:
            record = self.get(parent)
        except NotFound:
            raise NotFound(f"parent snapshot {parent} does not exist") from None
        if record.info.kind is not Kind.COMMITTED:
            raise InvalidArgument(f'parent "{parent}" is not committed snapshot')
        return record.id

    def commit(
        self, name: str, old: Record, labels: Mapping[str, str], usage: Usage, parent: str | None
    ) -> None:
        """Turn active ``old`` into committed ``name``, over ``parent`` where that is given."""
        key = old.info.name
        with self._transaction() as db:
            record = self.get(key)
            if record.id != old.id:  # removed and prepared anew since: that one is not measured
                raise NotFound(f"snapshot {key} does not exist")
            if record.info.kind is not Kind.ACTIVE:
                raise FailedPrecondition(f"snapshot {key} is not active")
            if parent is not None:
                self._rebase(record, parent)
            try:
                db.execute(
                    "UPDATE snapshots SET name = ?, kind = ?, labels = ?, size = ?, inodes = ?, "
                    "updated_at = ? WHERE id = ?",
                    (
                        name,
                        int(Kind.COMMITTED),
                        json.dumps(dict(labels)),
                        usage.size,
                        usage.inodes,
                        time.time_ns(),
                        record.id,
                    ),
                )
            except sqlite3.IntegrityError:
                raise AlreadyExists(f"snapshot {name}") from None

    def _rebase(self, record: Record, parent: str) -> None:
        if record.info.parent == parent:
            return
        if record.info.parent:
            raise FailedPrecondition(
                f"snapshot {record.info.name} has parent {record.info.parent}, not {parent}"
            )
        above = self.committed(parent)
        self._db.execute("UPDATE snapshots SET parent = ? WHERE id = ?", (above, record.id))

    def remove(self, name: str) -> int:
        """Forget a snapshot and note its directory for deletion; gives its number."""
        with self._transaction() as db:
            record = self.get(name)
            query = "SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1"
            if db.execute(query, (record.id,)).fetchone() is not None:
                raise FailedPrecondition(f'cannot remove snapshot "{name}" with child')
            db.execute("DELETE FROM snapshots WHERE id = ?", (record.id,))
            db.execute("INSERT INTO removed VALUES (?)", (record.id,))
        return record.id

    def update(self, info: Info, paths: Sequence[str]) -> Record:
        """Change labels; raises NotFound, InvalidArgument for other fields."""
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgument(f"cannot update {path!r} field on snapshot {info.name!r}")
        with self._transaction() as db:
            old = self.get(info.name)
            labels = merge_labels(old.info.labels, info.labels, paths)
            now = time.time_ns()
            db.execute(
                "UPDATE snapshots SET labels = ?, updated_at = ? WHERE id = ?",
                (json.dumps(labels), now, old.id),
            )
        return replace(old, info=replace(old.info, labels=labels, updated_at=now))

    def walk(self, filters: Sequence[str]) -> Iterator[Record]:
        """Those that match, in the order of their making."""
        wanted = parse_all(filters)
        with self.lock, _database_errors():
            rows = self._db.execute(f"SELECT {_COLUMNS} {_FROM} ORDER BY s.id").fetchall()
        for row in rows:
            record = _record(row)
            info = record.info
            values = {"name": info.name, "parent": info.parent, "kind": info.kind.name.lower()}
            if wanted.match(field_adaptor(values, {"labels": info.labels})):
                yield record

    def ids(self, *kinds: Kind) -> set[int]:
        """The numbers in use, by snapshots of ``kinds`` where there are any."""
        with self.lock, _database_errors():
            rows = self._db.execute("SELECT id, kind FROM snapshots").fetchall()
        return {number for number, kind in rows if not kinds or kind in kinds}

    def numbered(self, number: int) -> tuple[Info, list[int]]:
        """A snapshot, and its parents' numbers from the nearest to the first."""
        with self.lock, _database_errors():
            query = "SELECT name FROM snapshots WHERE id = ?"
            (name,) = self._db.execute(query, (number,)).fetchone()
            record, parents = self.chain(name)
        return record.info, parents

    def removed(self) -> list[int]:
        """The numbers whose directories may still be there."""
        with self.lock, _database_errors():
            return [row[0] for row in self._db.execute("SELECT id FROM removed ORDER BY id")]

    def forget_removed(self, ids: Sequence[int]) -> None:
        """The directories of these are gone."""
        with self._transaction() as db:
            db.executemany("DELETE FROM removed WHERE id = ?", [(i,) for i in ids])

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self._db.close()


@contextlib.contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise Full(f"snapshot records: {error}") from error
        raise Error(f"snapshot records: {error}") from error


def _record(row: tuple[int, str, str | None, int, str, int, int, int, int]) -> Record:
    id, name, parent, kind, labels, size, inodes, created, updated = row
    info = Info(Kind(kind), name, parent or "", json.loads(labels), created, updated)
    return Record(id, info, Usage(size, inodes))
