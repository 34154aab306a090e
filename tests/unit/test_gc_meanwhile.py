"""Records that are referred to while a collection is under way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.content.base import Info
from kontti.metadata import forget
from kontti.metadata.base import Image
from kontti.metadata.changes import Changes, recording
from kontti.metadata.gc import Node, Type
from kontti.metadata.marking import Found, find
from kontti.namespaces import Scope
from kontti.testing.content import put, sha256
from kontti.values import Descriptor, Digest, Resource
from tests.support.metadata import Stores, open_stores

PREFIX = "containerd.io/gc."
SCOPE = Scope("default")


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with open_stores(tmp_path) as made:
        yield made


def blob(stores: Stores, data: bytes, **refers: Digest) -> Digest:
    store = stores.metadata.content(SCOPE)
    digest = put(store, data.decode(), data)
    labels = {f"{PREFIX}ref.content.{name}": target for name, target in refers.items()}
    store.update(Info(digest, 0, labels=labels))
    return digest


def image(stores: Stores, name: str, target: Digest) -> None:
    stores.metadata.images(SCOPE).create(Image(name, Descriptor("type", target, 1)))


def found_dead(stores: Stores) -> tuple[Changes, Found, contextlib.ExitStack]:
    """A mark that has looked, and has not forgotten anything yet."""
    backing = stores.metadata._backing
    stack = contextlib.ExitStack()
    changes = stack.enter_context(recording(backing.database))
    with backing.database.read() as connection:
        return changes, find(connection), stack


def refer_by_image(stores: Stores, digest: Digest) -> None:
    image(stores, "late", digest)


def refer_by_label(stores: Stores, digest: Digest) -> None:
    kept = stores.metadata.images(SCOPE).get("kept").target.digest
    labels = {f"{PREFIX}ref.content.0": digest}
    stores.metadata.content(SCOPE).update(Info(kept, 0, labels=labels))


def refer_by_lease(stores: Stores, digest: Digest) -> None:
    leases = stores.metadata.leases(SCOPE)
    leases.create("late")
    leases.add_resource("late", Resource(digest, "content"))


def refer_by_root_label(stores: Stores, digest: Digest) -> None:
    stores.metadata.content(SCOPE).update(Info(digest, 0, labels={f"{PREFIX}root": "now"}))


@pytest.mark.parametrize(
    "refer", [refer_by_image, refer_by_label, refer_by_lease, refer_by_root_label]
)
@pytest.mark.parametrize("batch", [1, 100])
def test_what_is_referred_to_while_marking_is_kept(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, refer: Callable[..., None], batch: int
) -> None:
    """With all that it refers to; and what is not referred to goes."""
    monkeypatch.setattr(forget, "BATCH", batch)
    image(stores, "kept", blob(stores, b"kept"))
    leaf = blob(stores, b"leaf")
    manifest = blob(stores, b"manifest", first=leaf)
    blob(stores, b"garbage")
    changes, found, stack = found_dead(stores)
    with stack:
        assert len(found.dead) == 3
        refer(stores, manifest)
        garbage = forget.Garbage()
        forget.Forgetting(stores.metadata._backing, found, changes).into(garbage)
    assert [digest for _, digest in garbage.blobs] == [sha256(b"garbage")]
    content = stores.metadata.content(SCOPE)
    assert {info.digest for info in content.walk()} == {sha256(b"kept"), manifest, leaf}


def test_what_is_referred_to_between_batches_is_kept(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record goes before what it refers to, so who finds it finds all of it."""
    monkeypatch.setattr(forget, "BATCH", 1)
    leaves = [blob(stores, f"leaf {n}".encode()) for n in range(3)]
    labels = {f"n{n}": leaf for n, leaf in enumerate(leaves)}
    manifests = [blob(stores, f"manifest {n}".encode(), **labels) for n in range(2)]
    changes, found, stack = found_dead(stores)
    forgetting = forget.Forgetting(stores.metadata._backing, found, changes)
    batches = 0

    def between(_seconds: float) -> None:
        nonlocal batches
        batches += 1
        if batches == 1:
            left = {info.digest for info in stores.metadata.content(SCOPE).walk()}
            assert set(leaves) < left
            (still,) = left & set(manifests)
            image(stores, "late", still)

    monkeypatch.setattr(forget.time, "sleep", between)
    with stack:
        garbage = forget.Garbage()
        forgetting.into(garbage)
    assert batches == 4
    assert len(garbage.blobs) == 1
    assert len(list(stores.metadata.content(SCOPE).walk())) == 4


@given(st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=4)))
def test_referrers_go_before_what_they_refer_to(references: dict[int, list[int]]) -> None:
    nodes = {n: Node(Type.CONTENT, "n", str(n)) for n in range(10)}
    edges = {nodes[n]: [nodes[t] for t in targets if t > n] for n, targets in references.items()}
    dead = {node: ("n", node.key) for node in nodes.values()}
    order = forget.referrers_first(dead, edges)
    assert sorted(order) == sorted(dead)
    for node, targets in edges.items():
        assert all(order.index(node) < order.index(target) for target in targets)


def test_nothing_is_noted_when_no_collection_looks(stores: Stores) -> None:
    stores.metadata.collect()
    image(stores, "i", blob(stores, b"x"))
    with stores.metadata._backing.database.write() as connection:
        found = connection.execute("SELECT name FROM sqlite_temp_master").fetchall()
    assert found == []
