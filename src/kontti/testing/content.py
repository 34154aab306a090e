"""What every content store must do: plain functions over a store, for any test runner.

    for check in CHECKS:
        check(make_store())

A check raises AssertionError where the store is not as it should be. Each uses names of its own,
so that one store can be held against all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator

from kontti.content.base import Store
from kontti.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unavailable,
)
from kontti.values import Digest

Check = Callable[[Store], None]


def sha256(data: bytes) -> Digest:
    """The digest of ``data``."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def put(store: Store, ref: str, data: bytes) -> Digest:
    """Make ``data`` a blob."""
    with store.writer(ref, len(data), sha256(data)) as writer:
        writer.write(data)
        return writer.commit(len(data), sha256(data))


@contextlib.contextmanager
def raises(wanted: type[Error], ending: str = "") -> Iterator[None]:
    """Hold the block to raising ``wanted`` with a message that ends so."""
    try:
        yield
    except wanted as error:
        message = error.message
    else:
        raise AssertionError(f"{wanted.__name__} was not raised")
    assert message.endswith(ending), f"{message!r} does not end in {ending!r}"


def check_blob_can_be_read(store: Store) -> None:
    """What was committed is what is read, from any offset."""
    data = b"read me " * 1000
    digest = put(store, "read", data)
    info = store.info(digest)
    assert (info.digest, info.size) == (digest, len(data))
    assert info.created_at > 0
    with store.reader(digest) as reader:
        assert reader.size == len(data)
        assert reader.read_at(0, len(data)) == data
        assert reader.read_at(5, 7) == data[5:12]
        assert reader.read_at(len(data) - 2, 10) == data[-2:]
        assert reader.read_at(len(data), 10) == b""
        assert data.startswith(reader.read_now(0, len(data) + 10))
        assert data[5:].startswith(reader.read_now(5, 7))
        assert reader.read_now(len(data), 10) == b""


def check_reader_outlives_blob(store: Store) -> None:
    """A blob that is removed while it is read is read to its end."""
    digest = put(store, "outlived", b"outlived")
    with store.reader(digest) as reader:
        store.delete(digest)
        assert reader.read_at(0, 100) == b"outlived"


def check_empty_blob(store: Store) -> None:
    """No bytes are a blob too."""
    with store.writer("empty") as writer:
        digest = writer.commit()
    assert digest == sha256(b"")
    assert store.info(digest).size == 0


def check_every_buffer_can_be_written(store: Store) -> None:
    """bytes, bytearray and memoryview are taken, also part by part."""
    with store.writer("buffers") as writer:
        assert writer.write(b"one") == 3
        assert writer.write(bytearray(b"two")) == 3
        assert writer.write(memoryview(b"xthreex")[1:6]) == 5
        assert writer.write(b"") == 0
        assert writer.status().offset == 11
        assert writer.digest() == sha256(b"onetwothree")
        assert writer.commit(11) == sha256(b"onetwothree")


def check_unknown_blob(store: Store) -> None:
    """Everything that names a blob says when there is none."""
    digest = sha256(b"nowhere")
    for call in (store.reader, store.info, store.delete):
        with raises(NotFound, f"{digest}: not found"):
            call(digest)


def check_digest_cannot_leave_the_store(store: Store) -> None:
    """A digest that was not parsed is refused, not used as a path."""
    for text in ("sha256:../../etc/passwd", "../x:abc", "sha256:", ""):
        for call in (store.reader, store.info, store.delete):
            with raises_any(InvalidArgument, NotFound):
                call(Digest(text))


@contextlib.contextmanager
def raises_any(*wanted: type[Error]) -> Iterator[None]:
    """Hold the block to raising one of ``wanted``."""
    try:
        yield
    except wanted:
        return
    raise AssertionError(f"none of {[w.__name__ for w in wanted]} was raised")


def check_existing_blob_is_refused(store: Store) -> None:
    """A blob that is there is not written again, and the ref is not left behind."""
    digest = put(store, "exists", b"exists")
    with raises(AlreadyExists, f"{digest}: already exists"):
        store.writer("exists-2", 6, digest)
    with store.writer("exists-3") as writer:
        writer.write(b"exists")
        with raises(AlreadyExists, f"{digest}: already exists"):
            writer.commit(6)
    with raises(NotFound):
        store.status("exists-3")


def check_wrong_size_is_refused(store: Store) -> None:
    """A commit of another size says both, and keeps the ingest."""
    with store.writer("size") as writer:
        writer.write(b"0123456789")
        with raises(
            FailedPrecondition, "unexpected commit size 10, expected 20: failed precondition"
        ):
            writer.commit(20)
    assert store.status("size").offset == 10
    store.abort("size")


