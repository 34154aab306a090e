"""Layers that name what is not theirs, by every way that is known, in every snapshotter."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kontti.errors import Error
from kontti.images.identity import chain_ids
from kontti.linux.mounts import mounted
from kontti.namespaces import Scope
from kontti.testing.content import sha256
from kontti.transfer.base import Unpacking
from kontti.transfer.import_ import ImportOptions, import_archive
from tests.support.escapes import GOOD, ways
from tests.support.hostile import NAME, dump, image
from tests.support.images import Entry, layer
from tests.support.leftovers import Embedded, Target, embedded, placed, unchanged
from tests.support.shims import short_folder
from tests.support.web import serving

pytestmark = pytest.mark.root
SNAPSHOTTERS = ("overlayfs", "native", "erofs")
KEPT = "kept:1"
CONFIG = """
[plugins."io.containerd.differ.v1.walking"]
max_layer_size = 16777216
max_layer_entries = 1000
"""


@dataclass(frozen=True)
class Inventory:
    """Everything below some directories."""

    folders: tuple[Path, ...]

    def take(self) -> dict[str, tuple[object, ...]]:
        return {str(path): described(path) for folder in self.folders for path in below(folder)}


def below(folder: Path) -> Iterator[Path]:
    yield folder
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent) / name for name in (*folders, *files))


def described(path: Path) -> tuple[object, ...]:
    """All but when it was read last."""
    status = path.lstat()
    regular = not path.is_symlink() and path.is_file()
    data: object = path.read_bytes() if regular else ""
    if path.is_symlink():
        data = os.readlink(path)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    values = [os.getxattr(path, name, follow_symlinks=False) for name in names]
    return (
        *status[:7],
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_rdev,
        data,
        names,
        values,
    )


@pytest.fixture(scope="module")
def at() -> Iterator[Embedded]:
    """An engine that has an image whose snapshots nobody else may touch."""
    with embedded() as made:
        for snapshotter in present(made):
            load(made, snapshotter, image(layer(GOOD)).archive(KEPT))
            # an erofs image stays mounted from the first time on
            check_inside(made, snapshotter, [layer(GOOD)])
        yield made


def present(at: Embedded) -> list[str]:
    return [name for name in SNAPSHOTTERS if name in at.engine._stores.snapshotters]


@pytest.fixture(scope="module")
def outside() -> Iterator[Path]:
    """A directory of the host."""
    with short_folder() as folder:
        (folder / "victim").write_text("untouched")
        (folder / "made").mkdir()
        yield folder


def load(at: Embedded, snapshotter: str, archive: bytes) -> None:
    parts = at.engine._stores.transfer_parts()
    options = ImportOptions(unpack=Unpacking(snapshotter))
    import_archive(parts, Scope.of(at.namespace), io.BytesIO(archive).read, options)


def siblings(at: Embedded, snapshotter: str) -> Path:
    """The own files of the snapshot that is there: a neighbour of those that are made."""
    (found,) = at.base.glob(f"root/io.containerd.snapshotter.v1.{snapshotter}/snapshots/1")
    return found


@pytest.mark.parametrize("how", ways("/x"))
@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS)
def test_nothing_outside_the_snapshot_is_written(
    at: Embedded, outside: Path, snapshotter: str, how: str
) -> None:
    if snapshotter not in present(at):
        pytest.skip(at.engine._stores.failures[snapshotter])
    neighbour = siblings(at, snapshotter)
    inventory = Inventory((outside, neighbour))
    before = inventory.take()
    for victim in (outside, neighbour):
        tars = [layer(GOOD), *map(layer, ways(str(victim))[how])]
        with unchanged(at):
            with contextlib.suppress(Error):
                load(at, snapshotter, image(*tars).archive(NAME))
                check_inside(at, snapshotter, tars)
            with contextlib.suppress(Error):
                at.engine.remove_image(NAME)
        assert inventory.take() == before


def check_inside(at: Embedded, snapshotter: str, tars: list[bytes]) -> None:
    """What is in the image is its own: no file of it is another's, and nothing is hidden."""
    snapshots = at.engine._stores.metadata.snapshots(Scope.of(at.namespace), snapshotter)
    top = chain_ids([sha256(tar) for tar in tars])[-1]
    mounts = snapshots.view("look", top, {"containerd.io/gc.root": "yes"})
    try:
        with mounted(mounts) as path:
            assert (Path(path) / "kept/file").read_bytes() == b"kept"
            for found in below(Path(path)):
                if not found.is_symlink() and found.is_file():
                    assert b"untouched" not in found.read_bytes()
    finally:
        snapshots.remove("look")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Target]:
    """One that lets a layer be 16 MiB, or a thousand files."""
    with short_folder() as base, placed("kontti", "ours", base, CONFIG) as made:
        yield made


BOMBS = {
    "zeros": (layer([Entry("zeros", bytes(64 << 20))]), r"more than 16777216 bytes uncompressed"),
    "zeros in many files": (
        layer([Entry(f"zeros{n}", bytes(1 << 20)) for n in range(40)]),
        r"more than 16777216 bytes uncompressed",
    ),
    "entries": (layer([Entry(f"{n}") for n in range(3000)]), r"more than 1000 entries"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_put_out(daemon: Target, name: str) -> None:
    """With all that it has written until then."""
    tar, wanted = BOMBS[name]
    draft = image(layer(GOOD), tar)
    with unchanged(daemon):
        message = daemon.import_error(draft.archive())
    assert re.search(wanted + ".*: resource exhausted", message), message
    with serving(draft.registry()) as web, unchanged(daemon):
        message = daemon.pull_error(f"{web.host}/a/b:1")
    assert re.search(wanted + ".*: resource exhausted", message), message


LIMITS = {
    "ten thousand layers": (10_000, 10_000, r"image has 10000 layers, more than 500: invalid arg"),
    "a million diff ids": (1, 1_000_000, r"is too large to read: \d+ bytes: invalid argument"),
    "many diff ids": (1, 100_000, r"layers and diffIDs don't match: 1 != 100000: invalid argument"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_more_than_an_image_can_have(daemon: Target, name: str) -> None:
    count, ids, wanted = LIMITS[name]
    tar = layer([Entry("x", b"x")])
    draft = image(tar)
    document = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [sha256(tar)] * ids},
    }
    config = draft.put(dump(document), "application/vnd.oci.image.config.v1+json")
    packed = draft.put(tar, "application/vnd.oci.image.layer.v1.tar")
    draft.manifest(config, [packed] * count)
    with unchanged(daemon):
        message = daemon.import_error(draft.archive())
    assert re.search(wanted, message), message
    with serving(draft.registry()) as web, unchanged(daemon):
        message = daemon.pull_error(f"{web.host}/a/b:1")
    assert re.search(wanted, message), message
