"""The local content store: the shipped checks, its files, and what a bad disk does."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest

from kontti.content.base import Info
from kontti.content.ingests import format_time, parse_time
from kontti.content.local import LocalStore
from kontti.content.locks import NamedLocks
from kontti.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    Unavailable,
)
from kontti.testing.content import CHECKS, Check, put, sha256
from kontti.values import Digest


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_conformance(check: Check, tmp_path: Path) -> None:
    check(LocalStore(str(tmp_path / "content")))


def test_layout_is_containerds(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    data = b"layout"
    with store.writer("my/ref", len(data)) as writer:
        writer.write(data)
        ingest = tmp_path / "ingest" / hashlib.sha256(b"my/ref").hexdigest()
        assert {f.name for f in ingest.iterdir()} == {
            "data",
            "ref",
            "startedat",
            "updatedat",
            "total",
        }
        assert (ingest / "ref").read_text() == "my/ref"
        assert (ingest / "total").read_text() == "6"
        writer.commit()
    blob = tmp_path / "blobs" / "sha256" / sha256(data).encoded
    assert blob.read_bytes() == data
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444
    assert list((tmp_path / "ingest").iterdir()) == []
    with store.reader(sha256(data)) as reader:
        assert reader.path == str(blob)


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    digest = put(store, "kept", b"kept")
    with store.writer("part", 100) as writer:
        writer.write(b"part")
    torn = tmp_path / "ingest" / ("0" * 64)
    torn.mkdir()
    (tmp_path / "blobs" / "sha256" / "not-a-digest").write_text("")
    again = LocalStore(str(tmp_path))
    assert [i.digest for i in again.walk()] == [digest]
    assert [s.ref for s in again.list_statuses()] == ["part"]
    assert not torn.exists()
    with again.writer("part", 100) as writer:
        assert writer.digest() == sha256(b"part")


def test_an_ingest_without_its_data_is_cleared(tmp_path: Path) -> None:
    """So it is left by a process that ended while it made, committed or removed it."""
    store = LocalStore(str(tmp_path))
    store.writer("torn", 9).close()
    (ingest,) = (tmp_path / "ingest").iterdir()
    (ingest / "data").unlink()
    assert LocalStore(str(tmp_path)).list_statuses() == []
    assert not ingest.exists()


def test_ingest_without_its_notes_is_resumed(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    with store.writer("torn", 9) as writer:
        writer.write(b"torn")
    (ingest,) = (tmp_path / "ingest").iterdir()
    (ingest / "startedat").write_text("yesterday")
    (ingest / "total").write_text("many")
    status = store.status("torn")
    assert (status.offset, status.total) == (4, 0)
    assert status.started_at > 0


def test_total_cannot_change(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.writer("total", 10).close()
    with pytest.raises(FailedPrecondition, match="20 != 10"):
        store.writer("total", 20)
    store.writer("total", 10).close()


def test_labels_are_not_kept_here(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    digest = put(store, "labels", b"labels")
    with pytest.raises(FailedPrecondition, match="immutable content store"):
        store.update(Info(digest, 0, labels={"a": "b"}), ["labels.a"])


def test_other_algorithms(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    digest = Digest(f"sha512:{hashlib.sha512(b'long').hexdigest()}")
    with store.writer("known", 4, digest) as writer:
        writer.write(b"long")
        assert writer.commit(4, digest) == digest
    assert store.info(digest).size == 4
    store.delete(digest)
    with store.writer("told late") as writer:
        writer.write(b"long")
        assert writer.commit(0, digest) == digest
    assert (tmp_path / "blobs" / "sha512" / digest.encoded).exists()


def test_full_disk_leaves_the_ingest_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(str(tmp_path))
    with store.writer("full") as writer:
        writer.write(b"before ")
        real, calls = os.write, iter((3, -1))

        def short(fd: int, data: bytes) -> int:
            if next(calls) < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(fd, bytes(data)[:3])

        monkeypatch.setattr(os, "write", short)
        with pytest.raises(ResourceExhausted, match="No space left on device"):
            writer.write(b"too much")
        monkeypatch.undo()
        assert writer.status().offset == 7
        writer.write(b"after")
        assert writer.commit() == sha256(b"before after")


def test_full_disk_leaves_no_new_ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(str(tmp_path))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kontti.content.ingests.Ingest._put", full)
    with pytest.raises(ResourceExhausted):
        store.writer("full", 1)
    monkeypatch.undo()
    assert list((tmp_path / "ingest").iterdir()) == []
    store.writer("full", 1).close()


def test_failed_sync_is_not_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(str(tmp_path))

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    writer = store.writer("sync")
    writer.write(b"lost")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(Internal, match="Input/output error"):
        writer.commit()
    monkeypatch.undo()
    assert list(store.walk()) == []
    assert store.list_statuses() == []
    with store.writer("sync") as again:
        assert again.status().offset == 0


def test_file_and_directory_are_synced_before_commit_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(str(tmp_path))
    real, synced = os.fsync, []

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    with store.writer("synced") as writer:
        writer.write(b"synced")
        monkeypatch.setattr(os, "fsync", note)
        writer.commit()
    assert [Path(p).name for p in synced] == ["data", "sha256"]


def test_two_refs_of_one_blob_race(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    outcomes: list[str] = []
    barrier = threading.Barrier(8, timeout=30)

    def run(number: int) -> None:
        with store.writer(f"race-{number}") as writer:
            writer.write(b"same bytes")
            barrier.wait()
            try:
                writer.commit()
            except AlreadyExists:
                outcomes.append("exists")
            else:
                outcomes.append("made")

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["exists"] * 7 + ["made"]
    assert list((tmp_path / "ingest").iterdir()) == []


def test_times_survive_their_text() -> None:
    for stamp in (0, 1, 1_700_000_000_123_456_789):
        assert parse_time(format_time(stamp)) == stamp
    assert parse_time("2023-11-14T22:13:20.5Z") == 1_700_000_000_500_000_000
    assert parse_time("2023-99-14T22:13:20Z") == 0


def test_named_locks_wait_no_longer_than_told() -> None:
    locks = NamedLocks()
    with locks.hold("a", "b"):
        with pytest.raises(Unavailable), locks.hold("b", timeout=0):
            pass
        with locks.hold("c", timeout=0):
            pass
    with locks.hold("b", "a", timeout=0):
        pass
