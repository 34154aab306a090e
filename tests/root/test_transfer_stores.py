"""Transfers over the real stores and applier: what is there after success, and after failure."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kontti.content.local import LocalStore
from kontti.diff.applier import LayerApplier
from kontti.diff.workers import Workers
from kontti.errors import Error
from kontti.events.exchange import LocalExchange
from kontti.linux.mounts import mounted
from kontti.metadata.store import MetadataStore
from kontti.namespaces import Scope
from kontti.registry.hosts import HostOptions, configured
from kontti.registry.resolver import Resolver
from kontti.registry.session import Session
from kontti.snapshots.base import Snapshotter
from kontti.snapshots.native import NativeSnapshotter
from kontti.snapshots.overlay import OverlaySnapshotter
from kontti.transfer.base import Pulled, PullOptions, Unpacking
from kontti.transfer.export import export_images
from kontti.transfer.import_ import ImportOptions, import_archive
from kontti.transfer.parts import Parts
from kontti.transfer.pull import pull
from kontti.values import EMPTY, Mount
from tests.support import registry
from tests.support.images import BUSYBOX, Image, archive, build, layer, symlink
from tests.support.stores import MemorySnapshots
from tests.support.web import Repository, serving

pytestmark = pytest.mark.root

NAME = "example.org/busybox:1"
SCOPE = Scope("default")


class Directories(MemorySnapshots):
    """A snapshotter that copies directories: the simplest that mounts are real for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root, self._paths = root, dict[str, Path]()

    def mounts(self, key: str) -> list[Mount]:
        return [Mount("bind", str(self._paths[key]), ("rbind", "rw"))]

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        path = self._root / str(len(os.listdir(self._root)))
        if parent:
            shutil.copytree(self._paths[parent], path, symlinks=True)
        else:
            path.mkdir()
        self._paths[key] = path
        return super().prepare(key, parent, labels)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        super().commit(name, key, labels, parent)
        self._paths[name] = self._paths.pop(key)

    def tree(self, name: str) -> Path:
        """Where a snapshot's files are."""
        return next(path for key, path in self._paths.items() if key.endswith(name))


@dataclass
class Node:
    """A machine's stores."""

    metadata: MetadataStore
    snapshotter: Directories
    parts: Parts

    def pull(self, name: str, scope: Scope = SCOPE) -> Pulled:
        with Session(configured(HostOptions(plain_http=True))) as session:
            options = PullOptions(unpack=Unpacking("native"))
            return pull(self.parts, scope, Resolver(session), name, options)

    def import_(self, data: bytes) -> None:
        options = ImportOptions(unpack=Unpacking("native"))
        import_archive(self.parts, SCOPE, io.BytesIO(data).read, options)

    def blobs(self, scope: Scope = SCOPE) -> set[str]:
        return {str(info.digest) for info in self.metadata.content(scope).walk()}

    def snapshots(self) -> list[str]:
        return sorted(info.name for info in self.metadata.snapshots(SCOPE, "native").walk())

    def assert_empty(self) -> None:
        """Nothing is there once what nothing refers to is collected."""
        self.metadata.collect()
        assert self.blobs() == set()
        assert self.snapshots() == []
        assert list(self.metadata.leases(SCOPE).list()) == []
        assert self.metadata.content(SCOPE).list_statuses() == []
        assert self.snapshotter.infos == {}


@contextmanager
def node(root: Path) -> Iterator[Node]:
    (root / "snapshots").mkdir(parents=True)
    snapshotter = Directories(root / "snapshots")
    content = LocalStore(str(root / "content"))
    metadata = MetadataStore(
        str(root / "meta.db"), content, {"native": snapshotter}, LocalExchange()
    )
    with closing(Workers()) as workers, closing(metadata):

        def applier(scope: Scope) -> LayerApplier:
            return LayerApplier(metadata.content(scope), workers)

        yield Node(metadata, snapshotter, Parts(metadata, applier))


@pytest.fixture(scope="module")
def image() -> Image:
    return build()


