"""The database file: many threads, damage, full disks, other versions, and sudden death."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from kontti.errors import (
    DataLoss,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from kontti.metadata.backing import BLOCK, BackendNames
from kontti.metadata.base import Image, Namespace
from kontti.metadata.database import Database
from kontti.metadata.schema import MIGRATIONS
from kontti.namespaces import Scope
from kontti.testing.content import sha256
from kontti.values import Descriptor
from tests.support.metadata import open_stores


def open_database(tmp_path: Path) -> Database:
    return Database(str(tmp_path / "meta" / "meta.db"))


def test_settings_are_the_durable_ones(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    for durable, wanted in ((True, 2), (False, 1), (True, 2)):
        with database.write(durable=durable) as connection:
            assert connection.execute("PRAGMA synchronous").fetchone() == (wanted,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with database.read() as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    database.close()
    database.close()
    with pytest.raises(FailedPrecondition, match="closed"), database.write():
        pass
    with pytest.raises(FailedPrecondition, match="closed"), database.read():
        pass


def test_transaction_that_raises_is_undone(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    with pytest.raises(NotFound):
        _add_and_fail(database)
    with pytest.raises(Error), database.write() as connection:
        connection.execute("SELECT * FROM nothing")
    with database.write() as connection:
        assert connection.execute("SELECT name FROM namespaces").fetchall() == []
    database.close()


def _add_and_fail(database: Database) -> None:
    with database.write() as connection:
        connection.execute("INSERT INTO namespaces VALUES ('x', '{}')")
        with database.read() as same:
            assert same.execute("SELECT name FROM namespaces").fetchall() == [("x",)]
        raise NotFound("x")


def test_reader_sees_one_state(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM namespaces").fetchone() == (0,)
        thread = threading.Thread(target=_add_namespace, args=(database, "x"))
        thread.start()
        thread.join(30)
        assert connection.execute("SELECT count(*) FROM namespaces").fetchone() == (0,)
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM namespaces").fetchone() == (1,)
    database.close()


def _add_namespace(database: Database, name: str) -> None:
    with database.write() as connection:
        connection.execute("INSERT INTO namespaces VALUES (?, '{}')", (name,))


def test_threads_leave_no_connections_behind(tmp_path: Path) -> None:
    database = open_database(tmp_path)

    def work(number: int) -> None:
        _add_namespace(database, f"n{number}")
        with database.read() as connection:
            connection.execute("SELECT * FROM namespaces").fetchall()

    before = len(os.listdir("/proc/self/fd"))
    for start in range(0, 60, 12):
        threads = [threading.Thread(target=work, args=(start + n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(os.listdir("/proc/self/fd")) - before < 40
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM namespaces").fetchone() == (60,)
    database.close()


def test_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(DataLoss, match=r"meta\.db: file is not a database: data loss"):
        Database(str(path))


def test_damaged_page_is_data_loss(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    database = Database(str(path))
    for number in range(200):
        _add_namespace(database, f"namespace-{number}")
    database.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    damaged = Database(str(path))
    with pytest.raises(DataLoss), damaged.read() as connection:
        connection.execute("SELECT * FROM namespaces").fetchall()
    damaged.close()


def test_newer_version_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=999")
    connection.close()
    with pytest.raises(FailedPrecondition, match="version 999"):
        Database(str(path))
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (999,)
    connection.close()


def test_full_disk(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    with database.write() as connection:
        connection.execute("PRAGMA max_page_count=40")
    rows = [(f"n{number}", "x" * 1000) for number in range(1000)]
    with pytest.raises(ResourceExhausted), database.write() as connection:
        connection.executemany("INSERT INTO namespaces VALUES (?, ?)", rows)
    with database.write() as connection:
        assert connection.execute("SELECT count(*) FROM namespaces").fetchone() == (0,)
        connection.execute("INSERT INTO namespaces VALUES ('fits', '{}')")
    database.close()


def test_backend_names_are_never_given_twice(tmp_path: Path) -> None:
    given: list[str] = []
    for _ in range(3):
        database = open_database(tmp_path)
        names = BackendNames(database)
        given += [names.make("ns", "key") for _ in range(BLOCK + 5)]
        database.close()
    assert len(set(given)) == len(given)
    assert given[0] == "ns/1/key"


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    image = Image("a", Descriptor("type", sha256(b"x"), 1), {"k": "v"})
    with open_stores(tmp_path) as stores:
        made = stores.metadata.images(Scope("default")).create(image)
        stores.metadata.namespaces.update(Namespace("default", {"l": "1"}))
    with open_stores(tmp_path) as stores:
        assert stores.metadata.images(Scope("default")).get("a") == made
        assert stores.metadata.namespaces.get("default").labels == {"l": "1"}


def test_unknown_policy(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument), open_stores(tmp_path, policy="public"):
        pass


CHILD = """
    import sys
    from pathlib import Path
    from kontti.metadata.base import Image
    from kontti.namespaces import Scope
    from kontti.testing.content import put, sha256
    from kontti.values import Descriptor
    from tests.support.metadata import open_stores

    with open_stores(Path(sys.argv[1])) as stores:
        for number in range(10_000):
            data = f"blob {number}".encode()
            digest = put(stores.metadata.content(Scope("default")), f"ref {number}", data)
            target = Descriptor("type", digest, len(data))
            stores.metadata.images(Scope("default")).create(Image(f"image {number}", target))
            print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert child.stdout is not None
    with child, child.stdout:
        acknowledged = -1
        for line in child.stdout:
            acknowledged = int(line)
            if acknowledged == 25:
                child.send_signal(signal.SIGKILL)
    assert acknowledged >= 25
    with open_stores(tmp_path) as stores:
        content = stores.metadata.content(Scope("default"))
        images = {i.name: i.target for i in stores.metadata.images(Scope("default")).list()}
        for number in range(acknowledged + 1):
            with content.reader(images[f"image {number}"].digest) as reader:
                assert reader.read_at(0, 100) == f"blob {number}".encode()
        stores.metadata.collect()
        backend = {i.digest for i in stores.backend.walk()}
        assert backend == {t.digest for t in images.values()}
