"""sqlite files whose transactions are on the disk when they end, and quick."""

from __future__ import annotations

import os
import sqlite3

from kontti.linux import fs

WAL_PAGES = 256
_WAL_SIZE = 32 + WAL_PAGES * (24 + 4096)


def open_durable(
    path: str, timeout: float = 10.0, *, exclusive: bool = False
) -> sqlite3.Connection:
    """The database at ``path`` for any thread, with transactions begun and ended by hand.

    WAL with ``synchronous=FULL``; the log is written full of zeros before it is used, because an
    fsync of blocks that exist has no metadata to journal. ``timeout`` in seconds is for a lock
    that another process has. ``exclusive`` keeps all other connections out, and the log's index in
    memory: as a mapped file of a full btrfs, whose every page is written to a new place, it ends
    the process (SIGBUS). Raises sqlite3.Error.
    """
    if not os.path.exists(path) or not os.path.getsize(path):
        # sqlite removes the log of a database that has no page yet
        first = _connect(path, timeout)
        try:
            first.execute("PRAGMA journal_mode=WAL")
        finally:
            first.close()
    fs.fill_ahead(f"{path}-wal", _WAL_SIZE)
    connection = _connect(path, timeout)
    try:
        if exclusive:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: str, timeout: float) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
