"""The Sandboxes store, and databases that are older than it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kontti.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from kontti.metadata.base import Sandbox
from kontti.metadata.schema import V1
from kontti.namespaces import Scope
from kontti.testing.content import put
from kontti.values import AnyValue
from tests.support.metadata import Stores, open_stores

SCOPE = Scope("default")
SANDBOX = Sandbox(
    id="pod",
    labels={"color": "red", "empty": ""},
    runtime="io.containerd.runc.v2",
    runtime_options=AnyValue("options", b"\x00\xff"),
    spec=AnyValue("spec", b"{}"),
    sandboxer="shim",
    extensions={"one": AnyValue("ext", b"\x01"), "two": AnyValue("ext", b"\x02")},
)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with open_stores(tmp_path) as stores:
        yield stores


def test_what_is_created_is_there_after_a_restart(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        made = stores.metadata.sandboxes(SCOPE).create(SANDBOX)
    assert made.created_at == made.updated_at > 0
    assert made == replace(
        SANDBOX, labels={"color": "red"}, created_at=made.created_at, updated_at=made.created_at
    )
    with open_stores(tmp_path) as stores:
        sandboxes = stores.metadata.sandboxes(SCOPE)
        assert sandboxes.get("pod") == made
        with pytest.raises(AlreadyExists, match='sandbox "pod": already exists'):
            sandboxes.create(SANDBOX)
        with pytest.raises(NotFound, match='sandbox "pod" in namespace "other": not found'):
            stores.metadata.sandboxes(Scope("other")).get("pod")
        sandboxes.delete("pod")
        with pytest.raises(NotFound):
            sandboxes.delete("pod")


@pytest.mark.parametrize("id", ["", "../up", "a/b", "x" * 77])
def test_ids_are_checked(stores: Stores, id: str) -> None:
    with pytest.raises(InvalidArgument, match="failed to validate sandbox: invalid sandbox ID"):
        stores.metadata.sandboxes(SCOPE).create(replace(SANDBOX, id=id))


def test_filters(stores: Stores) -> None:
    sandboxes = stores.metadata.sandboxes(SCOPE)
    for id, color in (("b", "red"), ("a", "red"), ("c", "blue")):
        sandboxes.create(replace(SANDBOX, id=id, labels={"color": color}))
    assert [s.id for s in sandboxes.list()] == ["a", "b", "c"]
    assert [s.id for s in sandboxes.list(["labels.color==red"])] == ["a", "b"]
    assert [s.id for s in sandboxes.list(["id==c", "id==a"])] == ["a", "c"]
    with pytest.raises(InvalidArgument):
        sandboxes.list(["id=="])


def test_updates_by_field(stores: Stores) -> None:
    sandboxes = stores.metadata.sandboxes(SCOPE)
    made = sandboxes.create(SANDBOX)
    new = Sandbox("pod", {"color": "blue", "x": "1"}, extensions={"one": AnyValue("e", b"9")})
    updated = sandboxes.update(new, ["labels.x", "extensions.one", "extensions.two"])
    assert updated.labels == {"color": "red", "x": "1"}
    assert updated.extensions == {"one": AnyValue("e", b"9")}
    assert updated.spec == made.spec
    assert updated.updated_at > made.updated_at
    spec = AnyValue("spec", b"[]")
    assert sandboxes.update(Sandbox("pod", spec=spec), ["spec"]).spec == spec
    other = sandboxes.update(Sandbox("pod", runtime="other"), ["runtime"])
    assert (other.runtime, other.runtime_options) == ("other", None)
    assert sandboxes.get("pod") == other
    with pytest.raises(InvalidArgument, match='cannot update "sandboxer" field on sandbox "pod"'):
        sandboxes.update(new, ["sandboxer"])
    with pytest.raises(NotFound):
        sandboxes.update(replace(new, id="none"), ["labels"])


def test_update_without_fields_keeps_the_runtime(stores: Stores) -> None:
    sandboxes = stores.metadata.sandboxes(SCOPE)
    sandboxes.create(SANDBOX)
    with pytest.raises(InvalidArgument, match=r"sandbox.Runtime.Name field is immutable"):
        sandboxes.update(replace(SANDBOX, runtime="other"))
    updated = sandboxes.update(Sandbox("pod", {"a": "b"}, runtime=SANDBOX.runtime))
    assert (updated.labels, updated.extensions, updated.spec) == ({"a": "b"}, {}, None)
    assert updated.sandboxer == "shim"


def test_its_labels_keep_content_until_it_goes(stores: Stores) -> None:
    content = stores.metadata.content(SCOPE)
    digest = put(content, "ref", b"blob")
    sandboxes = stores.metadata.sandboxes(SCOPE)
    sandboxes.create(replace(SANDBOX, labels={"containerd.io/gc.ref.content": digest}))
    stores.metadata.collect()
    assert content.info(digest).size == 4
    sandboxes.delete("pod")
    stores.metadata.collect()
    with pytest.raises(NotFound):
        content.info(digest)


def test_a_namespace_with_a_sandbox_stays(stores: Stores) -> None:
    stores.metadata.sandboxes(SCOPE).create(SANDBOX)
    with pytest.raises(FailedPrecondition, match="still has sandboxes"):
        stores.metadata.namespaces.delete("default")


def test_a_database_without_sandboxes_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "io.containerd.metadata.v1.sqlite" / "meta.db"
    path.parent.mkdir()
    old = sqlite3.connect(path)
    old.executescript(f"{V1} PRAGMA user_version=1;")
    old.execute("INSERT INTO namespaces VALUES ('kept', '{}')")
    old.commit()
    old.close()
    with open_stores(tmp_path) as stores:
        assert [n.name for n in stores.metadata.namespaces.list()] == ["kept"]
        assert stores.metadata.sandboxes(SCOPE).list() == []
        stores.metadata.sandboxes(SCOPE).create(SANDBOX)
