"""Import, export, unpack and push over stores in memory."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from kontti.errors import Error, InvalidArgument, NotFound, PermissionDenied
from kontti.images.identity import chain_id
from kontti.namespaces import Scope
from kontti.registry.hosts import HostOptions, configured
from kontti.registry.session import Retries, Session
from kontti.transfer.base import Selection, Unpacking
from kontti.transfer.export import ExportOptions, export_images
from kontti.transfer.import_ import ImportOptions, ImportResult, has_prefix, import_archive, name_of
from kontti.transfer.parts import Parts, unpack
from kontti.transfer.progress import Progress
from kontti.transfer.push import PushOptions, push
from kontti.values import Descriptor, Digest, Platform
from tests.support.images import Image, archive, build, digest_of
from tests.support.stores import MemoryApplier, MemoryStores, sha256
from tests.support.web import Answer, Asked, Web, serving

SCOPE = Scope("default")
TARS = [b"first layer" * 1000, b"second layer" * 1000]
NAME = "example.org/busybox:1"
AMD64 = Platform("linux", "amd64")
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"


@pytest.fixture(autouse=True)
def on_amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kontti.transfer.selection.default", lambda: AMD64)
    monkeypatch.setattr("kontti.transfer.export.default", lambda: AMD64)


@dataclass
class Bench:
    """Stores in memory and what works on them."""

    stores: MemoryStores = field(default_factory=MemoryStores)
    told: list[Progress] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.applier = MemoryApplier(self.stores)
        self.parts = Parts(self.stores, lambda scope: self.applier)

    def import_(self, data: bytes, options: ImportOptions | None = None) -> ImportResult:
        tell = self.told.append
        return import_archive(self.parts, SCOPE, io.BytesIO(data).read, options, progress=tell)

    def export(self, *names: str, options: ExportOptions | None = None) -> bytes:
        out = io.BytesIO()
        export_images(self.stores, SCOPE, names, out.write, options)
        return out.getvalue()

    def assert_nothing_left(self) -> None:
        assert self.stores.image_store.records == {}
        assert self.stores.lease_store.records == {}
        assert self.stores.content_store.ingests == {}
        assert all(k.startswith("sha256:") for k in self.stores.snapshot_store.infos)


def descriptor(image: Image) -> Descriptor:
    return Descriptor(
        str(image.manifest["mediaType"]), Digest(image.digest), len(image.blobs[image.digest])
    )


# import


def test_an_archive_is_imported_and_unpacked() -> None:
    image, it = build(TARS), Bench()
    result = it.import_(archive(image, NAME), ImportOptions(labels={"a": "b"}))
    assert [(i.name, i.target.digest, i.labels) for i in result.images] == [
        (NAME, image.digest, {"a": "b"})
    ]
    top = chain_id([sha256(tar) for tar in TARS])
    assert [u.chain_id for u in result.unpacked] == [top]
    assert it.stores.snapshot_store.trees[top] == TARS
    labels = it.stores.content_store.labels(image.digest)
    assert labels["containerd.io/gc.ref.content.l.1"] == image.layer_digests[1]
    assert it.stores.lease_store.records == {}


@pytest.mark.parametrize(
    ("annotations", "options", "name"),
    [
        ({"io.containerd.image.name": "x/y:1"}, ImportOptions(prefix="p"), "x/y:1"),
        ({"org.opencontainers.image.ref.name": "1"}, ImportOptions(prefix="p"), "p:1"),
        ({"org.opencontainers.image.ref.name": "1"}, ImportOptions(), "1"),
        ({"org.opencontainers.image.ref.name": "x/y:1"}, ImportOptions(prefix="p"), "x/y:1"),
        ({"org.opencontainers.image.ref.name": "x/y:1"}, ImportOptions("p", True), ""),
        ({"org.opencontainers.image.ref.name": "p/y:1"}, ImportOptions("p", True), "p/y:1"),
        ({"org.opencontainers.image.ref.name": "px/y:1"}, ImportOptions("p", True), ""),
        ({}, ImportOptions(prefix="p"), ""),
    ],
)
def test_names(annotations: Mapping[str, str], options: ImportOptions, name: str) -> None:
    assert name_of(annotations, options) == name


def test_prefixes_end_at_a_border() -> None:
    assert has_prefix("a/b", "a/b")
    assert has_prefix("a/b@c", "a/b")
    assert not has_prefix("a/bc", "a/b")
    assert not has_prefix("a", "a/b")


def test_names_by_digest_and_of_the_index() -> None:
    image, it = build(TARS), Bench()
    options = ImportOptions("p", digests=True, index_name="whole")
    names = [i.name for i in it.import_(archive(image, NAME), options).images]
    assert names == ["whole", NAME, f"p@{image.digest}"]
    only = ImportOptions("p", digests=True, skip_digest_for_named=True)
    assert [i.name for i in Bench().import_(archive(image, NAME), only).images] == [NAME]


def test_an_image_may_stay_packed() -> None:
    it = Bench()
    assert it.import_(archive(build(TARS), NAME), ImportOptions(unpack=None)).unpacked == ()
    assert it.stores.snapshot_store.infos == {}


@pytest.mark.parametrize("keep", [0, 100, 2000, 5000])
def test_archives_that_end_early(keep: int) -> None:
    it = Bench()
    with pytest.raises(Error):
        it.import_(archive(build(TARS), NAME)[:keep])
    it.assert_nothing_left()


def test_an_archive_without_a_layer() -> None:
    image, it = build(TARS), Bench()
    blobs = {d: b for d, b in image.blobs.items() if d != image.layer_digests[1]}
    lacking = Image(blobs, image.manifest, image.config_digest, image.layer_digests)
    with pytest.raises(NotFound):
        it.import_(archive(lacking, NAME))
    it.assert_nothing_left()


def test_an_archive_without_its_manifest() -> None:
    image, it = build(TARS), Bench()
    blobs = {d: b for d, b in image.blobs.items() if d != image.digest}
    lacking = Image(blobs, image.manifest, image.config_digest, image.layer_digests)
    with pytest.raises(NotFound, match=image.digest):
        it.import_(archive(lacking, NAME))
    it.assert_nothing_left()


def test_a_layer_that_cannot_be_applied_leaves_no_record() -> None:
    image, it = build(TARS), Bench()
    it.applier.fail = image.layer_digests[0]
    with pytest.raises(InvalidArgument, match="failed to extract layer"):
        it.import_(archive(image, NAME))
    it.assert_nothing_left()


# unpack and export


def test_an_image_that_is_here_is_unpacked_once() -> None:
    image, it = build(TARS), Bench()
    it.import_(archive(image, NAME), ImportOptions(unpack=None))
    for _ in range(2):
        (done,) = unpack(it.parts, SCOPE, descriptor(image), Unpacking())
        assert done.chain_id == chain_id([sha256(tar) for tar in TARS])
    assert it.applier.applied == list(image.layer_digests)


def test_unpacking_what_is_not_here() -> None:
    it = Bench()
    with pytest.raises(NotFound):
        unpack(it.parts, SCOPE, descriptor(build(TARS)))


def test_what_is_exported_can_be_imported() -> None:
    image, it, other = build(TARS), Bench(), Bench()
    it.import_(archive(image, NAME))
    data = it.export(NAME)
    assert data == it.export(NAME)
    assert [i.name for i in other.import_(data).images] == [NAME]
    assert image.blobs.items() <= other.stores.content_store.blobs.items()
    assert it.stores.lease_store.records == {}


def test_exports_that_cannot_be_made_write_nothing() -> None:
    image, it = build(TARS), Bench()
    with pytest.raises(NotFound, match='image "example'):
        it.export(NAME)
    it.import_(archive(image, NAME))
    it.stores.content_store.delete(Digest(image.layer_digests[0]))
    out = io.BytesIO()
    with pytest.raises(NotFound):
        export_images(it.stores, SCOPE, [NAME], out.write)
    assert out.getvalue() == b""


# push


class Registry:
    """Takes uploads. ``refuse`` is a digest that it will not have."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.order: list[str] = []
        self.mounted: list[str] = []
        self.refuse = ""

    def __call__(self, asked: Asked) -> Answer:
        match asked.method:
            case "HEAD":
                return Answer(200 if asked.path.rpartition("/")[2] in self.content else 404)
            case "POST" if "mount" in asked.query:
                self.mounted += asked.query["from"]
                return Answer(202, {"Location": "/up"})
            case "POST":
                return Answer(202, {"Location": "/up"})
            case _:
                return self.take(asked)

    def take(self, asked: Asked) -> Answer:
        name = asked.query.get("digest", [asked.path.rpartition("/")[2]])[0]
        if name == self.refuse:
            return Answer(403)
        self.content[name] = asked.body
        self.order.append(name)
        return Answer(201)


