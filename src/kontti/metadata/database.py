"""sqlite for many threads: one writer at a time, readers beside it, errors that say what is wrong.

WAL with ``synchronous=FULL``: a transaction is on the disk when its block ends. What can be made
again may be written with ``durable=False``: it reaches the disk with the next durable transaction.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping

from kontti.errors import (
    DataLoss,
    Error,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from kontti.metadata.schema import MIGRATIONS
from kontti.sqlitefile import open_durable
from kontti.values import EMPTY, AnyValue, check_labels

BUSY_SECONDS = 10.0
WRITER_SECONDS = 120.0
MAX_IDLE_READERS = 8

_CLASSES: dict[int, type[Error]] = {
    sqlite3.SQLITE_CORRUPT: DataLoss,
    sqlite3.SQLITE_NOTADB: DataLoss,
    sqlite3.SQLITE_FULL: ResourceExhausted,
    sqlite3.SQLITE_BUSY: Unavailable,
    sqlite3.SQLITE_LOCKED: Unavailable,
    sqlite3.SQLITE_CANTOPEN: Unavailable,
    sqlite3.SQLITE_READONLY: PermissionDenied,
    sqlite3.SQLITE_PERM: PermissionDenied,
}


class Database:
    """The metadata database at ``path``; it is made and migrated when it is opened."""

    generation: int
    """Grows with every transaction that wrote."""

    def __init__(self, path: str) -> None:
        """Raises DataLoss for a damaged file, Unavailable for one in use, FailedPrecondition for
        one that a newer version wrote.
        """
        self._path = path
        self._mutex = threading.Lock()
        self._writing = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._owner = 0
        self._closed = False
        self._durable = True
        self.generation = 0
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with self._errors():
            self._writer = open_durable(path, BUSY_SECONDS)
        try:
            self._migrate()
        except BaseException:
            self._writer.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )

    def _migrate(self) -> None:
        version = self._version()
        if version > len(MIGRATIONS):
            raise FailedPrecondition(
                f"metadata database {self._path} has version {version}; this program knows "
                f"versions up to {len(MIGRATIONS)}"
            )
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            with self._errors():
                self._writer.executescript(
                    f"BEGIN IMMEDIATE; {statements}; PRAGMA user_version={number}; COMMIT;"
                )

    def _version(self) -> int:
        with self._errors():
            (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        return int(version)

    @contextlib.contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction alone in its kind; kept when the block ends, undone when it raises.

        Within another of the same thread it is part of that one. Raises Unavailable where others
        write for minutes.
        """
        if self._owner == threading.get_ident():
            yield self._writer
            return
        if not self._writing.acquire(timeout=WRITER_SECONDS):
            raise Unavailable("metadata database is busy")
        try:
            self._check_open()
            self._owner = threading.get_ident()
            with self._errors(), self._transaction(durable):
                yield self._writer
            self.generation += 1
        finally:
            self._owner = 0
            self._writing.release()

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One state of the database, whatever others write meanwhile."""
        if self._owner == threading.get_ident():
            yield self._writer
            return
        connection = self._take_reader()
        try:
            with self._errors():
                connection.execute("BEGIN")
                yield connection
        finally:
            connection.rollback()
            self._give_reader(connection)

    @contextlib.contextmanager
    def _transaction(self, durable: bool) -> Iterator[None]:
        connection = self._writer
        if durable != self._durable:
            # a setting of the connection: sqlite refuses to change it within a transaction
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _take_reader(self) -> sqlite3.Connection:
        with self._mutex:
            self._check_open()
            if self._idle:
                return self._idle.pop()
        with self._errors():
            return self._connect()

    def _give_reader(self, connection: sqlite3.Connection) -> None:
        with self._mutex:
            if not self._closed and len(self._idle) < MAX_IDLE_READERS:
                self._idle.append(connection)
                return
        connection.close()

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition("metadata database is closed")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"text is not valid Unicode: {error.reason}") from None
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            cls = _CLASSES.get(code, Internal)
            raise cls(f"metadata database {self._path}: {error}") from error

    def back_up(self) -> None:
        """Write a copy to ``<path>.backup``; the copy before it stays until this one is whole."""
        target, draft = f"{self._path}.backup", f"{self._path}.backup.new"
        try:
            _remove(draft)
            with self.read() as connection:
                connection.rollback()
                connection.execute("VACUUM INTO ?", (draft,))
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
            os.rename(draft, target)
        except BaseException:
            # a full disk is not to be filled with what nobody can use
            _remove(draft)
            raise

    def close(self) -> None:
        """Close it; twice is fine."""
        with self._writing:
            with self._mutex:
                if self._closed:
                    return
                self._closed = True
                idle, self._idle = self._idle, []
            for connection in [*idle, self._writer]:
                connection.close()


def _remove(path: str) -> None:
    for name in (path, f"{path}-journal"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def dump(labels: Mapping[str, str]) -> str:
    """Labels as a column; raises InvalidArgument for one over the limit."""
    check_labels(labels)
    return json.dumps(clean(labels), separators=(",", ":"), ensure_ascii=False, sort_keys=True)


def load(text: str) -> Mapping[str, str]:
    """Labels from a column."""
    if text == "{}":
        return EMPTY
    found: dict[str, str] = json.loads(text)
    return found


def clean(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels without those of no value: they are not kept, as in containerd."""
    return {key: value for key, value in labels.items() if value != ""}


def dump_any(value: AnyValue | None) -> str | None:
    """A typed value as a column, NULL for none."""
    return None if value is None else json.dumps(_plain(value))


def load_any(text: str | None) -> AnyValue | None:
    """A typed value from a column."""
    return _typed(json.loads(text)) if text else None


def dump_anys(values: Mapping[str, AnyValue]) -> str:
    """Named typed values as a column."""
    return json.dumps({key: _plain(value) for key, value in values.items()})


def load_anys(text: str) -> dict[str, AnyValue]:
    """Named typed values from a column."""
    return {key: _typed(plain) for key, plain in json.loads(text).items()}


def _plain(value: AnyValue) -> list[str]:
    return [value.type_url, base64.b64encode(value.value).decode()]


def _typed(plain: list[str]) -> AnyValue:
    return AnyValue(plain[0], base64.b64decode(plain[1]))
