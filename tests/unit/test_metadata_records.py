"""Namespaces, images, containers and leases: what clients see, down to the words of errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kontti.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from kontti.metadata.base import Container, Image, Namespace
from kontti.namespaces import Scope
from kontti.testing.content import put, sha256
from kontti.values import AnyValue, Descriptor, Resource
from kontti.wire.messages.events.container import ContainerCreate, ContainerUpdate
from tests.support.metadata import Stores, open_stores

SCOPE = Scope("default")
TARGET = Descriptor("application/vnd.oci.image.index.v1+json", sha256(b"t"), 1, {"note": "one"})
IMAGE = Image("docker.io/library/a:1", TARGET, {"color": "red"})
CONTAINER = Container(
    id="c1",
    labels={"color": "red"},
    image="docker.io/library/a:1",
    runtime="io.containerd.runc.v2",
    runtime_options=AnyValue("options", b"\x00\xff"),
    spec=AnyValue("spec", b"{}"),
    snapshotter="memory",
    snapshot_key="c1",
    extensions={"one": AnyValue("ext", b"\x01")},
    sandbox="pod",
)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with open_stores(tmp_path) as stores:
        yield stores


def test_namespaces(stores: Stores) -> None:
    namespaces = stores.metadata.namespaces
    namespaces.create(Namespace("one", {"a": "1", "b": ""}))
    assert namespaces.get("one") == Namespace("one", {"a": "1"})
    with pytest.raises(AlreadyExists, match='namespace "one": already exists'):
        namespaces.create(Namespace("one"))
    with pytest.raises(InvalidArgument):
        namespaces.create(Namespace("../one"))
    namespaces.update(Namespace("one", {"b": "2"}), ["labels.b"])
    assert namespaces.get("one").labels == {"a": "1", "b": "2"}
    with pytest.raises(InvalidArgument, match='cannot update "name" field'):
        namespaces.update(Namespace("one"), ["name"])
    namespaces.update(Namespace("new", {"c": "3"}))
    assert [n.name for n in namespaces.list()] == ["new", "one"]
    namespaces.delete("one")
    # clients ask for the labels of a namespace before they use it for the first time
    assert namespaces.get("one") == Namespace("one")
    assert [n.name for n in namespaces.list()] == ["new"]
    with pytest.raises(NotFound, match='namespace "one": not found'):
        namespaces.delete("one")
    assert stores.topics() == [
        "/namespaces/create",
        "/namespaces/update",
        "/namespaces/update",
        "/namespaces/delete",
    ]


def test_namespace_comes_with_what_is_put_in_it_and_goes_only_empty(stores: Stores) -> None:
    metadata = stores.metadata
    metadata.images(SCOPE).create(IMAGE)
    digest = put(metadata.content(SCOPE), "ref", b"blob")
    metadata.snapshots(SCOPE, "memory").prepare("s")
    metadata.leases(SCOPE).create("l")
    assert [n.name for n in metadata.namespaces.list()] == ["default"]
    with pytest.raises(FailedPrecondition) as caught:
        metadata.namespaces.delete("default")
    assert caught.value.message == (
        'namespace "default" must be empty, but it still has images, blobs, '
        'snapshots on "memory" snapshotter: failed precondition'
    )
    metadata.images(SCOPE).delete(IMAGE.name)
    metadata.content(SCOPE).delete(digest)
    metadata.snapshots(SCOPE, "memory").remove("s")
    metadata.namespaces.delete("default")
    assert metadata.namespaces.list() == []
    assert metadata.leases(SCOPE).list() == []


def test_images(stores: Stores) -> None:
    images = stores.metadata.images(SCOPE)
    made = images.create(IMAGE)
    assert made.created_at == made.updated_at > 0
    assert images.get(IMAGE.name) == made
    with pytest.raises(AlreadyExists, match=r'image "docker.io/library/a:1": already exists'):
        images.create(IMAGE)
    with pytest.raises(NotFound, match='image "x": not found'):
        images.get("x")
    with pytest.raises(NotFound):
        stores.metadata.images(Scope("other")).get(IMAGE.name)
    with pytest.raises(NotFound):
        images.delete(IMAGE.name, replace(TARGET, digest=sha256(b"other")))
    images.delete(IMAGE.name, TARGET)
    with pytest.raises(NotFound, match=f'image "{IMAGE.name}": not found'):
        images.delete(IMAGE.name)
    assert stores.topics() == ["/images/create", "/images/delete"]


@pytest.mark.parametrize(
    "bad",
    [
        replace(IMAGE, name=""),
        replace(IMAGE, target=replace(TARGET, size=0)),
        replace(IMAGE, target=replace(TARGET, media_type="")),
        replace(IMAGE, target=replace(TARGET, digest=type(TARGET.digest)("sha256:../x"))),
        replace(IMAGE, labels={"k" * 3000: "v" * 3000}),
    ],
)
def test_bad_images_are_refused(stores: Stores, bad: Image) -> None:
    with pytest.raises(InvalidArgument):
        stores.metadata.images(SCOPE).create(bad)
    assert stores.metadata.images(SCOPE).list() == []
    assert stores.metadata.namespaces.list() == []


def test_image_update_by_mask(stores: Stores) -> None:
    images = stores.metadata.images(SCOPE)
    images.create(IMAGE)
    other = replace(TARGET, digest=sha256(b"u"), annotations={"note": "two", "more": "x"})
    new = Image(IMAGE.name, other, {"color": "blue", "size": "l"})
    assert images.update(new, ["labels.size"]).labels == {"color": "red", "size": "l"}
    updated = images.update(new, ["annotations.more"])
    assert updated.target.annotations == {"note": "one", "more": "x"}
    assert updated.target.digest == TARGET.digest
    assert images.update(new, ["annotations"]).target.annotations == other.annotations
    assert images.update(new, ["target"]).target == other
    assert images.get(IMAGE.name).labels == {"color": "red", "size": "l"}
    assert images.update(replace(new, labels={}), ["labels.color"]).labels == {"size": "l"}
    whole = images.update(new)
    assert (whole.target, whole.labels) == (other, new.labels)
    assert images.get(IMAGE.name) == whole
    with pytest.raises(InvalidArgument, match='cannot update "name" field on image'):
        images.update(new, ["name"])
    with pytest.raises(NotFound):
        images.update(replace(new, name="x"))


def test_image_filters(stores: Stores) -> None:
    images = stores.metadata.images(SCOPE)
    images.create(IMAGE)
    images.create(Image("b", replace(TARGET, digest=sha256(b"b")), {"a/b.c": "1"}))

    def names(*filters: str) -> list[str]:
        return [i.name for i in images.list(filters)]

    assert names() == ["b", IMAGE.name]
    assert names("name==b") == ["b"]
    assert names("name~=^docker[.]io/") == [IMAGE.name]
    assert names(f'target.digest=="{TARGET.digest}"') == [IMAGE.name]
    assert names(f'target.mediatype=="{TARGET.media_type}",labels.color') == [IMAGE.name]
    assert names('labels."a/b.c"==1') == ["b"]
    assert names("annotations.note==one") == ["b", IMAGE.name]
    assert names("name==b", "labels.color==red") == ["b", IMAGE.name]
    with pytest.raises(InvalidArgument):
        names("name==")


def test_containers(stores: Stores) -> None:
    containers = stores.metadata.containers(SCOPE)
    made = containers.create(CONTAINER)
    assert containers.get("c1") == made
    assert replace(made, created_at=0, updated_at=0) == CONTAINER
    with pytest.raises(AlreadyExists, match='container "c1": already exists'):
        containers.create(CONTAINER)
    with pytest.raises(NotFound, match='container "x" in namespace "default": not found'):
        containers.get("x")
    plain = containers.create(Container("c2", runtime="r", spec=AnyValue("", b"")))
    assert containers.get("c2") == plain
    assert [c.id for c in containers.list(["labels.color==red"])] == ["c1"]
    assert [c.id for c in containers.list(["runtime.name==r", "image~=library"])] == ["c1", "c2"]
    containers.delete("c1")
    with pytest.raises(NotFound):
        containers.delete("c1")
    event = ContainerCreate.decode(stores.events[0].event.value)
    assert event.id == "c1"
    assert event.runtime is not None
    assert event.runtime.options is not None
    assert event.runtime.options.value == b"\x00\xff"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (replace(CONTAINER, id=""), "must not be empty"),
        (replace(CONTAINER, id="a/b"), "must match"),
        (replace(CONTAINER, id="a" * 77), "maximum length"),
        (replace(CONTAINER, runtime=""), "container.Runtime.Name must be set"),
        (replace(CONTAINER, spec=None), "container.Spec must be set"),
        (replace(CONTAINER, snapshotter=""), "container.Snapshotter must be set if"),
        (replace(CONTAINER, extensions={"": AnyValue("", b"")}), "zero-length"),
        (replace(CONTAINER, labels={"k": "v" * 5000}), "maximum size"),
    ],
)
def test_bad_containers_are_refused(stores: Stores, bad: Container, why: str) -> None:
    with pytest.raises(InvalidArgument, match=f"create container failed validation: .*{why}"):
        stores.metadata.containers(SCOPE).create(bad)


def test_container_update_by_mask(stores: Stores) -> None:
    containers = stores.metadata.containers(SCOPE)
    made = containers.create(CONTAINER)
    new = replace(
        CONTAINER,
        labels={"size": "l"},
        image="b",
        spec=AnyValue("spec", b"new"),
        snapshot_key="k2",
        extensions={"two": AnyValue("ext", b"2")},
    )
    assert containers.update(new, ["labels.size"]).labels == {"color": "red", "size": "l"}
    both = containers.update(new, ["extensions.two"]).extensions
    assert set(both) == {"one", "two"}
    assert set(containers.update(new, ["extensions.one"]).extensions) == {"two"}
    updated = containers.update(new, ["image", "spec", "snapshotkey"])
    assert (updated.image, updated.spec, updated.snapshot_key) == ("b", new.spec, "k2")
    assert updated.created_at == made.created_at
    assert updated.updated_at > made.updated_at
    whole = containers.update(new)
    assert (whole.labels, whole.extensions) == (new.labels, new.extensions)
    assert containers.get("c1") == whole
    last = ContainerUpdate.decode(stores.events[-1].event.value)
    assert (last.id, last.snapshot_key) == ("c1", "k2")


def test_container_fields_that_stay(stores: Stores) -> None:
    containers = stores.metadata.containers(SCOPE)
    made = containers.create(CONTAINER)
    for path in ("id", "runtime", "snapshotter", "createdat", "nonsense"):
        with pytest.raises(InvalidArgument, match=f'cannot update "{path}" field on "c1"'):
            containers.update(CONTAINER, [path])
    with pytest.raises(InvalidArgument, match=r"container.Snapshotter field is immutable"):
        containers.update(replace(CONTAINER, snapshotter="other"))
    with pytest.raises(InvalidArgument, match=r"container.Runtime.Name field is immutable"):
        containers.update(replace(CONTAINER, runtime="other"))
    with pytest.raises(NotFound):
        containers.update(replace(CONTAINER, id="x"), ["labels"])
    assert containers.get("c1") == made


def test_leases(stores: Stores) -> None:
    leases = stores.metadata.leases(SCOPE)
    made = leases.create("l", {"a": "1"})
    assert list(leases.list()) == [made]
    assert leases.list(["id==x"]) == []
    assert list(leases.list(["labels.a==1"])) == [made]
    with pytest.raises(AlreadyExists, match='lease "l": already exists'):
        leases.create("l")
    digest = sha256(b"x")
    resources = [
        Resource(digest, "content"),
        Resource("ref", "ingests"),
        Resource("key", "snapshots/memory"),
    ]
    for resource in [*resources, *resources]:
        leases.add_resource("l", resource)
    assert list(leases.list_resources("l")) == resources
    leases.delete_resource("l", resources[0])
    leases.delete_resource("l", resources[0])
    assert list(leases.list_resources("l")) == resources[1:]
    leases.delete("l")
    for call in (leases.delete, leases.list_resources):
        with pytest.raises(NotFound, match='lease "l": not found'):
            call("l")
    with pytest.raises(NotFound, match='lease "l": not found'):
        leases.add_resource("l", resources[0])
    assert leases.list_resources(leases.create("l").id) == []


@pytest.mark.parametrize(
    ("resource", "error"),
    [
        (Resource("not a digest", "content"), InvalidArgument),
        (Resource("", "ingests"), InvalidArgument),
        (Resource("k", "snapshots"), InvalidArgument),
        (Resource("k", "snapshots/"), InvalidArgument),
        (Resource("k", "snapshots/a/b"), InvalidArgument),
        (Resource("k", "volumes"), Unimplemented),
    ],
)
def test_bad_resources_are_refused(
    stores: Stores, resource: Resource, error: type[Exception]
) -> None:
    stores.metadata.leases(SCOPE).create("l")
    with pytest.raises(error):
        stores.metadata.leases(SCOPE).add_resource("l", resource)


def test_text_that_is_no_unicode_is_refused(stores: Stores) -> None:
    with pytest.raises(InvalidArgument, match="not valid Unicode"):
        stores.metadata.images(SCOPE).get("\udcff")