@contextmanager
def pushing(registry: Registry) -> Iterator[tuple[Bench, Callable[..., None], Web]]:
    it = Bench()
    with (
        serving(registry) as web,
        Session(configured(HostOptions(plain_http=True)), retries=Retries(1)) as session,
    ):

        def run(target: Descriptor, options: PushOptions | None = None) -> None:
            name, tell = f"{web.host}/a/b:latest", it.told.append
            push(it.stores, SCOPE, session, name, target, options=options, progress=tell)

        yield it, run, web


def put(it: Bench, *images: Image) -> None:
    for image in images:
        for blob in image.blobs.values():
            it.stores.content_store.put(blob)


def test_blobs_go_first_then_the_manifest_under_its_tag() -> None:
    registry, image = Registry(), build(TARS)
    with pushing(registry) as (it, run, _):
        put(it, image)
        run(descriptor(image))
    assert registry.order[-1] == "latest"
    assert registry.content["latest"] == image.blobs[image.digest]
    leaves = {image.config_digest, *image.layer_digests}
    assert {d: registry.content[d] for d in leaves} == {d: image.blobs[d] for d in leaves}
    labels = it.stores.content_store.labels(image.layer_digests[0])
    assert labels == {"containerd.io/distribution.source.127.0.0.1": "a/b"}


