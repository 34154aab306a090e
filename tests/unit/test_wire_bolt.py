"""Reading bolt files."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import DataLoss, InvalidArgument
from kontti.wire.bolt import Bucket, Database
from tests.support.bolt import PAGE, Tree, branch_page, database, leaf_page, meta_page, of_tree

KEYS = st.binary(min_size=1, max_size=8)
TREES = st.recursive(
    st.binary(max_size=20), lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def opened(data: bytes) -> Bucket:
    return Database(memoryview(data)).root


def tree_of(bucket: Bucket) -> Tree:
    return {
        key: tree_of(found) if isinstance(found, Bucket) else found for key, found in bucket.items()
    }


@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_what_is_in_a_file_is_read(tree: Tree) -> None:
    root = opened(of_tree(tree))
    assert tree_of(root) == tree
    for key, value in tree.items():
        found = root.find(key)
        assert (tree_of(found) if isinstance(found, Bucket) else found) == value
    assert root.find(b"no such key, it is too long") is None


def test_a_tree_of_pages() -> None:
    keys = [f"key{number:03}".encode() for number in range(300)]
    leaves = [
        leaf_page(4 + index, [(0, key, b"v" + key) for key in keys[index * 100 :][:100]])
        for index in range(3)
    ]
    root = branch_page(3, [(keys[index * 100], 4 + index) for index in range(3)])
    bucket = opened(database([root, *leaves]))
    assert [key for key, _ in bucket.items()] == keys
    assert all(bucket.find(key) == b"v" + key for key in keys)
    assert bucket.find(b"key") is None
    assert bucket.find(b"key0995") is None
    assert bucket.find(b"z") is None


def test_the_newer_meta_page_that_is_whole_counts() -> None:
    pages = [leaf_page(3, [(0, b"old", b"")]), leaf_page(4, [(0, b"new", b"")])]
    newer, older = meta_page(0, 4, 9), meta_page(1, 3, 8)
    rest = database(pages)[2 * PAGE :]
    assert [key for key, _ in opened(newer + older + rest).items()] == [b"new"]
    torn = newer[:40] + b"\xff" + newer[41:]
    assert [key for key, _ in opened(torn + older + rest).items()] == [b"old"]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", InvalidArgument, "not a database"),
        (b"SQLite format 3\0" * 1000, InvalidArgument, "not a database"),
        (meta_page(0, 3, 1)[:60], DataLoss, "no meta page"),
    ],
)
def test_files_that_are_none(data: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        opened(data)


def circle() -> bytes:
    """Branches that name themselves, twice each."""
    return database(
        [branch_page(3, [(b"a", 4), (b"b", 4)]), branch_page(4, [(b"a", 3), (b"b", 3)])]
    )


def wide_circle() -> bytes:
    """A bucket that holds itself, in many places."""
    inner = struct.pack("<QQ", 3, 0)
    return database([leaf_page(3, [(1, bytes((65 + n,)), inner) for n in range(20)])])


@pytest.mark.parametrize(
    "data",
    [
        circle(),
        wide_circle(),
        database([branch_page(3, [(b"a", 1 << 40)])]),
        database([leaf_page(5, [])]),
        database([struct.pack("<QHHI", 3, 2, 60000, 0).ljust(PAGE, b"\0")]),
        database([struct.pack("<QHHI", 3, 2, 1, 1 << 31).ljust(PAGE, b"\0")]),
        database([struct.pack("<QHHIIIII", 3, 2, 1, 0, 0, 16, 1 << 31, 1).ljust(PAGE, b"\0")]),
        database([leaf_page(3, [(1, b"bucket", b"short")])]),
        database([struct.pack("<QHHI", 3, 16, 0, 0).ljust(PAGE, b"\0")]),
    ],
)
def test_damage_is_told_and_ends(data: bytes) -> None:
    with pytest.raises(DataLoss):
        walk(opened(data))


def walk(bucket: Bucket) -> None:
    for _key, found in bucket.items():  # noqa: PERF102 - a bucket is no dict
        if isinstance(found, Bucket):
            walk(found)


@given(st.data())
def test_any_damage_is_an_error_of_ours_or_none(data: st.DataObject) -> None:
    whole = bytearray(of_tree({b"v1": {b"a": {b"labels": {b"x": b"y"}}, b"b": b"value"}}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(3 * PAGE, 3 * PAGE + 200))] = data.draw(st.integers(0, 255))
    try:
        walk(opened(bytes(whole)))
    except (DataLoss, InvalidArgument):
        pass