def check_wrong_digest_is_refused(store: Store) -> None:
    """A commit of another digest says both; the writer can begin again."""
    good, bad = b"good bytes", b"evil bytes"
    with store.writer("digest", len(good), sha256(good)) as writer:
        writer.write(bad)
        ending = f"unexpected commit digest {sha256(bad)}, expected {sha256(good)}"
        with raises(FailedPrecondition, f"{ending}: failed precondition"):
            writer.commit(len(good), sha256(good))
        with raises(NotFound):
            store.info(sha256(bad))
        writer.truncate(0)
        writer.write(good)
        assert writer.commit(len(good), sha256(good)) == sha256(good)


def check_ingest_is_resumed(store: Store) -> None:
    """What was written before close is there, and part of the digest."""
    with store.writer("resume", 8) as writer:
        writer.write(b"half")
    with store.writer("resume", 8) as writer:
        status = writer.status()
        assert (status.ref, status.offset, status.total) == ("resume", 4, 8)
        writer.write(b"done")
        assert writer.commit(8) == sha256(b"halfdone")
    with raises(NotFound):
        store.status("resume")


def check_one_writer_for_a_ref(store: Store) -> None:
    """A second writer is told that the ref is locked, until the first closes."""
    with store.writer("locked") as writer:
        writer.write(b"mine")
        with raises(Unavailable, 'ref "locked" locked: unavailable'):
            store.writer("locked")
        with raises(Unavailable):
            store.abort("locked")
    with store.writer("locked") as writer:
        assert writer.status().offset == 4
    store.abort("locked")


def check_refs_are_any_text(store: Store) -> None:
    """A ref names no path, however it looks; an empty one is refused."""
    refs = ["../../escape", "a/b", "ä", "x" * 300, "sp ace", "."]
    for ref in refs:
        with store.writer(ref) as writer:
            writer.write(ref.encode())
    listed = {s.ref: s.offset for s in store.list_statuses()}
    assert all(listed.get(ref) == len(ref.encode()) for ref in refs), listed
    for ref in refs:
        store.abort(ref)
    with raises(InvalidArgument):
        store.writer("")


def check_statuses(store: Store) -> None:
    """Ingests are listed, found by ref, and gone after abort."""
    for ref in ("list-1", "list-2"):
        with store.writer(ref, 10) as writer:
            writer.write(b"12345")
    found = [s.ref for s in store.list_statuses(["ref==list-1"])]
    assert found == ["list-1"], found
    status = store.status("list-2")
    assert (status.offset, status.total) == (5, 10)
    assert 0 < status.started_at <= status.updated_at
    for ref in ("list-1", "list-2"):
        store.abort(ref)
        with raises(NotFound):
            store.status(ref)
        with raises(NotFound):
            store.abort(ref)


def check_truncate(store: Store) -> None:
    """Bytes can be dropped from the end; the digest follows."""
    with store.writer("truncate") as writer:
        writer.write(b"keep and drop")
        with raises_any(InvalidArgument, OutOfRange):
            writer.truncate(100)
        writer.truncate(4)
        assert writer.status().offset == 4
        writer.write(b" this")
        assert writer.commit() == sha256(b"keep this")


def check_closed_writer(store: Store) -> None:
    """A closed writer takes nothing, and closes again without complaint."""
    writer = store.writer("closed")
    writer.close()
    writer.close()
    for call in (lambda: writer.write(b"late"), writer.commit, lambda: writer.truncate(0)):
        with raises(FailedPrecondition):
            call()
    store.abort("closed")


def check_walk_and_delete(store: Store) -> None:
    """Blobs are listed, found by field, and gone after delete."""
    one, two = put(store, "walk-1", b"walk one"), put(store, "walk-2", b"walk two!")
    assert {one, two} <= {i.digest for i in store.walk()}
    assert [i.digest for i in store.walk([f'digest=="{one}"'])] == [one]
    assert two in {i.digest for i in store.walk(["size==9"])}
    with raises(InvalidArgument):
        list(store.walk(["digest=="]))
    store.delete(one)
    assert one not in {i.digest for i in store.walk()}
    with raises(NotFound):
        store.delete(one)


CHECKS: tuple[Check, ...] = (
    check_blob_can_be_read,
    check_reader_outlives_blob,
    check_empty_blob,
    check_every_buffer_can_be_written,
    check_unknown_blob,
    check_digest_cannot_leave_the_store,
    check_existing_blob_is_refused,
    check_wrong_size_is_refused,
    check_wrong_digest_is_refused,
    check_ingest_is_resumed,
    check_one_writer_for_a_ref,
    check_refs_are_any_text,
    check_statuses,
    check_truncate,
    check_closed_writer,
    check_walk_and_delete,
)
