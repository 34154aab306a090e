"""What is garbage: the graph against a plain model, and collections against real stores."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.content.base import Info
from kontti.errors import AlreadyExists, DeadlineExceeded, Internal, NotFound
from kontti.metadata.base import Container, Image
from kontti.metadata.gc import Graph, Node, Type, moment
from kontti.metadata.sweep import children_first, remove_orphans
from kontti.namespaces import Scope
from kontti.snapshots.base import Info as SnapshotInfo
from kontti.snapshots.base import Kind
from kontti.testing.content import put, sha256
from kontti.values import EMPTY, AnyValue, Descriptor, Digest, Mount, Resource
from tests.support.metadata import Stores, open_stores

PREFIX = "containerd.io/gc."
PAST, FUTURE = "2001-01-01T00:00:00Z", "2999-01-01T00:00:00+02:00"
SCOPE = Scope("default")


def content(key: str, namespace: str = "ns") -> Node:
    return Node(Type.CONTENT, namespace, key)


def snapshot(key: str) -> Node:
    return Node(Type.SNAPSHOT, "ns", f"overlayfs/{key}")


@pytest.mark.parametrize(
    ("label", "value", "wanted"),
    [
        ("ref.content", "x", content("x")),
        ("ref.content.config", "x", content("x")),
        ("ref.content.m.0", "x", content("x")),
        ("ref.content/a", "x", content("x")),
        ("ref.contents", "x", None),
        ("ref.snapshot.overlayfs", "x", snapshot("x")),
        ("ref.snapshot.overlayfs.1", "x", snapshot("x")),
        ("ref.snapshot.overlayfs/1", "x", snapshot("x")),
        ("ref.image", "x", Node(Type.IMAGE, "ns", "x")),
        ("ref.image.1", "x", Node(Type.IMAGE, "ns", "x")),
        ("other", "x", None),
    ],
)
def test_labels_refer(label: str, value: str, wanted: Node | None) -> None:
    graph = Graph(now=0)
    graph.add(content("root"), {PREFIX + "root": "1", PREFIX + label: value}, root=False)
    # a snapshotter's name may have the dot
    other = Node(Type.SNAPSHOT, "ns", "overlayfs.1/x")
    assert graph.reachable() - {content("root"), other} == ({wanted} if wanted else set())


def test_a_snapshotter_may_have_dots_in_its_name() -> None:
    graph = Graph(now=0)
    labels = {PREFIX + "root": "1", PREFIX + "ref.snapshot.org.example.lazy": "x"}
    graph.add(content("root"), labels, root=False)
    assert Node(Type.SNAPSHOT, "ns", "org.example.lazy/x") in graph.reachable()


@pytest.mark.parametrize(("label", "kept"), [("root", True), ("root.mine", True), ("rot", False)])
def test_a_root_by_label(label: str, kept: bool) -> None:
    graph = Graph(now=0)
    graph.add(content("x"), {PREFIX + label: "2020"}, root=False)
    assert (content("x") in graph.reachable()) is kept


def test_reference_stays_in_its_namespace() -> None:
    graph = Graph(now=0)
    graph.add(content("a"), {PREFIX + "root": "1", PREFIX + "ref.content": "b"}, root=False)
    graph.add(content("b"), {}, root=False)
    graph.add(content("b", "other"), {}, root=False)
    assert graph.reachable() == {content("a"), content("b")}


@pytest.mark.parametrize(
    ("label", "source"),
    [
        ("bref.content", content("owner")),
        ("bref.image.x", Node(Type.IMAGE, "ns", "owner")),
        ("bref.container", Node(Type.CONTAINER, "ns", "owner")),
        ("bref.snapshot.overlayfs", snapshot("owner")),
    ],
)
def test_back_references(label: str, source: Node) -> None:
    for alive in (True, False):
        graph = Graph(now=0)
        graph.add(content("kept"), {PREFIX + label: "owner"}, root=False)
        graph.add(source, {PREFIX + "root": "1"} if alive else {}, root=False)
        assert (content("kept") in graph.reachable()) is alive


def test_expiry() -> None:
    now = moment("2020-01-01T00:00:00Z")
    assert now == 1_577_836_800 * 10**9
    graph = Graph(now=now)
    graph.add(content("future"), {PREFIX + "expire": FUTURE}, root=False)
    graph.add(content("past"), {PREFIX + "expire": PAST}, root=False)
    for name, text in (("kept", FUTURE), ("gone", PAST), ("odd", "tomorrow"), ("bare", PAST[:-1])):
        graph.add(Node(Type.IMAGE, "ns", name), {PREFIX + "expire": text}, root=True)
    live = graph.reachable()
    assert {n.key for n in live} == {"future", "kept", "odd", "bare"}
    assert {n.key for n in graph.expired} == {"gone"}


def test_expired_image_that_is_referred_to_lives() -> None:
    graph = Graph(now=10**18)
    image = Node(Type.IMAGE, "ns", "i")
    graph.add(image, {PREFIX + "expire": PAST}, [content("target")], root=True)
    graph.add(content("root"), {PREFIX + "root": "1", PREFIX + "ref.image": "i"}, root=False)
    assert {image, content("target")} <= graph.reachable()


def test_flat_lease_holds_a_snapshot_with_its_parents_and_nothing_more() -> None:
    graph = Graph(now=0)
    for name, parent in (("top", "middle"), ("middle", "base"), ("base", "")):
        graph.add(snapshot(name), {PREFIX + "ref.content": f"of-{name}"}, root=False)
        if parent:
            graph.add_parent(snapshot(name), snapshot(parent))
    graph.add(content("blob"), {PREFIX + "ref.content": "child"}, root=False)
    held = [snapshot("top"), content("blob")]
    graph.add_lease("ns", "l", {PREFIX + "flat": "1"}, held)
    assert graph.reachable() == {*map(snapshot, ("top", "middle", "base")), content("blob")}
    graph.add_lease("ns", "m", {}, held)
    assert content("child") in graph.reachable()
    assert content("of-base") in graph.reachable()


HOUR = 3600 * 10**9
USED = {PREFIX + "cond.value-usedat": "2020-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("label", "value", "hours", "kept"),
    [
        ("snapshot.overlayfs", "usedat<2h|s", 1, True),
        ("snapshot.overlayfs", "usedat<2h|s", 3, False),
        ("snapshot.overlayfs/name", "usedat<2h|s", 1, True),
        ("snapshot/overlayfs", "usedat<2h|s", 1, True),
        ("snapshot.overlayfs", "usedat>2h|s", 3, True),
        ("snapshot.overlayfs", "usedat>2h|s", 1, False),
        ("snapshot.overlayfs", "usedat>9h,usedat<2h|s", 1, True),
        ("snapshot.overlayfs", "colour=red,usedat<90m|s", 1, True),
        ("snapshot.overlayfs", "usedat<=2h|s", 1, False),
        ("snapshot.overlayfs", "usedat=1h|s", 1, False),
        ("snapshot.overlayfs", "usedat<soon|s", 1, False),
        ("snapshot.overlayfs", "usedat<2h", 1, False),
        ("snapshot.overlayfs", "|s", 1, False),
        ("snapshot.native", "usedat<2h|s", 1, False),
        ("snapshot.overlayfs", "usedat<2h|t", 1, False),
    ],
)
def test_conditional_references(label: str, value: str, hours: int, kept: bool) -> None:
    for type, root in ((Type.CONTENT, False), (Type.IMAGE, True), (Type.CONTAINER, True)):
        graph = Graph(now=1_577_836_800 * 10**9 + hours * HOUR)
        labels = {PREFIX + "root": "1", PREFIX + f"cond.{label}": value}
        graph.add(Node(type, "ns", "owner"), labels, root=root)
        graph.add(snapshot("s"), USED, root=False)
        wanted = kept and type is not Type.CONTAINER
        assert (snapshot("s") in graph.reachable()) is wanted
        # what nobody says when it was used meets no condition
        graph = Graph(now=0)
        graph.add(Node(type, "ns", "owner"), labels, root=root)
        graph.add(snapshot("s"), {}, root=False)
        assert snapshot("s") not in graph.reachable()


def test_a_condition_is_no_reason_for_its_owner_to_live() -> None:
    graph = Graph(now=1_577_836_800 * 10**9)
    graph.add(content("owner"), {PREFIX + "cond.snapshot.overlayfs": "usedat<2h|s"}, root=False)
    graph.add(snapshot("s"), USED, root=False)
    assert graph.reachable() == set()


def test_an_ingest_keeps_the_blob_that_it_is_to_be() -> None:
    graph = Graph(now=100)
    for ref, expires in (("young", 101), ("old", 100), ("leased", 0)):
        graph.add_ingest(Node(Type.INGEST, "ns", ref), f"blob-{ref}", expires)
    graph.add_lease("ns", "l", {PREFIX + "flat": "1"}, [Node(Type.INGEST, "ns", "leased")])
    live = graph.reachable()
    assert {n.key for n in live} == {"young", "leased", "blob-young", "blob-leased"}


def test_a_flat_lease_holds_an_image_with_its_target_and_nothing_more() -> None:
    for labels, more in (({PREFIX + "flat": "1"}, set()), ({}, {content("layer")})):
        graph = Graph(now=10**18)
        image = Node(Type.IMAGE, "ns", "i")
        graph.add(image, {PREFIX + "expire": PAST, PREFIX + "ref.content": "layer"}, root=True)
        graph.add_parent(image, content("target"))
        graph.add(content("target"), {PREFIX + "ref.content": "layer"}, root=False)
        graph.add_lease("ns", "l", labels, [image])
        assert graph.reachable() == {image, content("target")} | more


KEYS = st.sampled_from("abcdefgh")
NODES = [*map(content, "abc"), *map(snapshot, "abc"), *(Node(Type.IMAGE, "ns", k) for k in "abc")]
LABELLED = st.fixed_dictionaries(
    {
        "root": st.booleans(),
        "expire": st.sampled_from(["", PAST, FUTURE]),
        "used": st.booleans(),
        "refers": st.lists(st.sampled_from(NODES), max_size=2),
        "back": st.lists(st.sampled_from(NODES), max_size=1),
        "cond": st.lists(st.tuples(st.sampled_from("<>"), st.sampled_from("abc")), max_size=1),
        "parent": st.sampled_from([None, "a", "b", "c"]),
    }
)


def named(kind: str, node: Node, number: int) -> tuple[str, str]:
    """The label that refers to a node."""
    names = {Type.CONTENT: "content", Type.IMAGE: "image", Type.SNAPSHOT: "snapshot.overlayfs"}
    return f"{PREFIX}{kind}.{names[node.type]}/{number}", node.key.removeprefix("overlayfs/")


def labels_of(one: Mapping[str, Any]) -> dict[str, str]:
    found = dict(named("ref", node, n) for n, node in enumerate(one["refers"]))
    found |= dict(named("bref", node, n) for n, node in enumerate(one["back"]))
    for op, key in one["cond"]:
        found[PREFIX + "cond.snapshot.overlayfs"] = f"usedat{op}2h|{key}"
    found |= {PREFIX + "root": "1"} if one["root"] else {}
    found |= {PREFIX + "expire": one["expire"]} if one["expire"] else {}
    return found | (USED if one["used"] else {})


def model(
    objects: Mapping[Node, Mapping[str, Any]], held: list[Node], flat: list[Node]
) -> set[Node]:
    """What lives, by the rules, read one by one until nothing more is found.

    The clock stands an hour after ``used``.
    """

    def above(node: Node) -> set[Node]:
        parent = objects[node]["parent"] if node in objects else None
        if parent is None or node.type is Type.CONTENT:
            return set()
        return {snapshot(parent) if node.type is Type.SNAPSHOT else content(parent)}

    live = set(held)
    for node, one in objects.items():
        is_image = node.type is Type.IMAGE
        if one["expire"] != PAST if is_image else one["root"] or one["expire"] == FUTURE:
            live.add(node)
    only = set(flat)
    while True:
        more = {target for node in live for target in above(node)}
        for node, one in objects.items():
            more |= set(one["refers"]) if node in live else set()
            more |= {node} if live & set(one["back"]) else set()
            if node in live and node.type is not Type.SNAPSHOT:
                wanted = [snapshot(key) for op, key in one["cond"] if op == "<"]
                more |= {s for s in wanted if s in objects and objects[s]["used"]}
        stands = {target for node in only for target in above(node)}
        if more <= live and stands <= only:
            return live | only
        live, only = live | more, only | stands


@given(
    st.dictionaries(st.sampled_from(NODES), LABELLED),
    st.lists(st.sampled_from(NODES), max_size=1),
    st.lists(st.sampled_from(NODES), max_size=1),
)
def test_what_lives_is_what_the_rules_say(
    objects: dict[Node, dict[str, Any]], held: list[Node], flat: list[Node]
) -> None:
    graph = Graph(now=1_577_836_800 * 10**9 + HOUR)
    for node, one in objects.items():
        graph.add(node, labels_of(one), root=node.type is Type.IMAGE)
        if one["parent"] and node.type is not Type.CONTENT:
            above = snapshot if node.type is Type.SNAPSHOT else content
            graph.add_parent(node, above(one["parent"]))
    graph.add_lease("ns", "l", {}, held)
    graph.add_lease("ns", "m", {PREFIX + "flat": "1"}, flat)
    assert graph.reachable() == model(objects, held, flat)


@given(
    st.dictionaries(KEYS, st.tuples(st.booleans(), st.lists(KEYS, max_size=3))),
    st.lists(KEYS, max_size=2),
)
def test_what_is_reached_is_what_a_walk_reaches(
    objects: dict[str, tuple[bool, list[str]]], leased: list[str]
) -> None:
    graph = Graph(now=0)
    for key, (root, refers) in objects.items():
        labels = {f"{PREFIX}ref.content.{i}": r for i, r in enumerate(refers)}
        graph.add(content(key), labels | ({PREFIX + "root": "1"} if root else {}), root=False)
    graph.add_lease("ns", "l", {}, [content(k) for k in leased])
    wanted = {k for k, (root, _) in objects.items() if root} | set(leased)
    while more := {r for k in wanted for r in objects.get(k, (0, []))[1]} - wanted:
        wanted |= more
    assert graph.reachable() == {content(k) for k in wanted}


@given(st.dictionaries(KEYS, KEYS | st.just("")))
def test_children_go_before_parents(parents: dict[str, str]) -> None:
    ordered = children_first(parents)
    assert sorted(ordered) == sorted(parents)

    def circular(name: str) -> bool:
        seen = []
        while (name := parents.get(name, "")) and name not in seen:
            seen.append(name)
        return bool(name)

    for name, parent in parents.items():
        if parent in parents and not circular(name):
            assert ordered.index(name) < ordered.index(parent)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with open_stores(tmp_path) as stores:
        yield stores


def blob(stores: Stores, data: bytes, scope: Scope = SCOPE, **refers: Digest) -> Digest:
    store = stores.metadata.content(scope)
    digest = put(store, data.decode(), data)
    labels = {f"{PREFIX}ref.content.{name}": target for name, target in refers.items()}
    store.update(Info(digest, 0, labels=labels))
    return digest


def image(stores: Stores, name: str, target: Digest, **labels: str) -> None:
    descriptor = Descriptor("type", target, 1)
    stores.metadata.images(SCOPE).create(Image(name, descriptor, labels))


def test_image_keeps_what_it_refers_to(stores: Stores) -> None:
    config, layer, other = (blob(stores, d) for d in (b"config", b"layer", b"other"))
    manifest = blob(stores, b"manifest", config=config, layer=layer)
    image(stores, "i", manifest)
    collected = stores.metadata.collect()
    assert (collected.blobs, collected.images, collected.snapshots) == (1, 0, 0)
    assert {i.digest for i in stores.backend.walk()} == {config, layer, manifest}
    assert stores.topics()[-1] == "/content/delete"
    stores.metadata.images(SCOPE).delete("i")
    assert stores.metadata.collect().blobs == 3
    assert list(stores.backend.walk()) == []
    with pytest.raises(NotFound):
        stores.metadata.content(SCOPE).info(other)


def test_container_keeps_its_snapshot_and_parents(stores: Stores) -> None:
    snapshots = stores.metadata.snapshots(SCOPE, "memory")
    for name, parent in (("base", ""), ("middle", "base"), ("stray", "base")):
        snapshots.prepare("x", parent)
        snapshots.commit(name, "x")
    snapshots.prepare("c", "middle")
    containers = stores.metadata.containers(SCOPE)
    spec = AnyValue("spec", b"{}")
    containers.create(
        Container("c", runtime="r", spec=spec, snapshotter="memory", snapshot_key="c")
    )
    assert stores.metadata.collect().snapshots == 1
    assert [i.name for i in snapshots.walk()] == ["base", "c", "middle"]
    containers.delete("c")
    assert stores.metadata.collect().snapshots == 3
    assert stores.snapshotter.infos == {}
    assert stores.snapshotter.cleanups


def test_snapshots_removed_by_name_are_freed_by_the_next_collection(stores: Stores) -> None:
    stores.metadata.collect()
    snapshots, before = stores.metadata.snapshots(SCOPE, "memory"), stores.snapshotter.cleanups
    snapshots.prepare("x")
    snapshots.remove("x")
    assert stores.metadata.collect().snapshots == 0
    assert stores.snapshotter.cleanups == before + 1
    stores.metadata.collect()
    assert stores.snapshotter.cleanups == before + 1


def test_a_snapshotter_that_does_not_answer_is_asked_once(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots, asked = stores.metadata.snapshots(SCOPE, "memory"), []

    def late(filters: Sequence[str] = ()) -> Iterator[SnapshotInfo]:
        asked.append(filters)
        raise DeadlineExceeded("late")

    for name in ("one", "two"):
        snapshots.prepare(name)
    stores.metadata.collect()
    snapshots.prepare("three")
    cleanups = stores.snapshotter.cleanups
    with monkeypatch.context() as patch:
        patch.setattr(stores.snapshotter, "walk", late)
        stores.metadata.collect()
    assert len(asked) == 1
    assert stores.snapshotter.cleanups == cleanups
    # the next collection finds it well
    stores.metadata.collect()
    assert stores.snapshotter.infos == {}
    assert stores.snapshotter.cleanups > cleanups


def test_lease_keeps_until_it_is_gone_or_expired(stores: Stores) -> None:
    leases = stores.metadata.leases(SCOPE)
    leases.create("l", {PREFIX + "expire": FUTURE})
    leased = Scope("default", "l")
    digest = put(stores.metadata.content(leased), "ref", b"leased")
    stores.metadata.snapshots(leased, "memory").prepare("s")
    assert stores.metadata.collect().blobs == 0
    leases.create("old", {PREFIX + "expire": PAST})
    leases.add_resource("old", Resource(digest, "content"))
    leases.delete("l")
    collected = stores.metadata.collect()
    assert (collected.blobs, collected.snapshots, collected.leases) == (1, 1, 1)
    assert leases.list() == []
    assert stores.snapshotter.infos == {}


def test_expired_image_goes_with_what_it_kept(stores: Stores) -> None:
    image(stores, "i", blob(stores, b"x"), **{PREFIX + "expire": PAST})
    collected = stores.metadata.collect()
    assert (collected.images, collected.blobs) == (1, 1)
    assert stores.metadata.images(SCOPE).list() == []
    assert "/images/delete" in stores.topics()


def test_an_expired_image_stays_while_a_lease_holds_it(stores: Stores) -> None:
    """The one that it was made under, as snapshots and blobs are."""
    digest = blob(stores, b"x")
    leases = stores.metadata.leases(SCOPE)
    leases.create("l")
    images = stores.metadata.images(Scope("default", "l"))
    images.create(Image("i", Descriptor("type", digest, 1), {PREFIX + "expire": PAST}))
    images.create(Image("j", Descriptor("type", digest, 1)))
    assert leases.list_resources("l") == [Resource("i", "images")]
    assert stores.metadata.collect().images == 0
    leases.delete("l")
    assert stores.metadata.collect().images == 1
    assert [found.name for found in images.list()] == ["j"]


def test_a_snapshot_is_kept_while_it_was_used_lately(stores: Stores) -> None:
    snapshots = stores.metadata.snapshots(SCOPE, "memory")
    image(stores, "i", blob(stores, b"x"), **{PREFIX + "cond.snapshot.memory": "usedat<1h|s"})
    lately = datetime.now(UTC).isoformat()
    snapshots.prepare("s", labels={PREFIX + "cond.value-usedat": lately})
    assert stores.metadata.collect().snapshots == 0
    snapshots.update(SnapshotInfo(Kind.ACTIVE, "s", labels=USED), [f"labels.{key}" for key in USED])
    assert stores.metadata.collect().snapshots == 1


def test_blob_stays_while_another_namespace_has_it(stores: Stores) -> None:
    digest = blob(stores, b"shared")
    other = Scope("other")
    stores.metadata.leases(other).create("l")
    stores.metadata.leases(other).add_resource("l", Resource(digest, "content"))
    with stores.metadata.content(other).writer("ref") as writer:
        writer.write(b"shared")
        writer.commit()
    assert stores.metadata.collect().blobs == 1
    with stores.metadata.content(other).reader(digest) as reader:
        assert reader.size == 6


def test_old_ingests_go_and_those_being_written_stay(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores.metadata.content(SCOPE)
    monkeypatch.setattr("kontti.metadata.content.INGEST_SECONDS", -1)
    store.writer("old").close()
    with store.writer("busy") as writer:
        writer.write(b"busy")
        monkeypatch.undo()
        store.writer("young").close()
        stores.metadata.collect()
        assert [s.ref for s in store.list_statuses()] == ["busy", "young"]
        writer.commit()
    assert len(stores.backend.list_statuses()) == 1


def test_ingests_with_a_lease_go_with_it_unless_opened_without_one(stores: Stores) -> None:
    stores.metadata.leases(SCOPE).create("l", {PREFIX + "expire": FUTURE})
    leased, store = stores.metadata.content(Scope("default", "l")), stores.metadata.content(SCOPE)
    for ref in ("leased", "resumable"):
        leased.writer(ref).close()
    store.writer("resumable").close()
    leased.writer("resumable").close()
    stores.metadata.collect()
    assert [s.ref for s in store.list_statuses()] == ["leased", "resumable"]
    stores.metadata.leases(SCOPE).delete("l")
    stores.metadata.collect()
    assert [s.ref for s in store.list_statuses()] == ["resumable"]


def test_orphans_are_told_from_what_is_being_made(stores: Stores) -> None:
    """Collections look through the backend between its change and the change's record."""
    snapshots = stores.metadata.snapshots(SCOPE, "memory")
    prepare, commit = stores.snapshotter.prepare, stores.snapshotter.commit

    def interrupted_prepare(
        key: str, parent: str = "", labels: Mapping[str, str] = EMPTY
    ) -> list[Mount]:
        made = prepare(key, parent, labels)
        remove_orphans(stores.metadata._backing)
        return made

    def interrupted_commit(
        name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        commit(name, key, labels, parent)
        remove_orphans(stores.metadata._backing)

    stores.snapshotter.prepare = interrupted_prepare  # type: ignore[method-assign]
    stores.snapshotter.commit = interrupted_commit  # type: ignore[method-assign]
    snapshots.prepare("active")
    snapshots.commit("base", "active")
    assert [i.name for i in snapshots.walk()] == ["base"]
    assert snapshots.mounts("base")


def test_one_broken_backend_stops_nothing_else(stores: Stores) -> None:
    snapshots = stores.metadata.snapshots(SCOPE, "memory")
    snapshots.prepare("s")
    blob(stores, b"garbage")
    stores.snapshotter.fail["walk"] = Internal("stuck")
    collected = stores.metadata.collect()
    assert (collected.blobs, collected.snapshots) == (1, 1)
    assert list(stores.backend.walk()) == []
    assert len(stores.snapshotter.infos) == 1
    stores.snapshotter.fail.clear()
    stores.metadata.collect()
    assert stores.snapshotter.infos == {}


def test_what_a_crash_left_in_the_backends_is_found_after_a_start(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        kept = blob(stores, b"kept")
        image(stores, "i", kept)
        stores.metadata.content(SCOPE).writer("resumable").close()
        orphan = put(stores.backend, "raw", b"orphan")
        stores.backend.writer("default/77/raw").close()
        snapshotter = stores.snapshotter
        snapshotter.prepare("default/78/raw")
    snapshotter.fail["walk"] = Internal("a plugin that does not answer yet")
    with open_stores(tmp_path, snapshotter=snapshotter) as stores:
        assert stores.metadata.images(SCOPE).get("i").target.digest == kept
        snapshotter.fail.clear()
        stores.metadata.collect()
        assert {i.digest for i in stores.backend.walk()} == {kept}
        assert [s.ref.partition("/")[2][-9:] for s in stores.backend.list_statuses()] == [
            "resumable"
        ]
        assert snapshotter.infos == {}
    assert orphan == sha256(b"orphan")


def test_nothing_that_is_referred_to_is_lost_while_collecting(stores: Stores) -> None:
    """Images come and go in several threads, sharing blobs, while collections run."""
    stop = threading.Event()
    problems: list[str] = []

    def collect() -> None:
        while not stop.is_set():
            stores.metadata.collect()

    def work(worker: int) -> None:
        for turn in range(25):
            try:
                _pull_and_remove(stores, worker, turn)
            except Exception as error:  # noqa: BLE001 - reported by the test's own thread
                problems.append(f"{worker}.{turn}: {error!r}")

    collector = threading.Thread(target=collect)
    workers = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in (collector, *workers):
        thread.start()
    for thread in workers:
        thread.join(90)
    stop.set()
    collector.join(30)
    assert problems == []
    stores.metadata.collect()
    assert list(stores.backend.walk()) == []
    assert stores.snapshotter.infos == {}


def _pull_and_remove(stores: Stores, worker: int, turn: int) -> None:
    scope = Scope(f"ns{worker % 2}", f"lease-{worker}")
    metadata = stores.metadata
    metadata.leases(scope).create(scope.lease)
    store, snapshots = metadata.content(scope), metadata.snapshots(scope, "memory")
    digests = [_have(stores, scope, f"{worker}-{turn}-{n}", f"blob {n}".encode()) for n in range(2)]
    labels = {f"{PREFIX}ref.content.{i}": d for i, d in enumerate(digests)}
    manifest = _have(stores, scope, f"{worker}-{turn}-m", f"manifest {worker}".encode())
    store.update(Info(manifest, 0, labels=labels))
    snapshots.prepare(f"active-{worker}")
    snapshots.commit(f"chain-{worker}", f"active-{worker}")
    chain = {f"{PREFIX}ref.snapshot.memory": f"chain-{worker}"}
    target = Descriptor("type", manifest, 1)
    metadata.images(scope).create(Image(f"image-{worker}", target, chain))
    metadata.leases(scope).delete(scope.lease)
    for digest in [manifest, *digests]:
        with store.reader(digest) as reader:
            assert reader.size
    assert snapshots.stat(f"chain-{worker}").kind is Kind.COMMITTED
    metadata.images(scope).delete(f"image-{worker}")
    try:
        snapshots.remove(f"chain-{worker}")
    except NotFound:
        pass


def _have(stores: Stores, scope: Scope, ref: str, data: bytes) -> Digest:
    try:
        return put(stores.metadata.content(scope), ref, data)
    except AlreadyExists:
        return sha256(data)
