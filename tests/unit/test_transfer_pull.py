"""Pulling from servers that behave and that do not, into stores in memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from kontti.errors import (
    Canceled,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from kontti.images.identity import chain_ids
from kontti.namespaces import Scope
from kontti.registry.hosts import HostOptions, configured
from kontti.registry.resolver import Resolver
from kontti.registry.retry import Retries
from kontti.registry.session import Session
from kontti.transfer.base import Pulled, PullOptions, Selection, Unpacking
from kontti.transfer.flights import Flights
from kontti.transfer.parts import Parts
from kontti.transfer.progress import Progress, Reporter
from kontti.transfer.pull import pull
from kontti.transfer.unpack import Layer, Unpacker
from kontti.values import Descriptor, Digest, Platform
from tests.support.images import Image, build, digest_of
from tests.support.stores import MemoryApplier, MemoryStores, sha256
from tests.support.web import Answer, Asked, Repository, Web, serving

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SCOPE = Scope("default")
TARS = [b"first layer" * 1000, b"second layer" * 1000]


def served(*images: Image) -> Repository:
    """A registry with the images; the first is ``latest``."""
    blobs = {d: b for image in images for d, b in image.blobs.items()}
    types = {image.digest: MANIFEST for image in images}
    return Repository(dict(blobs), {"latest": images[0].digest}, types)


def add_index(repository: Repository, entries: list[dict[str, object]]) -> str:
    """An index of ``entries`` as ``latest``."""
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    repository.blobs[digest_of(data)] = data
    repository.media_types[digest_of(data)] = INDEX
    repository.tags["latest"] = digest_of(data)
    return digest_of(data)


def entry(image: Image, **platform: str) -> dict[str, object]:
    return {**image.manifest, "platform": platform}


@dataclass
class Bench:
    """A client of a server, with stores in memory."""

    web: Web
    stores: MemoryStores = field(default_factory=MemoryStores)
    told: list[Progress] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.applier = MemoryApplier(self.stores)
        self.parts = Parts(self.stores, lambda scope: self.applier)

    @property
    def name(self) -> str:
        return f"{self.web.host}/library/busybox:latest"

    def pull(
        self, options: PullOptions | None = None, progress: Callable[[Progress], None] | None = None
    ) -> Pulled:
        hosts = configured(HostOptions(plain_http=True))
        with Session(hosts, retries=Retries(2), sleep=lambda seconds: None) as session:
            resolver = Resolver(session)
            tell = progress or self.told.append
            return pull(self.parts, SCOPE, resolver, self.name, options, progress=tell)

    def events(self) -> list[str]:
        return [p.event for p in self.told]

    def assert_nothing_half_made(self) -> None:
        assert self.stores.lease_store.records == {}
        assert self.stores.content_store.held == set()
        assert all(k.startswith("sha256:") for k in self.stores.snapshot_store.infos)
        assert self.stores.image_store.records == {}


@contextmanager
def bench(behaviour: Callable[[Asked], Answer]) -> Iterator[Bench]:
    with serving(behaviour) as web:
        yield Bench(web)


def artifact(config_type: str, layer_type: str, extra: str) -> Image:
    """As an image, but of other types; it has a third blob that is no layer."""
    made = build(TARS)
    text = made.blobs[made.digest].decode()
    text = text.replace("application/vnd.oci.image.config.v1+json", config_type)
    text = text.replace("application/vnd.oci.image.layer.v1.tar+gzip", layer_type)
    document = json.loads(text)
    note = b"a note"
    described = {"mediaType": extra, "digest": digest_of(note), "size": len(note)}
    data = json.dumps({**document, "layers": [*document["layers"], described]}).encode()
    blobs = {d: b for d, b in made.blobs.items() if d != made.digest}
    blobs |= {digest_of(data): data, digest_of(note): note}
    manifest = {**made.manifest, "digest": digest_of(data), "size": len(data)}
    return Image(blobs, manifest, made.config_digest, made.layer_digests)


# what a pull makes


def test_other_types_are_unpacked_where_an_entry_names_them() -> None:
    image = artifact("application/x-config", "application/x-layer+gzip", "text/plain")
    usual = Unpacking(platform=Platform("linux", "amd64"))
    named = replace(
        usual, config_type="application/x-config", layer_types=("application/x-layer+gzip",)
    )
    for options, count in (
        (usual, 0),
        (replace(named, config_type=""), 0),
        (replace(named, config_type="application/y-config"), 0),
        (replace(named, layer_types=()), 0),
        (named, 2),
    ):
        with bench(served(image)) as it:
            it.pull(PullOptions(unpack=options))
            assert len(it.stores.snapshot_store.committed()) == count
            # what is not unpacked is fetched all the same
            assert set(it.stores.content_store.blobs) == set(image.blobs)
    with bench(served(build(TARS))) as it:
        it.pull(PullOptions(unpack=named))
        assert it.stores.snapshot_store.committed() == []


def test_a_differ_that_is_named_applies_the_layers() -> None:
    with bench(served(build(TARS))) as it:
        other = MemoryApplier(it.stores)
        it.parts = replace(it.parts, differs={"other": lambda scope: other})
        it.pull(PullOptions(unpack=Unpacking(differ="other")))
        assert (len(other.applied), it.applier.applied) == (2, [])
        with pytest.raises(NotFound, match="differ 'third'"):
            it.pull(PullOptions(unpack=Unpacking(differ="third")))


def test_an_image_is_recorded_complete_and_unpacked() -> None:
    image = build(TARS)
    with bench(served(image)) as it:
        pulled = it.pull(PullOptions(labels={"a": "b"}))
    content, snapshots = it.stores.content_store, it.stores.snapshot_store
    assert content.blobs == image.blobs
    assert pulled.image == it.stores.image_store.records[it.name]
    assert (pulled.image.target.digest, pulled.image.labels) == (image.digest, {"a": "b"})
    chain = chain_ids([sha256(tar) for tar in TARS])
    assert snapshots.committed() == list(chain)
    assert snapshots.trees[chain[-1]] == TARS
    assert [u.chain_id for u in pulled.unpacked] == [chain[-1]]
    assert it.stores.lease_store.made == 1
    assert it.stores.lease_store.records == {}
    assert all(it.stores.leased)


def test_labels_keep_it_and_say_where_it_came_from() -> None:
    image = build(TARS)
    with bench(served(image)) as it:
        it.pull()
    content = it.stores.content_store
    source = {"containerd.io/distribution.source.127.0.0.1": "library/busybox"}
    assert content.labels(image.digest) == source | {
        "containerd.io/gc.ref.content.config": image.config_digest,
        "containerd.io/gc.ref.content.l.0": image.layer_digests[0],
        "containerd.io/gc.ref.content.l.1": image.layer_digests[1],
    }
    chain = chain_ids([sha256(tar) for tar in TARS])
    assert content.labels(image.config_digest) == source | {
        "containerd.io/gc.ref.snapshot.overlayfs": chain[-1]
    }
    assert content.labels(image.layer_digests[1]) == source | {
        "containerd.io/uncompressed": sha256(TARS[1])
    }
    assert it.stores.snapshot_store.infos[chain[1]].labels == {
        "containerd.io/snapshot.ref": chain[1]
    }


def test_a_second_pull_does_nothing_twice() -> None:
    image = build(TARS)
    with bench(served(image)) as it:
        it.pull()
        asked, applied = len(it.web.asked), list(it.applier.applied)
        it.pull()
        assert it.web.paths()[asked:] == ["HEAD /v2/library/busybox/manifests/latest"]
    assert it.applier.applied == applied
    assert it.events().count("already exists") == 4


def test_a_moved_tag_moves_the_image() -> None:
    old, new = build(TARS), build(TARS[:1])
    repository = served(old, new)
    with bench(repository) as it:
        it.pull()
        repository.tags["latest"] = new.digest
        assert it.pull().image.target.digest == new.digest
    assert it.stores.image_store.records[it.name].target.digest == new.digest


def test_progress_is_told() -> None:
    image = build(TARS)
    with bench(served(image)) as it:
        it.pull()
    events = it.events()
    assert events[0] == f"Resolving from OCI Registry ({it.name})"
    assert events[-2:] == ["saved", f"Completed pull from OCI Registry ({it.name})"]
    layer = [p for p in it.told if p.name == f"layer-{image.layer_digests[0]}"]
    assert [p.event for p in layer] == ["downloading", "complete", "extracting", "extracted"]
    assert layer[1].progress == layer[1].total == len(image.blobs[image.layer_digests[0]])


def test_layers_may_stay_packed() -> None:
    with bench(served(build(TARS))) as it:
        assert it.pull(PullOptions(unpack=None)).unpacked == ()
    assert it.stores.snapshot_store.infos == {}


def test_an_image_without_layers() -> None:
    with bench(served(build([]))) as it:
        assert [u.chain_id for u in it.pull().unpacked] == [""]


def test_a_lease_that_the_caller_has_is_used() -> None:
    with (
        bench(served(build(TARS))) as it,
        Session(configured(HostOptions(plain_http=True))) as session,
    ):
        pull(it.parts, Scope("default", "mine"), Resolver(session), it.name)
    assert it.stores.lease_store.made == 0
    assert set(it.stores.leased) == {"mine"}


# platforms


def two_platforms() -> tuple[Repository, Image, Image]:
    here, there = build(TARS), build([b"for another machine"])
    repository = served(here, there)
    add_index(
        repository,
        [
            entry(there, os="linux", architecture="s390x"),
            entry(here, os="linux", architecture="amd64"),
        ],
    )
    return repository, here, there


@pytest.fixture(autouse=True)
def on_amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Platform("linux", "amd64")
    monkeypatch.setattr("kontti.transfer.selection.default", lambda: host)


def test_only_this_machines_layers_but_all_metadata() -> None:
    repository, here, there = two_platforms()
    with bench(repository) as it:
        pulled = it.pull()
    assert [u.manifest.digest for u in pulled.unpacked] == [here.digest]
    assert there.digest in it.stores.content_store.blobs
    assert there.config_digest in it.stores.content_store.blobs
    assert there.layer_digests[0] not in it.stores.content_store.blobs


def test_metadata_of_others_can_be_left_out() -> None:
    repository, here, there = two_platforms()
    with bench(repository) as it:
        it.pull(PullOptions(skip_metadata=True))
    assert there.digest not in it.stores.content_store.blobs
    root = it.stores.image_store.records[it.name].target.digest
    labels = it.stores.content_store.labels(root)
    assert labels["containerd.io/gc.ref.content.m.0"] == there.digest
    assert labels["containerd.io/gc.ref.content.m.1"] == here.digest


@pytest.mark.parametrize(
    ("select", "count"),
    [
        (Selection(all_platforms=True), 2),
        (Selection((Platform("linux", "s390x"),)), 1),
        (Selection((Platform("linux", "s390x"), Platform("linux", "amd64"))), 2),
    ],
)
def test_platforms_that_are_asked_for(select: Selection, count: int) -> None:
    repository, _, there = two_platforms()
    with bench(repository) as it:
        pulled = it.pull(PullOptions(select=select))
    assert len(pulled.unpacked) == count
    assert there.layer_digests[0] in it.stores.content_store.blobs


def test_no_platform_matches() -> None:
    repository, _, there = two_platforms()
    add_index(repository, [entry(there, os="linux", architecture="s390x")])
    with bench(repository) as it, pytest.raises(NotFound, match="no match for platform"):
        it.pull()
    it.assert_nothing_half_made()


def test_attestations_are_not_unpacked() -> None:
    repository, here, there = two_platforms()
    note = entry(there, os="unknown", architecture="unknown")
    note["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    add_index(repository, [note, entry(here, os="linux", architecture="amd64")])
    with bench(repository) as it:
        pulled = it.pull(PullOptions(select=Selection(all_platforms=True)))
    assert [u.manifest.digest for u in pulled.unpacked] == [here.digest]


# hostile and broken servers


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
@pytest.mark.parametrize("how", ["same length", "longer", "shorter", "gone"])
def test_bytes_that_are_not_the_digests(which: str, how: str) -> None:
    image = build(TARS)
    digests = {
        "manifest": image.digest,
        "config": image.config_digest,
        "layer": image.layer_digests[1],
    }
    digest = digests[which]
    good = image.blobs[digest]
    bad = {"same length": b"x" * len(good), "longer": good + b"x", "shorter": good[:-1]}
    repository = served(image)

    def behave(asked: Asked) -> Answer:
        if asked.method == "GET" and asked.path.endswith(digest):
            return Answer(404) if how == "gone" else Answer(200, {}, bad[how])
        return repository(asked)

    with bench(behave) as it, pytest.raises(Error) as caught:
        it.pull()
    assert isinstance(caught.value, NotFound if how == "gone" else FailedPrecondition)
    it.assert_nothing_half_made()
    assert digest not in it.stores.content_store.blobs
    assert it.stores.content_store.ingests == {}


def test_a_broken_download_is_resumed_by_the_next_pull() -> None:
    image = build([b"".join(i.to_bytes(4, "big") for i in range(200_000))])
    digest, repository = image.layer_digests[0], served(image)
    half = len(image.blobs[digest]) // 2

    def breaks(asked: Asked) -> Answer:
        answer = repository(asked)
        if not asked.path.endswith(digest):
            return answer
        return (
            Answer(500)
            if "range" in asked.headers
            else Answer(200, answer.headers, answer.body[:half], len(answer.body))
        )

    with bench(breaks) as it:
        with pytest.raises(Unavailable):
            it.pull()
        assert len(it.stores.content_store.ingests[f"layer-{digest}"]) == half
        it.assert_nothing_half_made()
        it.web.behaviour = repository
        it.pull()
        ranges = [a.headers.get("range") for a in it.web.asked if a.path.endswith(digest)]
        assert ranges[-1] == f"bytes={half}-"
    assert it.stores.content_store.blobs[Digest(digest)] == image.blobs[digest]


def test_a_bad_beginning_that_was_left_is_fetched_again() -> None:
    image = build(TARS)
    with bench(served(image)) as it:
        digest = image.layer_digests[0]
        it.stores.content_store.ingests[f"layer-{digest}"] = bytearray(b"junk")
        it.pull()
    assert it.stores.content_store.blobs == image.blobs


def test_an_ingest_longer_than_the_blob_is_begun_again() -> None:
    image = build(TARS)
    with bench(served(image)) as it:
        digest = image.layer_digests[0]
        it.stores.content_store.ingests[f"layer-{digest}"] = bytearray(1 << 20)
        it.pull()
    assert it.stores.content_store.blobs == image.blobs


def test_a_layer_that_the_config_does_not_name() -> None:
    image = build(TARS)
    other = build([TARS[0], b"not what was promised"])
    manifest = json.loads(image.blobs[image.digest])
    manifest["layers"] = json.loads(other.blobs[other.digest])["layers"]
    data = json.dumps(manifest).encode()
    repository = served(image, other)
    repository.blobs[digest_of(data)] = data
    repository.media_types[digest_of(data)] = MANIFEST
    repository.tags["latest"] = digest_of(data)
    with (
        bench(repository) as it,
        pytest.raises(FailedPrecondition, match="wrong diff id calculated on extraction"),
    ):
        it.pull()
    it.assert_nothing_half_made()
    assert it.stores.snapshot_store.committed() == [sha256(TARS[0])]


def test_a_layer_that_cannot_be_applied() -> None:
    image = build(TARS)
    with bench(served(image)) as it:
        it.applier.fail = image.layer_digests[1]
        with pytest.raises(InvalidArgument, match="failed to extract layer"):
            it.pull()
        it.assert_nothing_half_made()
        it.applier.fail = ""
        it.pull()
    assert it.applier.applied == list(image.layer_digests)


def test_more_layers_than_diff_ids() -> None:
    image = build(TARS)
    manifest = json.loads(image.blobs[image.digest])
    manifest["layers"].append(manifest["layers"][0])
    data = json.dumps(manifest).encode()
    repository = served(image)
    repository.blobs[digest_of(data)] = data
    repository.media_types[digest_of(data)] = MANIFEST
    repository.tags["latest"] = digest_of(data)
    with bench(repository) as it, pytest.raises(InvalidArgument, match="layers and diffIDs"):
        it.pull()
    it.assert_nothing_half_made()


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b'{"schemaVersion":2}', b'{"config":1,"layers":2}', b"[" * 100_000],
)
def test_manifests_that_are_none(data: bytes) -> None:
    repository = Repository(
        {digest_of(data): data}, {"latest": digest_of(data)}, {digest_of(data): MANIFEST}
    )
    with bench(repository) as it, pytest.raises(Error):
        it.pull()
    it.assert_nothing_half_made()


def test_a_web_page_is_no_image() -> None:
    data = b"<html>log in first</html>"
    repository = Repository(
        {digest_of(data): data}, {"latest": digest_of(data)}, {digest_of(data): "text/html"}
    )
    with bench(repository) as it, pytest.raises(NotFound, match="unexpected media type text/html"):
        it.pull()


def test_indexes_within_indexes_without_end() -> None:
    repository = served(build(TARS))
    digest = repository.tags["latest"]
    size, kind = len(repository.blobs[digest]), MANIFEST
    for _ in range(20):
        item: dict[str, object] = {"mediaType": kind, "digest": digest, "size": size}
        digest = add_index(repository, [item])
        size, kind = len(repository.blobs[digest]), INDEX
    with bench(repository) as it, pytest.raises(FailedPrecondition, match="too many blobs"):
        it.pull()
    it.assert_nothing_half_made()


def test_a_manifest_that_claims_to_be_huge() -> None:
    repository, here, _ = two_platforms()
    item = entry(here, os="linux", architecture="amd64")
    item["size"] = 1 << 40
    add_index(repository, [item])
    with bench(repository) as it, pytest.raises(InvalidArgument, match="too large"):
        it.pull()
    it.assert_nothing_half_made()


def test_an_error_of_the_callback_cancels() -> None:
    def give_up(progress: Progress) -> None:
        if progress.event == "downloading" and progress.name.startswith("layer-"):
            raise Canceled("by the user")

    with bench(served(build(TARS))) as it, pytest.raises(Canceled, match="by the user"):
        it.pull(progress=give_up)
    it.assert_nothing_half_made()


# at the same time


def test_two_pulls_at_once_fetch_each_blob_once() -> None:
    image = build(TARS)
    repository = served(image)
    together = threading.Barrier(2, timeout=10)

    def behave(asked: Asked) -> Answer:
        if asked.method == "HEAD":
            together.wait()
        return repository(asked)

    with bench(behave) as it:
        threads = [threading.Thread(target=it.pull) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        gets = [p for p in it.web.paths() if p.startswith("GET")]
        assert sorted(gets) == sorted(set(gets))
    assert sorted(it.applier.applied) == sorted(image.layer_digests)
    assert it.stores.content_store.blobs == image.blobs
    assert len(it.parts.flights) == 0


def test_a_flight_that_takes_too_long() -> None:
    flights = Flights(wait_seconds=0.0)
    with flights.hold("a"), pytest.raises(Unavailable), flights.hold("a"):
        pass
    with flights.hold("a"):
        assert len(flights) == 1
    assert len(flights) == 0


def test_hints_for_remote_snapshotters_reach_them() -> None:
    stores = MemoryStores()
    applier = MemoryApplier(stores)
    image = build(TARS[:1])
    for blob in image.blobs.values():
        stores.content_store.put(blob)
    options = Unpacking(labels={"containerd.io/snapshot/cri.image-ref": "x"})
    parts = Parts(stores, lambda scope: applier)
    unpacker: Unpacker = parts.unpacker(SCOPE, options, Reporter()).unpacker
    unpacker.unpack(
        (_layer(image, {"containerd.io/snapshot/hint": "1", "other": "2"}),), _config(image)
    )
    labels = stores.snapshot_store.infos[sha256(TARS[0])].labels
    assert labels == {
        "containerd.io/snapshot/hint": "1",
        "containerd.io/snapshot/cri.image-ref": "x",
        "containerd.io/snapshot.ref": sha256(TARS[0]),
    }


def _layer(image: Image, annotations: Mapping[str, str]) -> Layer:
    digest = Digest(image.layer_digests[0])
    kind = "application/vnd.oci.image.layer.v1.tar+gzip"
    descriptor = Descriptor(kind, digest, len(image.blobs[digest]), annotations)
    diff_id = sha256(TARS[0])
    return Layer(descriptor, diff_id, diff_id, "")


def _config(image: Image) -> Descriptor:
    kind = "application/vnd.oci.image.config.v1+json"
    return Descriptor(kind, Digest(image.config_digest), len(image.blobs[image.config_digest]))