def test_what_is_there_is_not_sent_and_what_is_near_is_mounted() -> None:
    registry, image = Registry(), build(TARS)
    registry.content[image.layer_digests[0]] = b"there"
    source = {"containerd.io/distribution.source.127.0.0.1": "other/repo"}
    with pushing(registry) as (it, run, _):
        put(it, image)
        it.stores.content_store.put(image.blobs[image.layer_digests[1]], source)
        run(descriptor(image))
    assert registry.content[image.layer_digests[0]] == b"there"
    assert registry.mounted == ["other/repo"]


def index_of(it: Bench, *images: tuple[Image, str]) -> Descriptor:
    entries = [
        {**image.manifest, "platform": {"os": "linux", "architecture": arch}}
        for image, arch in images
    ]
    data = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    it.stores.content_store.put(data)
    return Descriptor("application/vnd.oci.image.index.v1+json", sha256(data), len(data))


def test_an_index_goes_after_its_manifests() -> None:
    registry, one, two = Registry(), build(TARS), build(TARS[:1])
    with pushing(registry) as (it, run, _):
        put(it, one, two)
        run(index_of(it, (one, "amd64"), (two, "s390x")))
    assert set(registry.order[-3:-1]) == {one.digest, two.digest}
    assert registry.order[-1] == "latest"


def test_one_platform_of_an_index() -> None:
    registry, one, two = Registry(), build(TARS), build(TARS[:1])
    with pushing(registry) as (it, run, _):
        put(it, one, two)
        wanted = PushOptions(Selection((Platform("linux", "s390x"),)))
        run(index_of(it, (one, "amd64"), (two, "s390x")), wanted)
    assert registry.content["latest"] == two.blobs[two.digest]


def test_missing_content_is_found_before_anything_is_sent() -> None:
    registry, image = Registry(), build(TARS)
    with pushing(registry) as (it, run, web):
        put(it, image)
        it.stores.content_store.delete(Digest(image.layer_digests[1]))
        with pytest.raises(NotFound, match=f"content digest {image.layer_digests[1]}"):
            run(descriptor(image))
        assert web.asked == []


def test_layers_that_may_not_be_distributed_stay() -> None:
    registry, image = Registry(), build(TARS)
    manifest = json.loads(image.blobs[image.digest])
    manifest["layers"][0]["mediaType"] = FOREIGN
    data = json.dumps(manifest).encode()
    blobs = {**image.blobs, digest_of(data): data}
    with pushing(registry) as (it, run, _):
        for blob in blobs.values():
            it.stores.content_store.put(blob)
        target = Descriptor(str(image.manifest["mediaType"]), sha256(data), len(data))
        run(target)
        assert image.layer_digests[0] not in registry.content
        run(target, PushOptions(allow_nondistributable=True))
        assert image.layer_digests[0] in registry.content


def test_a_registry_that_refuses_a_blob_gets_no_manifest() -> None:
    registry, image = Registry(), build(TARS)
    registry.refuse = image.layer_digests[0]
    with pushing(registry) as (it, run, _):
        put(it, image)
        with pytest.raises(PermissionDenied):
            run(descriptor(image))
    assert "latest" not in registry.content


def test_a_name_to_push_to_needs_a_tag() -> None:
    it = Bench()
    with Session(configured()) as session, pytest.raises(InvalidArgument, match="object required"):
        push(it.stores, SCOPE, session, "example.org/a", descriptor(build(TARS)))