def test_a_pulled_image_survives_collection(tmp_path: Path, image: Image) -> None:
    (tmp_path / "registry").mkdir()
    with registry.running(tmp_path / "registry") as address, node(tmp_path / "node") as it:
        registry.push(address, "busybox", "1", image)
        pulled = it.pull(f"{address}/busybox:1")
        it.metadata.collect()
        assert it.blobs() == set(image.blobs)
        tree = it.snapshotter.tree(pulled.unpacked[0].chain_id)
        assert (tree / "bin/busybox").read_bytes() == BUSYBOX.read_bytes()
        assert (tree / "etc/greeting").read_text() == "hello\n"
        assert not (tree / "etc/motd").exists()
        it.metadata.images(SCOPE).delete(pulled.image.name)
        it.assert_empty()


def test_another_namespace_downloads_nothing(tmp_path: Path, image: Image) -> None:
    kinds = {image.digest: str(image.manifest["mediaType"])}
    repository = Repository(dict(image.blobs), {"1": image.digest}, kinds)
    with serving(repository) as web, node(tmp_path / "node") as it:
        it.pull(f"{web.host}/busybox:1")
        downloaded = len(web.asked)
        it.pull(f"{web.host}/busybox:1", Scope("other"))
        assert web.paths()[downloaded:] == ["HEAD /v2/busybox/manifests/1"]
        assert it.blobs(Scope("other")) == it.blobs() == set(image.blobs)


def test_an_archive_comes_and_goes(tmp_path: Path, image: Image) -> None:
    with node(tmp_path / "one") as one, node(tmp_path / "other") as other:
        one.import_(archive(image, NAME))
        one.metadata.collect()
        out = io.BytesIO()
        export_images(one.metadata, SCOPE, [NAME], out.write)
        other.import_(out.getvalue())
        other.metadata.collect()
        assert set(image.blobs) <= other.blobs()
        assert one.snapshots() == other.snapshots()


@pytest.mark.parametrize("keep", [3_000, 200_000])
def test_an_archive_that_ends_early_leaves_nothing(tmp_path: Path, image: Image, keep: int) -> None:
    with node(tmp_path / "node") as it:
        with pytest.raises(Error):
            it.import_(archive(image, NAME)[:keep])
        it.assert_empty()


def test_a_bad_second_layer_leaves_nothing(tmp_path: Path) -> None:
    good = layer([symlink("etc", "/usr/etc")])
    with node(tmp_path / "node") as it:
        with pytest.raises(Error, match="failed to extract layer"):
            it.import_(archive(build([good, b"this is no tar" * 100]), NAME))
        it.assert_empty()


def test_a_pull_that_fails_leaves_nothing(tmp_path: Path, image: Image) -> None:
    (tmp_path / "registry").mkdir()
    with registry.running(tmp_path / "registry") as address, node(tmp_path / "node") as it:
        registry.push(address, "busybox", "1", image)
        name = image.layer_digests[1].removeprefix("sha256:")
        blobs = tmp_path / "registry/data/docker/registry/v2/blobs/sha256"
        (blobs / name[:2] / name / "data").write_bytes(b"damaged")
        with pytest.raises(Error):
            it.pull(f"{address}/busybox:1")
        it.assert_empty()


@pytest.mark.parametrize("kind", [OverlaySnapshotter, NativeSnapshotter])
def test_every_snapshotter_takes_a_pulled_image(
    tmp_path: Path, image: Image, kind: Callable[[str], Snapshotter]
) -> None:
    repository = Repository(
        dict(image.blobs), {"1": image.digest}, {image.digest: str(image.manifest["mediaType"])}
    )
    content = LocalStore(str(tmp_path / "content"))
    with closing(kind(str(tmp_path / "snapshots"))) as snapshotter:
        database = str(tmp_path / "meta.db")
        stores = MetadataStore(database, content, {"native": snapshotter}, LocalExchange())
        with closing(stores), closing(Workers()) as workers, serving(repository) as web:
            parts = Parts(stores, lambda scope: LayerApplier(stores.content(scope), workers))
            pulled = Node(stores, Directories(tmp_path), parts).pull(f"{web.host}/busybox:1")
            snapshots = stores.snapshots(SCOPE, "native")
            with mounted(snapshots.view("look", pulled.unpacked[0].chain_id)) as tree:
                assert Path(tree, "etc/greeting").read_text() == "hello\n"
                assert not Path(tree, "etc/motd").exists()
                assert Path(tree, "bin/sh").readlink() == Path("busybox")
