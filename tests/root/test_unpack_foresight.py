"""A client has layers applied one after another: those to come are extracted meanwhile."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kontti.diff.applier import LayerApplier
from kontti.diff.base import Applier
from kontti.engine.stores import Stores
from kontti.errors import Error, NotFound
from kontti.images.manifest import read_config, read_manifest
from kontti.namespaces import Scope
from kontti.transfer import foresight
from kontti.transfer.foresight import PREFIX, ForeseeingApplier
from kontti.transfer.import_ import ImportOptions, import_archive
from kontti.transfer.layer import Layer
from kontti.transfer.lease import leased
from kontti.transfer.unpack import layers_of
from kontti.values import Descriptor, Mount
from tests.root.test_unpack_together import (
    MORE,
    SCOPE,
    TOP,
    assert_clean,
    image,
    opened,
)
from tests.support.images import Entry, archive, build, layer
from tests.support.trees import Seen, look

pytestmark = pytest.mark.root
SECONDS = 30.0


@dataclass(frozen=True)
class Client:
    """One that unpacks by itself, under a lease."""

    stores: Stores
    scope: Scope
    snapshotter: str = "overlayfs"

    def imported(self, data: bytes) -> list[Layer]:
        """The layers of an image that is in the content store, and nowhere else."""
        parts, options = self.stores.transfer_parts(), ImportOptions(unpack=None)
        result = import_archive(parts, SCOPE, io.BytesIO(data).read, options)
        content = self.stores.metadata.content(SCOPE)
        manifest = read_manifest(content, result.images[0].target)
        return list(layers_of(manifest, read_config(content, manifest.config)))

    def prepare(self, key: str, layer: Layer) -> list[Mount]:
        return self.stores.metadata.snapshots(self.scope, self.snapshotter).prepare(
            key, layer.parent
        )

    def apply(self, layer: Layer) -> Descriptor:
        """Prepare, apply, commit."""
        key = f"extract-1 {layer.chain_id}"
        mounts = self.prepare(key, layer)
        applied = self.applier().apply(layer.descriptor, mounts)
        snapshots = self.stores.metadata.snapshots(self.scope, self.snapshotter)
        snapshots.commit(layer.chain_id, key)
        return applied

    def applier(self) -> Applier:
        return self.stores.client_applier(self.scope)

    def outcome(self, layers: Sequence[Layer]) -> dict[str, Seen] | str:
        """The tree of all layers, or what is wrong with one."""
        try:
            for layer in layers:
                assert self.apply(layer).digest == layer.diff_id
        except Error as error:
            return f"{type(error).__name__}: {error}"
        snapshots = self.stores.metadata.snapshots(self.scope, self.snapshotter)
        made = look(snapshots.view("look", layers[-1].chain_id))
        # the root's time is when its snapshot was made
        return {**made, ".": replace(made["."], mtime=0)}

    def staged(self) -> set[str]:
        root = f"{self.stores.settings.root}/io.containerd.snapshotter.v1.{self.snapshotter}"
        return {name for name in os.listdir(f"{root}/snapshots") if name.startswith(PREFIX)}


@contextmanager
def client(root: Path, at_once: int, snapshotter: str = "overlayfs") -> Iterator[Client]:
    with opened(root, at_once) as stores, leased(stores.metadata, SCOPE) as held:
        yield Client(stores, held, snapshotter)


both = pytest.mark.parametrize("kind", ["overlayfs", "erofs"])


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[Descriptor]:
    """The layers that were extracted when they were asked for."""
    found: list[Descriptor] = []
    plain = LayerApplier.apply

    def counted(self: LayerApplier, layer: Descriptor, *rest: Any) -> Descriptor:
        found.append(layer)
        return plain(self, layer, *rest)

    monkeypatch.setattr(LayerApplier, "apply", counted)
    return found


@both
@pytest.mark.parametrize("name", MORE)
def test_the_tree_is_that_of_one_after_another(tmp_path: Path, name: str, kind: str) -> None:
    data = image([*MORE[name], TOP])
    with client(tmp_path / "one", 1, kind) as it:
        assert not isinstance(it.applier(), ForeseeingApplier)
        alone = it.outcome(it.imported(data))
    with client(tmp_path / "many", 3, kind) as it:
        assert it.outcome(it.imported(data)) == alone
    with client(tmp_path / "many", 3, kind) as it:
        assert it.staged() == set()


@both
def test_layers_to_come_are_extracted_meanwhile(
    tmp_path: Path, direct: list[Descriptor], kind: str
) -> None:
    data = image([[Entry(f"file-{n}")] for n in range(4)])
    with client(tmp_path, 2, kind) as it:
        found = it.imported(data)
        it.apply(found[0])
        wait_for(lambda: len(it.staged()) == 3)
        made = it.outcome(found[1:])
        assert {f"file-{n}" for n in range(4)} < set(made)
        assert direct == [found[0].descriptor]
        assert it.staged() == set()


def test_one_that_has_begun_is_waited_for(
    tmp_path: Path, direct: list[Descriptor], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    plain = LayerApplier.apply_ahead

    def slow(self: LayerApplier, *args: Any) -> Any:
        begun.set()
        assert go.wait(SECONDS)
        return plain(self, *args)

    monkeypatch.setattr(LayerApplier, "apply_ahead", slow)
    with client(tmp_path, 2) as it:
        found = it.imported(image([[Entry("a")], [Entry("b")]]))
        it.apply(found[0])
        assert begun.wait(SECONDS)
        threading.Timer(0.2, go.set).start()
        assert "b" in it.outcome(found[1:])
        assert direct == [found[0].descriptor]


def test_what_nobody_comes_for_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "KEPT_SECONDS", 0.3)
    with client(tmp_path, 2) as it:
        found = it.imported(image([[Entry("a")], [Entry("b")], [Entry("c")]]))
        it.apply(found[0])
        wait_for(lambda: not it.staged())
        assert "c" in it.outcome(found[1:])


@both
def test_closing_leaves_nothing(tmp_path: Path, kind: str) -> None:
    with client(tmp_path, 2, kind) as it:
        found = it.imported(image([[Entry(f"{n}", os.urandom(1 << 20))] for n in range(6)]))
        it.apply(found[0])
    assert not list(tmp_path.glob(f"**/{PREFIX}*"))


def test_what_a_crash_leaves_goes_with_the_next_start(tmp_path: Path) -> None:
    with client(tmp_path, 2) as it:
        snapshotter = it.stores.snapshotters["overlayfs"]
    left = Path(snapshotter.trees) / f"{PREFIX}0123"  # type: ignore[attr-defined]
    (left / "directory").mkdir(parents=True)
    with opened(tmp_path, 2) as stores:
        assert_clean(stores)


def test_a_directory_that_is_not_empty_is_extracted_to(tmp_path: Path) -> None:
    """Whoever prepared it may have put something there before."""
    with client(tmp_path, 2) as it:
        found = it.imported(image([[Entry("a")], [Entry("b")]]))
        it.apply(found[0])
        wait_for(it.staged)
        mounts = it.prepare("mine", found[1])
        [upper] = [o[9:] for o in mounts[0].options if o.startswith("upperdir=")]
        Path(upper, "own").write_text("own")
        it.applier().apply(found[1].descriptor, mounts)
        assert {"a", "b", "own"} <= set(look(mounts))


def test_a_layer_that_fails_says_so_when_it_is_asked_for(tmp_path: Path) -> None:
    bad = build([layer([Entry("a")]), b"this is no tar" * 1000, layer([Entry("c")])])
    with client(tmp_path, 2) as it:
        found = it.imported(archive(bad, "example.org/bad:1"))
        it.apply(found[0])
        with pytest.raises(Error, match="archive/tar: invalid tar header"):
            it.apply(found[1])
        wait_for(lambda: len(it.staged()) == 1)


def test_other_namespaces_have_their_own(tmp_path: Path) -> None:
    with client(tmp_path, 2) as it:
        found = it.imported(image([[Entry("a")], [Entry("b")]]))
        it.apply(found[0])
        wait_for(it.staged)
        other = replace(it, scope=Scope("other"))
        mounts = other.prepare("x", replace(found[1], parent=""))
        with pytest.raises(NotFound):
            other.applier().apply(found[1].descriptor, mounts)
        assert it.staged()
