"""Lazy pulling: what a snapshotter is told, and what is fetched then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from kontti.errors import AlreadyExists, FailedPrecondition
from kontti.images.identity import chain_ids
from kontti.snapshots.base import TARGET_LABEL, Kind
from kontti.snapshots.base import Info as SnapshotInfo
from kontti.transfer.base import PullOptions, Selection, Unpacking
from kontti.transfer.lazy import (
    IMAGE_LAYERS,
    IMAGE_REF,
    LAYER_DIGEST,
    MANIFEST_DIGEST,
    hints,
)
from kontti.transfer.settings import is_told
from kontti.values import EMPTY, Digest, Mount, check_labels
from tests.support.images import Image, build
from tests.support.stores import MemorySnapshots, MemoryStores, sha256
from tests.support.web import Repository
from tests.unit.test_transfer_pull import Bench, add_index, bench, entry, served

TARS = [b"first layer" * 1000, b"second layer" * 1000, b"third layer" * 1000]
CHAIN = chain_ids([sha256(tar) for tar in TARS])


@dataclass
class Remote(MemorySnapshots):
    """Has the layers of ``own`` (digests of packed ones) by itself; ``asked`` are all labels."""

    own: tuple[str, ...] = ()
    asked: list[Mapping[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        self.asked.append(labels)
        if labels.get(LAYER_DIGEST) in self.own:
            target = labels[TARGET_LABEL]
            self.infos[target] = SnapshotInfo(Kind.COMMITTED, target, parent, labels)
            self.trees[target] = [*self.trees.get(parent, ()), b"remote"]
            raise AlreadyExists(f'target snapshot "{target}"')
        return super().prepare(key, parent, labels)


@contextmanager
def remote(image: Image, own: tuple[int, ...], repository: Repository) -> Iterator[Bench]:
    """Stores whose snapshotter has the layers ``own`` of the image."""
    with bench(repository) as it:
        layers = tuple(image.layer_digests[number] for number in own)
        it.stores = MemoryStores(snapshot_store=Remote(own=layers))
        it.__post_init__()
        yield it


def lazily(it: Bench, select: Selection | None = None) -> None:
    options = PullOptions(select=select or Selection(), unpack=Unpacking("x", lazy_name=it.name))
    it.pull(options)


@pytest.mark.parametrize(
    ("own", "fetched"),
    [
        ((0, 1, 2), ()),
        ((), (0, 1, 2)),
        ((0,), (1, 2)),
        ((0, 1), (2,)),
        # as containerd does it: who has not got one layer is not waited for with those above it
        ((0, 2), (1, 2)),
        ((1, 2), (0, 1, 2)),
    ],
)
def test_what_the_snapshotter_has_is_not_fetched(
    own: tuple[int, ...], fetched: tuple[int, ...]
) -> None:
    image = build(TARS)
    with remote(image, own, served(image)) as it:
        lazily(it)
        here = {image.digest, image.config_digest, *(image.layer_digests[n] for n in fetched)}
        assert set(it.stores.content_store.blobs) == here
        assert it.stores.snapshot_store.committed() == list(CHAIN)
        assert it.applier.applied == [
            image.layer_digests[n] for n in range(len(TARS)) if n not in own
        ]
        assert it.stores.snapshot_store.trees[CHAIN[-1]] == [
            b"remote" if n in own else tar for n, tar in enumerate(TARS)
        ]
        config = it.stores.content_store.labels(image.config_digest)
        assert config["containerd.io/gc.ref.snapshot.x"] == CHAIN[-1]


def test_what_it_is_told() -> None:
    image = build(TARS)
    with remote(image, (0, 1, 2), served(image)) as it:
        lazily(it)
        snapshots = it.stores.snapshot_store
        assert isinstance(snapshots, Remote)
        assert [labels[LAYER_DIGEST] for labels in snapshots.asked] == list(image.layer_digests)
        assert snapshots.asked[1] == {
            IMAGE_REF: it.name,
            MANIFEST_DIGEST: image.digest,
            LAYER_DIGEST: image.layer_digests[1],
            IMAGE_LAYERS: ",".join(image.layer_digests[1:]),
            TARGET_LABEL: CHAIN[1],
        }


def test_others_are_told_nothing() -> None:
    image = build(TARS)
    with remote(image, (0, 1, 2), served(image)) as it:
        it.pull()
        assert set(it.stores.content_store.blobs) == set(image.blobs)
        assert all(not set(i.labels) - {TARGET_LABEL} for i in it.stores.snapshot_store.walk())


def test_one_of_two_snapshotters_needs_the_layers() -> None:
    image = build(TARS)
    with remote(image, (), served(image)) as it:
        lazy = Unpacking("x", lazy_name=it.name)
        it.pull(PullOptions(unpack=lazy, unpack_also=(Unpacking("y"),)))
        assert set(it.stores.content_store.blobs) == set(image.blobs)


def test_what_nobody_unpacks_is_fetched() -> None:
    image, other = build(TARS), build([b"another"])
    repository = served(image, other)
    note = entry(other, os="unknown", architecture="unknown")
    note["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    index = add_index(repository, [note, entry(image, os="linux", architecture="amd64")])
    with remote(image, (0, 1, 2), repository) as it:
        lazily(it, Selection(all_platforms=True))
        here = {index, image.digest, image.config_digest, *other.blobs}
        assert set(it.stores.content_store.blobs) == here


def test_a_layer_that_cannot_be_fetched_leaves_nothing_half_made() -> None:
    image = build(TARS)
    repository = served(image)
    repository.blobs[image.layer_digests[1]] = b"something else"
    with remote(image, (0,), repository) as it, pytest.raises(FailedPrecondition):
        lazily(it)
    it.assert_nothing_half_made()


def test_as_many_layers_as_a_label_holds() -> None:
    layers = [Digest(f"sha256:{number:064}") for number in range(500)]
    found = hints("registry.example/a:b", layers[0], layers)
    check_labels(found)
    told = found[IMAGE_LAYERS].split(",")
    assert told == layers[: len(told)]
    assert len(IMAGE_LAYERS) + len(found[IMAGE_LAYERS]) + len(f",{layers[0]}") > 4096


@pytest.mark.parametrize(
    ("value", "told"), [("true", True), ("false", False), ("1", False), (None, False)]
)
def test_who_is_told(value: str | None, told: bool) -> None:
    exports = {"root": "/x"} | ({"enable_remote_snapshot_annotations": value} if value else {})
    assert is_told(exports) is told
