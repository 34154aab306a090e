"""What a snapshotter knows of its snapshots: whole or not at all, whatever fails on the way."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from kontti.snapshots.base import Info, Kind, Usage
from kontti.snapshots.records import Record, Records


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records(str(tmp_path / "metadata.db"))
    yield made
    made.close()


def create(records: Records, name: str, parent: str = "", kind: Kind = Kind.ACTIVE) -> Record:
    return records.create(kind, name, parent, {}, lambda number, parents: None)[0]


def commit(records: Records, name: str, parent: str = "") -> int:
    made = create(records, f"{name}-key", parent)
    records.commit(name, made, {}, Usage(1, 2), None)
    return made.id


def test_a_chain_is_from_the_nearest_parent_to_the_first(records: Records) -> None:
    numbers = [commit(records, "0")]
    numbers += [commit(records, str(name), str(name - 1)) for name in range(1, 200)]
    record, parents = records.chain("199")
    assert (record.info.parent, record.id) == ("198", numbers[-1])
    assert parents == numbers[-2::-1]
    info, above = records.numbered(numbers[2])
    assert (info.name, info.kind, above) == ("2", Kind.COMMITTED, [numbers[1], numbers[0]])


def test_a_directory_that_cannot_be_made_leaves_no_record(records: Records) -> None:
    commit(records, "base")
    seen = []

    def fail(number: int, parents: list[int]) -> None:
        seen.append((number, parents))
        raise OSError("no room")

    for _ in range(2):
        with pytest.raises(OSError, match="no room"):
            records.create(Kind.ACTIVE, "key", "base", {}, fail)
    assert seen == [(2, [1]), (2, [1])]
    with pytest.raises(NotFound, match="snapshot key does not exist: not found"):
        records.get("key")
    # its name and its number are free
    assert create(records, "key", "base").id == 2


def test_a_number_is_not_used_again_once_its_snapshot_was_there(records: Records) -> None:
    assert create(records, "one").id == 1
    assert records.remove("one") == 1
    assert create(records, "two").id == 2
    assert records.removed() == [1]
    records.forget_removed([1])
    assert records.removed() == []


def test_one_that_was_prepared_anew_is_not_what_was_measured(records: Records) -> None:
    measured = create(records, "key")
    records.remove("key")
    again = create(records, "key")
    with pytest.raises(NotFound, match="snapshot key does not exist"):
        records.commit("name", measured, {}, Usage(), None)
    assert records.get("key").id == again.id


def test_words_for_clients(records: Records) -> None:
    commit(records, "base")
    create(records, "active", "base")
    with pytest.raises(AlreadyExists, match="snapshot active: already exists"):
        create(records, "active")
    with pytest.raises(NotFound, match="parent snapshot none does not exist: not found"):
        create(records, "new", "none")
    with pytest.raises(InvalidArgument, match='parent "active" is not committed snapshot: invalid'):
        create(records, "new", "active")
    with pytest.raises(FailedPrecondition, match='cannot remove snapshot "base" with child'):
        records.remove("base")
    with pytest.raises(FailedPrecondition, match="snapshot base is not active"):
        records.commit("new", records.get("base"), {}, Usage(), None)
    with pytest.raises(InvalidArgument, match="cannot update 'parent' field on snapshot"):
        records.update(Info(Kind.ACTIVE, "active"), ["parent"])


def test_names_may_be_anything(records: Records) -> None:
    for name in ("a'b", 'a"b', "a;b--", "ä/ö 漢字", "%", "x" * 5000):
        commit(records, name)
        assert records.get(name).info.name == name
    assert len(list(records.walk(['name=="a\'b"']))) == 1


def test_the_kinds_in_use(records: Records) -> None:
    base, active = commit(records, "base"), create(records, "active", "base").id
    view = create(records, "view", "base", Kind.VIEW).id
    assert records.ids() == {base, active, view}
    assert records.ids(Kind.ACTIVE, Kind.VIEW) == {active, view}


def test_everything_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = str(tmp_path / "metadata.db")
    first = Records(path)
    commit(first, "base")
    create(first, "gone")
    first.remove("gone")
    # not closed: as after kill -9
    second = Records(path)
    assert [record.info.name for record in second.walk([])] == ["base"]
    assert (second.get("base").usage, second.removed()) == (Usage(1, 2), [2])
    second.close()
    first.close()


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough" * 200, b"SQLite format 3\0"]
)
def test_what_is_no_database_is_told_in_our_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(content)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(Error, match="snapshot records: file is not a database"):
        Records(str(path))
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert path.read_bytes() == content


def test_after_the_end_calls_fail_in_our_words(tmp_path: Path) -> None:
    records = Records(str(tmp_path / "metadata.db"))
    records.close()
    with pytest.raises(Error, match="closed database"):
        records.get("any")


def test_who_else_writes_is_waited_for_and_seen(records: Records, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "metadata.db", isolation_level=None)
    try:
        commit(records, "base")
        assert other.execute("SELECT name FROM snapshots").fetchall() == [("base",)]
    finally:
        other.close()
