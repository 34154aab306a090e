"""Content by namespace: the shipped checks, labels, leases, and what two namespaces share."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.content.base import Info, Store
from kontti.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable
from kontti.metadata.base import Namespace
from kontti.metadata.kept import MOST
from kontti.namespaces import Scope
from kontti.testing.content import CHECKS, Check, put, sha256
from kontti.values import Digest, Resource
from tests.support.metadata import Stores, open_stores

SCOPE = Scope("default")


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with open_stores(tmp_path) as stores:
        yield stores


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_conformance(check: Check, stores: Stores) -> None:
    check(stores.metadata.content(SCOPE))


def test_labels_are_kept_replaced_and_removed(stores: Stores) -> None:
    content = stores.metadata.content(SCOPE)
    with content.writer("labels") as writer:
        writer.write(b"labels")
        digest = writer.commit(labels={"a": "1", "b": "2", "none": ""})
    assert content.info(digest).labels == {"a": "1", "b": "2"}
    content.update(Info(digest, 0, labels={"a": "3", "b": "ignored"}), ["labels.a"])
    assert content.info(digest).labels == {"a": "3", "b": "2"}
    content.update(Info(digest, 0, labels={}), ["labels.b"])
    assert [i.digest for i in content.walk(["labels.a==3"])] == [digest]
    assert list(content.walk(["labels.b"])) == []
    updated = content.update(Info(digest, 0, labels={"c": "4"}))
    assert content.info(digest) == updated
    assert updated.labels == {"c": "4"}
    with pytest.raises(InvalidArgument, match='cannot update "size" field on content info'):
        content.update(Info(digest, 9), ["size"])
    with pytest.raises(InvalidArgument, match="maximum size"):
        content.update(Info(digest, 0, labels={"k": "v" * 5000}))
    with pytest.raises(NotFound):
        content.update(Info(sha256(b"other"), 0))


def test_blob_of_another_namespace_is_not_seen_until_asked_for(stores: Stores) -> None:
    one, two = (stores.metadata.content(Scope(n)) for n in ("one", "two"))
    digest = put(one, "ref", b"shared")
    with pytest.raises(NotFound, match=f"content digest {digest}: not found"):
        two.info(digest)
    with pytest.raises(NotFound):
        two.reader(digest)
    assert list(two.walk()) == []
    with pytest.raises(AlreadyExists):
        two.writer("other", 6, digest)
    assert two.info(digest).size == 6
    one.delete(digest)
    with two.reader(digest) as reader:
        assert reader.read_at(0, 10) == b"shared"
    two.delete(digest)
    assert list(stores.backend.walk()) == []
    assert two.list_statuses() == []


def test_blob_of_another_size_is_not_taken_over(stores: Stores) -> None:
    digest = put(stores.metadata.content(Scope("one")), "ref", b"shared")
    with stores.metadata.content(Scope("two")).writer("ref", 7, digest) as writer:
        assert writer.status().offset == 0


def test_isolated_namespaces_must_have_the_bytes(tmp_path: Path) -> None:
    with open_stores(tmp_path, policy="isolated") as stores:
        one, two, three = (stores.metadata.content(Scope(n)) for n in ("one", "two", "three"))
        digest = put(one, "ref", b"secret")
        with two.writer("ref", 6, digest) as writer:
            writer.write(b"secret")
            assert writer.commit(6, digest) == digest
        assert two.info(digest).size == 6
        stores.metadata.namespaces.update(
            Namespace("one", {"containerd.io/namespace.shareable": "true"})
        )
        with pytest.raises(AlreadyExists):
            three.writer("ref", 6, digest)
        assert three.info(digest).size == 6


def test_one_ref_in_two_namespaces_is_two_ingests(stores: Stores) -> None:
    one, two = (stores.metadata.content(Scope(n)) for n in ("one", "two"))
    with one.writer("ref") as first, two.writer("ref") as second:
        first.write(b"one")
        second.write(b"second")
    assert one.status("ref").offset == 3
    assert two.status("ref").offset == 6
    one.abort("ref")
    assert [s.ref for s in two.list_statuses()] == ["ref"]
    assert len(stores.backend.list_statuses()) == 1


def test_lease_holds_what_is_made_under_it(stores: Stores) -> None:
    stores.metadata.leases(SCOPE).create("l")
    content = stores.metadata.content(Scope("default", "l"))
    resources = stores.metadata.leases(SCOPE).list_resources
    with content.writer("ref", 4) as writer:
        writer.write(b"held")
        assert resources("l") == [Resource("ref", "ingests")]
        digest = writer.commit()
    assert resources("l") == [Resource(digest, "content")]
    stores.metadata.leases(SCOPE).delete("l")
    stores.metadata.leases(SCOPE).create("m")
    with pytest.raises(AlreadyExists):
        stores.metadata.content(Scope("default", "m")).writer("again", 4, digest)
    assert resources("m") == [Resource(digest, "content")]
    content.delete(digest)
    assert resources("m") == []


def test_unknown_lease_is_refused_before_anything_is_made(stores: Stores) -> None:
    content = stores.metadata.content(Scope("default", "gone"))
    with pytest.raises(NotFound, match='lease "gone": not found'):
        content.writer("ref")
    assert stores.backend.list_statuses() == []
    stores.metadata.leases(SCOPE).create("gone")
    with content.writer("ref") as writer:
        writer.write(b"x")
        stores.metadata.leases(SCOPE).delete("gone")
        with pytest.raises(NotFound, match='lease "gone": not found'):
            writer.commit()
    assert list(stores.backend.walk()) == []


def test_failed_open_leaves_no_ingest(stores: Stores) -> None:
    content = stores.metadata.content(SCOPE)
    with pytest.raises(InvalidArgument):
        content.writer("ref", -1)
    assert content.list_statuses() == []
    content.writer("ref").close()


def test_events_are_published_after_the_fact(stores: Stores) -> None:
    content = stores.metadata.content(SCOPE)
    digest = put(content, "ref", b"event")
    content.delete(digest)
    assert stores.topics() == ["/content/create", "/content/delete"]
    assert stores.events[0].namespace == "default"


def test_ref_is_free_after_its_writer_committed_or_closed(stores: Stores) -> None:
    content = stores.metadata.content(SCOPE)
    writer = content.writer("ref")
    with pytest.raises(Unavailable, match='ref "ref" locked: unavailable'):
        content.writer("ref")
    writer.write(b"one")
    writer.commit()
    other = content.writer("ref")
    writer.close()
    with pytest.raises(Unavailable):
        content.writer("ref")
    other.close()


def test_blob_deleted_while_another_namespace_takes_it_over(stores: Stores) -> None:
    """Whoever comes first, the second namespace has the blob or knows that it has to write it."""
    one, two = (stores.metadata.content(Scope(n)) for n in ("one", "two"))
    data = b"contended"
    for turn in range(30):
        digest = put(one, f"one-{turn}", data)
        barrier = threading.Barrier(2, timeout=30)
        thread = threading.Thread(target=_delete, args=(one, digest, barrier))
        thread.start()
        barrier.wait()
        _have(two, f"two-{turn}", data, digest)
        thread.join(30)
        with two.reader(digest) as reader:
            assert reader.read_at(0, 100) == data
        two.delete(digest)


def _delete(content: Store, digest: Digest, barrier: threading.Barrier) -> None:
    barrier.wait()
    content.delete(digest)


def _have(content: Store, ref: str, data: bytes, digest: Digest) -> None:
    try:
        put(content, ref, data)
    except AlreadyExists:
        pass
    assert digest == sha256(data)


def test_a_blob_read_in_pieces_is_opened_once(stores: Stores) -> None:
    content = stores.metadata.content(SCOPE)
    digest = put(content, "ref", b"in pieces")
    before = descriptors()
    found = set()
    for offset in range(9):
        with content.reader(digest) as reader:
            assert reader.read_at(offset, 1) == b"in pieces"[offset : offset + 1]
            assert reader.read_now(offset, 1) in (b"", b"in pieces"[offset : offset + 1])
            found |= descriptors() - before
    assert len(found) == 1
    with content.reader(digest) as one, content.reader(digest) as two:
        assert one.read_at(0, 2) == two.read_at(0, 2) == b"in"
    one.close()
    two.close()
    assert len(descriptors() - before) <= MOST


def test_a_blob_that_is_gone_is_not_read_from_what_was_kept(stores: Stores) -> None:
    one, two = (stores.metadata.content(Scope(name)) for name in ("one", "two"))
    digest = put(one, "ref", b"soon gone")
    before = descriptors()
    one.reader(digest).close()
    with pytest.raises(NotFound):
        two.reader(digest)
    one.delete(digest)
    assert descriptors() <= before
    with pytest.raises(NotFound):
        one.reader(digest)


def test_a_blob_whose_file_was_taken_away_is_missed(stores: Stores) -> None:
    content = stores.metadata.content(SCOPE)
    digest = put(content, "ref", b"taken")
    with content.reader(digest) as reader:
        path = reader.path
    assert path is not None
    os.unlink(path)
    with pytest.raises(NotFound):
        content.reader(digest)


def test_few_blobs_are_kept_open(stores: Stores) -> None:
    content = stores.metadata.content(SCOPE)
    digests = [put(content, f"ref-{number}", b"%d" % number) for number in range(3 * MOST)]
    before = descriptors()
    for digest in digests:
        content.reader(digest).close()
    assert len(descriptors() - before) == MOST
    stores.metadata.close()
    assert descriptors() <= before


def descriptors() -> set[str]:
    """What this process has open."""
    with os.scandir("/proc/self/fd") as found:
        names = [entry.name for entry in found]
    return {name for name in names if os.path.lexists(f"/proc/self/fd/{name}")}
