"""Snapshots by namespace: names, labels, leases, and backends that fail half-way."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kontti.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from kontti.namespaces import Scope
from kontti.snapshots.base import TARGET_LABEL, Info, Kind, Snapshotter
from kontti.values import EMPTY, Mount, Resource
from tests.support.metadata import MemorySnapshotter, Stores, open_stores

SCOPE = Scope("default")
ROOT = {"containerd.io/gc.root": "yes"}


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with open_stores(tmp_path) as stores:
        yield stores


@pytest.fixture
def snapshots(stores: Stores) -> Snapshotter:
    return stores.metadata.snapshots(SCOPE, "memory")


def committed(snapshots: Snapshotter, name: str, parent: str = "") -> None:
    snapshots.prepare(f"{name}-active", parent)
    snapshots.commit(name, f"{name}-active")


def test_life_of_a_snapshot(stores: Stores, snapshots: Snapshotter) -> None:
    committed(snapshots, "base")
    mounts = snapshots.prepare("work", "base", {"a": "1"})
    assert mounts == snapshots.mounts("work")
    info = snapshots.stat("work")
    assert (info.kind, info.name, info.parent) == (Kind.ACTIVE, "work", "base")
    assert info.labels == {"a": "1"}
    snapshots.view("look", "base")
    assert [(i.name, i.kind) for i in snapshots.walk()] == [
        ("base", Kind.COMMITTED),
        ("look", Kind.VIEW),
        ("work", Kind.ACTIVE),
    ]
    assert [i.name for i in snapshots.walk(["kind==active"])] == ["work"]
    assert [i.name for i in snapshots.walk(["parent==base,labels.a==1"])] == ["work"]
    assert snapshots.usage("work").size == 1
    with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child: failed"):
        snapshots.remove("base")
    for key in ("look", "work", "base"):
        snapshots.remove(key)
    assert stores.snapshotter.infos == {}
    assert stores.topics() == [
        "/snapshot/prepare",
        "/snapshot/commit",
        "/snapshot/prepare",
        *["/snapshot/remove"] * 3,
    ]


def test_namespaces_do_not_see_each_other(stores: Stores, snapshots: Snapshotter) -> None:
    other = stores.metadata.snapshots(Scope("other"), "memory")
    committed(snapshots, "base")
    for call in (other.stat, other.mounts, other.usage, other.remove):
        with pytest.raises(NotFound, match="snapshot base does not exist: not found"):
            call("base")
    with pytest.raises(NotFound, match="parent snapshot base does not exist: not found"):
        other.prepare("work", "base")
    committed(other, "base")
    assert len(stores.snapshotter.infos) == 2
    assert all(name.split("/")[0] in ("default", "other") for name in stores.snapshotter.infos)


def test_taken_names(snapshots: Snapshotter) -> None:
    committed(snapshots, "base")
    snapshots.prepare("work")
    for key in ("base", "work"):
        with pytest.raises(AlreadyExists, match=f'snapshot "{key}": already exists'):
            snapshots.prepare(key)
    with pytest.raises(AlreadyExists, match='snapshot "base": already exists'):
        snapshots.commit("base", "work")
    assert snapshots.stat("work").kind is Kind.ACTIVE
    with pytest.raises(NotFound, match="snapshot nothing does not exist: not found"):
        snapshots.commit("new", "nothing")
    with pytest.raises(FailedPrecondition):
        snapshots.commit("new", "base")
    with pytest.raises(FailedPrecondition):
        snapshots.prepare("new", "work")
    with pytest.raises(InvalidArgument):
        snapshots.prepare("")


def test_unknown_snapshotter(stores: Stores) -> None:
    with pytest.raises(InvalidArgument, match="snapshotter not loaded: zfs"):
        stores.metadata.snapshots(SCOPE, "zfs")


def test_commit_over_another_parent(snapshots: Snapshotter) -> None:
    committed(snapshots, "base")
    snapshots.prepare("work")
    with pytest.raises(NotFound, match="parent snapshot nothing does not exist"):
        snapshots.commit("top", "work", parent="nothing")
    snapshots.commit("top", "work", parent="base")
    assert snapshots.stat("top").parent == "base"
    with pytest.raises(FailedPrecondition):
        snapshots.remove("base")


def test_labels(stores: Stores, snapshots: Snapshotter) -> None:
    inherited = "containerd.io/snapshot/x"
    snapshots.prepare("work", labels={inherited: "1", "own": "2"})
    (backend,) = stores.snapshotter.infos.values()
    assert backend.labels == {inherited: "1"}
    wanted = Info(Kind.ACTIVE, "work", labels={inherited: "3", "new": "4"})
    updated = snapshots.update(wanted, [f"labels.{inherited}", "labels.new"])
    assert updated.labels == {inherited: "3", "own": "2", "new": "4"}
    assert snapshots.stat("work") == updated
    (backend,) = stores.snapshotter.infos.values()
    assert backend.labels == {inherited: "3"}
    snapshots.update(Info(Kind.ACTIVE, "work"), ["labels"])
    assert snapshots.stat("work").labels == {}
    assert next(iter(stores.snapshotter.infos.values())).labels == {}
    with pytest.raises(InvalidArgument, match='cannot update "parent" field on snapshot "work"'):
        snapshots.update(Info(Kind.ACTIVE, "work"), ["parent"])


def test_lease_follows_the_commit(stores: Stores) -> None:
    stores.metadata.leases(SCOPE).create("l")
    snapshots = stores.metadata.snapshots(Scope("default", "l"), "memory")
    resources = stores.metadata.leases(SCOPE).list_resources
    snapshots.prepare("work")
    assert resources("l") == [Resource("work", "snapshots/memory")]
    snapshots.commit("base", "work")
    assert resources("l") == [Resource("base", "snapshots/memory")]
    snapshots.view("look", "base")
    assert len(resources("l")) == 2
    snapshots.remove("look")
    snapshots.remove("base")
    assert resources("l") == []
    gone = stores.metadata.snapshots(Scope("default", "gone"), "memory")
    with pytest.raises(NotFound, match='lease "gone": not found'):
        gone.prepare("work")
    assert stores.snapshotter.infos == {}


def test_target_that_is_there_is_held_and_told(stores: Stores, snapshots: Snapshotter) -> None:
    committed(snapshots, "chain")
    stores.metadata.leases(SCOPE).create("l")
    leased = stores.metadata.snapshots(Scope("default", "l"), "memory")
    with pytest.raises(AlreadyExists, match='target snapshot "chain": already exists'):
        leased.prepare("extract", labels={TARGET_LABEL: "chain"})
    held = stores.metadata.leases(SCOPE).list_resources("l")
    assert held == [Resource("chain", "snapshots/memory")]


class RemoteSnapshotter(MemorySnapshotter):
    """Has every target already, as lazily pulling snapshotters do."""

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        target = labels.get(TARGET_LABEL)
        if not target:
            return super().prepare(key, parent, labels)
        name = f"remote-{target}"
        self.infos[name] = Info(Kind.COMMITTED, name, parent, labels)
        raise AlreadyExists(f"target snapshot {target}")


def test_target_that_a_remote_snapshotter_has(tmp_path: Path) -> None:
    with open_stores(tmp_path, snapshotter=RemoteSnapshotter()) as stores:
        for namespace in ("one", "two"):
            snapshots = stores.metadata.snapshots(Scope(namespace), "memory")
            with pytest.raises(AlreadyExists):
                snapshots.prepare("extract", labels={TARGET_LABEL: "chain"})
            assert snapshots.stat("chain").kind is Kind.COMMITTED
            snapshots.prepare("work", "chain")
            snapshots.remove("work")
        stores.metadata.snapshots(Scope("one"), "memory").remove("chain")
        assert "remote-chain" in stores.snapshotter.infos
        stores.metadata.snapshots(Scope("two"), "memory").remove("chain")
        assert stores.snapshotter.infos == {}


class CarelessSnapshotter(RemoteSnapshotter):
    """Prepares before it finds that it has the target, and leaves that."""

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        if labels.get(TARGET_LABEL):
            MemorySnapshotter.prepare(self, key, parent, labels)
        return super().prepare(key, parent, labels)


def test_what_a_remote_snapshotter_prepared_for_nothing(tmp_path: Path) -> None:
    with open_stores(tmp_path, snapshotter=CarelessSnapshotter()) as stores:
        snapshots = stores.metadata.snapshots(SCOPE, "memory")
        with pytest.raises(AlreadyExists):
            snapshots.prepare("extract", labels={TARGET_LABEL: "chain"})
        assert list(stores.snapshotter.infos) == ["remote-chain"]


class CollectedSnapshotter(RemoteSnapshotter):
    """Its first target is collected as soon as it was found."""

    def __init__(self) -> None:
        super().__init__()
        self.collected = False

    def stat(self, key: str) -> Info:
        if key in self.infos and not self.collected:
            self.collected = True
            del self.infos[key]
        return super().stat(key)


def test_a_target_that_is_collected_at_once(tmp_path: Path) -> None:
    with open_stores(tmp_path, snapshotter=CollectedSnapshotter()) as stores:
        snapshots = stores.metadata.snapshots(SCOPE, "memory")
        # so clients look for it, and try again
        with pytest.raises(AlreadyExists):
            snapshots.prepare("extract", labels={TARGET_LABEL: "chain"})
        with pytest.raises(NotFound):
            snapshots.stat("chain")
        with pytest.raises(AlreadyExists):
            snapshots.prepare("extract", labels={TARGET_LABEL: "chain"})
        assert snapshots.stat("chain").kind is Kind.COMMITTED


def test_backend_that_fails_leaves_nothing(stores: Stores, snapshots: Snapshotter) -> None:
    stores.snapshotter.fail["prepare"] = Internal("broken")
    with pytest.raises(Internal):
        snapshots.prepare("work")
    stores.snapshotter.fail.clear()
    snapshots.prepare("work")
    stores.snapshotter.fail["commit"] = Internal("broken")
    with pytest.raises(Internal):
        snapshots.commit("base", "work")
    assert snapshots.stat("work").kind is Kind.ACTIVE
    stores.snapshotter.fail = {"remove": Internal("broken")}
    snapshots.remove("work")
    assert list(snapshots.walk()) == []
    assert len(stores.snapshotter.infos) == 1
    stores.snapshotter.fail.clear()
    stores.metadata.collect()
    assert stores.snapshotter.infos == {}


class Killed(BaseException):
    """As good as the end of the process: nobody tidies up."""


class Dying(MemorySnapshotter):
    """Its first commit ends with the process, before the work or after it."""

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.before, self.killed = before, False

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        if self.killed:
            return super().commit(name, key, labels, parent)
        self.killed = True
        if not self.before:
            super().commit(name, key, labels, parent)
        raise Killed


def cut_short(folder: Path, backend: Dying, lease: str = "") -> None:
    """A commit of ``work`` to ``top`` over ``base`` that ends in the middle."""
    with open_stores(folder, snapshotter=backend) as stores:
        if lease:
            stores.metadata.leases(SCOPE).create(lease)
        snapshots = stores.metadata.snapshots(Scope("default", lease), "memory")
        snapshots.prepare("base-active", labels=ROOT)
        backend.killed = True
        snapshots.commit("base", "base-active", ROOT)
        snapshots.prepare("work", "base", ROOT)
        backend.killed = False
        with pytest.raises(Killed):
            snapshots.commit("top", "work", {**ROOT, "a": "1"})


def test_a_commit_that_the_backend_made_is_finished(tmp_path: Path) -> None:
    backend = Dying(before=False)
    cut_short(tmp_path, backend, "l")
    with open_stores(tmp_path, snapshotter=backend) as stores:
        stores.metadata.collect()
        snapshots = stores.metadata.snapshots(SCOPE, "memory")
        found = {i.name: (i.kind, i.parent, dict(i.labels)) for i in snapshots.walk()}
        assert found["top"] == (Kind.COMMITTED, "base", {**ROOT, "a": "1"})
        assert found.keys() == {"base", "top"}
        held = stores.metadata.leases(SCOPE).list_resources("l")
        assert {resource.id for resource in held} == {"base", "top"}
        assert stores.topics() == ["/snapshot/commit"]
        assert stores.metadata.unfinished("memory") == []
        snapshots.remove("top")
        snapshots.remove("base")
    assert backend.infos == {}


def test_a_commit_that_the_backend_did_not_make_is_nothing(tmp_path: Path) -> None:
    backend = Dying(before=True)
    cut_short(tmp_path, backend)
    with open_stores(tmp_path, snapshotter=backend) as stores:
        stores.metadata.collect()
        snapshots = stores.metadata.snapshots(SCOPE, "memory")
        assert {i.name for i in snapshots.walk()} == {"base", "work"}
        assert stores.metadata.unfinished("memory") == []
        snapshots.commit("top", "work")
        assert {i.name for i in snapshots.walk()} == {"base", "top"}


@pytest.mark.parametrize("how", ["taken", "lease", "removed"])
def test_a_commit_that_can_no_more_be_finished(tmp_path: Path, how: str) -> None:
    backend = Dying(before=False)
    cut_short(tmp_path, backend, "l" if how == "lease" else "")
    with open_stores(tmp_path, snapshotter=backend) as stores:
        snapshots = stores.metadata.snapshots(SCOPE, "memory")
        if how == "lease":
            stores.metadata.leases(SCOPE).delete("l")
        elif how == "removed":
            snapshots.remove("work")
        else:
            snapshots.prepare("other", "base", ROOT)
            snapshots.commit("top", "other", ROOT)
        stores.metadata.collect()
        names = {"base", "top"} if how == "taken" else {"base"}
        assert {i.name for i in snapshots.walk()} == names
        assert len(backend.infos) == len(names)
        with pytest.raises(NotFound):
            snapshots.stat("work")
        snapshots.prepare("work", "base", ROOT)


def test_a_backend_that_is_not_heard_is_asked_again(tmp_path: Path) -> None:
    """As a proxy that died in the middle: what is noted waits, and is no orphan."""
    backend = Dying(before=False)
    cut_short(tmp_path, backend)
    with open_stores(tmp_path, snapshotter=backend) as stores:
        backend.fail["stat"] = Unavailable("connection refused")
        stores.metadata.collect()
        assert len(backend.infos) == 2
        assert len(stores.metadata.unfinished("memory")) == 1
        backend.fail.clear()
        stores.metadata.collect()
        snapshots = stores.metadata.snapshots(SCOPE, "memory")
        assert {i.name for i in snapshots.walk()} == {"base", "top"}


def test_parent_removed_during_prepare(stores: Stores, snapshots: Snapshotter) -> None:
    committed(snapshots, "base")
    prepare = stores.snapshotter.prepare

    def slow(key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        made = prepare(key, parent, labels)
        snapshots.remove("base")
        return made

    stores.snapshotter.prepare = slow  # type: ignore[method-assign]
    with pytest.raises(NotFound, match="parent snapshot base does not exist"):
        snapshots.prepare("work", "base")
    assert list(snapshots.walk()) == []
    stores.metadata.collect()
    assert stores.snapshotter.infos == {}


def test_two_commits_of_one_name(stores: Stores, snapshots: Snapshotter) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(6, timeout=30)

    def run(key: str) -> None:
        snapshots.prepare(key)
        barrier.wait()
        try:
            snapshots.commit("chain", key)
        except AlreadyExists:
            outcomes.append(key)

    threads = [threading.Thread(target=run, args=(f"extract-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(outcomes) == 5
    left = {i.name: i.kind for i in snapshots.walk()}
    assert left == {"chain": Kind.COMMITTED, **dict.fromkeys(outcomes, Kind.ACTIVE)}
    assert len(stores.snapshotter.infos) == 6
