"""The sqlite file: one writer at a time, any number of readers, every commit synced."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping

from kontti.errors import DataLoss, Error, FailedPrecondition, ResourceExhausted
from kontti.metadata.schema import MIGRATIONS

BUSY_SECONDS = 10.0


class Database:
    """Opened at ``path``, migrated forward. Raises DataLoss where the file is not a database."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._write_lock = threading.RLock()
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._all_lock = threading.Lock()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with database_errors(path):
            self._migrate()

    def _connect(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            self._local.connection = connection
            with self._all_lock:
                self._all.append(connection)
        return connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of the database."""
        connection = self._connect()
        if connection.in_transaction:
            yield connection
            return
        with database_errors(self._path):
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: durable when the block ends, undone when it raises."""
        with self._write_lock, database_errors(self._path):
            connection = self._connect()
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _migrate(self) -> None:
        connection = self._connect()
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise FailedPrecondition(
                f"{self._path} has version {version}, this kontti knows {len(MIGRATIONS)}"
            )
        for number in range(version, len(MIGRATIONS)):
            statements = MIGRATIONS[number]
            connection.executescript(
                f"BEGIN IMMEDIATE; {statements} PRAGMA user_version={number + 1}; COMMIT;"
            )

    def close(self) -> None:
        """Close every thread's connection."""
        with self._all_lock:
            for connection in self._all:
                connection.close()
            self._all.clear()


@contextlib.contextmanager
def database_errors(path: str) -> Iterator[None]:
    """sqlite's errors as ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise ResourceExhausted(f"{path}: {error}") from error
        raise Error(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError):
            raise
        raise DataLoss(f"{path}: {error}") from error


def dump(labels: Mapping[str, str]) -> str:
    """Labels as a column."""
    return json.dumps(dict(labels), separators=(",", ":"), ensure_ascii=False)


def load(text: str) -> dict[str, str]:
    """Labels from a column."""
    found: dict[str, str] = json.loads(text)
    return found
