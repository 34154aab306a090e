"""The snapshotters against the shipped suite, and what only they can get wrong."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kontti.errors import Error, InvalidArgument, NotFound, ResourceExhausted, Unimplemented
from kontti.snapshots.base import MAX_SIZE_LABEL
from kontti.snapshots.btrfs import BtrfsSnapshotter
from kontti.snapshots.copying import CopyingSnapshotter
from kontti.snapshots.directories import Directories
from kontti.snapshots.erofs import ErofsSnapshotter
from kontti.snapshots.native import NativeSnapshotter
from kontti.snapshots.overlay import OverlaySnapshotter
from kontti.testing.snapshots import CHECKS, Check, layer, read, seen, write
from tests.support.filesystems import blockfile, btrfs, ext4, make_btrfs, make_ext4, mount_points

pytestmark = pytest.mark.root
Make = Callable[[str], OverlaySnapshotter | CopyingSnapshotter]
KINDS: dict[str, Make] = {
    "overlayfs": OverlaySnapshotter,
    "native": NativeSnapshotter,
    "erofs": ErofsSnapshotter,
    "blockfile": blockfile,
    "btrfs": BtrfsSnapshotter,
}


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """File systems that overlayfs can be on, and images be mounted from; and one for btrfs."""
    folder = tmp_path_factory.mktemp("disk")
    make_ext4(folder / "image", 512 << 20)
    make_btrfs(folder / "subvolumes", 512 << 20)
    with (
        ext4(folder / "image", folder / "disk") as plain,
        btrfs(folder / "subvolumes", folder / "btrfs") as subvolumes,
    ):
        yield {"btrfs": subvolumes, "": plain}


@pytest.fixture(scope="module", params=KINDS)
def kept(request: pytest.FixtureRequest, disks: dict[str, Path]) -> Iterator[Directories]:
    """One for all checks: they must not get into each other's way."""
    disk = disks.get(request.param, disks[""])
    store = KINDS[request.param](str(disk / f"kept-{request.param}"))
    yield store
    store.close()
    assert not [point for point in mount_points() if point.startswith(store.root)]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str) -> Make:
    return KINDS[kind]


@pytest.fixture
def root(request: pytest.FixtureRequest, disks: dict[str, Path], tmp_path: Path) -> str:
    named = "kind" in request.fixturenames and request.getfixturevalue("kind")
    return str(disks.get(named or "", disks[""]) / tmp_path.name)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__.removeprefix("check_"))
def test_check(check: Check, kept: OverlaySnapshotter) -> None:
    before = others(kept)
    check(kept)
    assert others(kept) == before


def others(store: Directories) -> list[str]:
    """The mounts below its disk that are not images in use by the snapshotter itself."""
    disk = os.path.dirname(store.root)
    below = (point for point in mount_points() if point.startswith(disk))
    return [point for point in below if not point.startswith(f"{store.trees}/")]


def trees(store: Directories) -> list[str]:
    return sorted(os.listdir(store.trees))


def test_everything_is_there_when_it_is_opened_again(make: Make, root: str) -> None:
    store = make(root)
    layer(store, "base", "", {"a": "1"})
    write(store.prepare("active", "base", {"colour": "red"}), {"b": "2"})
    store.close()
    store = make(root)
    assert seen(store, "base") == {"a": "1"}
    assert read(store.mounts("active")) == {"a": "1", "b": "2"}
    assert dict(store.stat("active").labels) == {"colour": "red"}
    store.close()


def test_what_a_crash_leaves_is_cleaned_up(make: Make, root: str) -> None:
    store = make(root)
    layer(store, "base", "", {"a": "1"})
    store.close()
    known = trees(store)
    for name in ("new-77", "99", "rm-88"):
        os.makedirs(os.path.join(root, "snapshots", name, "fs", "deep"))
    store = make(root)
    store.cleanup()
    assert trees(store) == known
    assert seen(store, "base") == {"a": "1"}
    store.close()


def test_a_directory_that_a_power_loss_took_is_made_anew(make: Make, root: str) -> None:
    store = make(root)
    layer(store, "base", "", {"a": "1"})
    store.prepare("active", "base")
    store.view("view", "base")
    known = trees(store)
    store.close()
    base = min(known, key=int)
    for number in set(known) - {base}:
        subprocess.run(["rm", "-r", os.path.join(store.trees, number)], check=True)
    store = make(root)
    assert trees(store) == known
    assert read(store.mounts("active")) == {"a": "1"}
    write(store.mounts("active"), {"b": "2"})
    assert read(store.mounts("view")) == {"a": "1"}
    store.close()


def test_a_limit_that_nothing_keeps_is_refused(make: Make, root: str) -> None:
    store = make(root)
    with pytest.raises(Unimplemented, match="max-size"):
        store.prepare("key", labels={MAX_SIZE_LABEL: "1000000"})
    for text in ("", "1k", "-1", "9" * 19, "²"):
        with pytest.raises(InvalidArgument, match="no number of bytes"):
            store.prepare("key", labels={MAX_SIZE_LABEL: text})
    assert (list(store.walk()), trees(store)) == ([], [])
    store.view("view", labels={MAX_SIZE_LABEL: "1000000"})
    store.close()


def test_removed_trees_are_freed(make: Make, root: str) -> None:
    store = make(root)
    write(store.prepare("gone"), {"a/b/c": "1"})
    store.remove("gone")
    assert trees(store) != []
    store.cleanup()
    assert trees(store) == []
    store.close()


def test_sync_remove_frees_at_once(root: str) -> None:
    store = OverlaySnapshotter(root, sync_remove=True)
    write(store.prepare("gone"), {"a": "1"})
    store.remove("gone")
    assert trees(store) == []
    store.close()


def test_a_full_disk_leaves_no_directory(make: Make, kind: str, tmp_path: Path) -> None:
    # the least that btrfs can be made in
    filesystem, format, size = (
        (btrfs, make_btrfs, 128) if kind == "btrfs" else (ext4, make_ext4, 24)
    )
    format(tmp_path / "image", size << 20)
    with filesystem(tmp_path / "image", tmp_path / "disk") as small:
        store = make(str(small / "s"))
        layer(store, "base", "", {"a": "x" * (4 << 20)})
        known = trees(store)
        ballast = small / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        with pytest.raises(ResourceExhausted):
            fill(store)
        made = len(list(store.walk())) - 1
        assert len(trees(store)) == len(known) + made
        ballast.unlink()
        store.prepare("after", "base")
        assert len(read(store.mounts("after"))) == 1
        store.close()


def fill(store: OverlaySnapshotter | CopyingSnapshotter) -> None:
    for number in range(10_000):
        store.prepare(f"full-{number}", "base")


def test_from_several_threads(make: Make, root: str) -> None:
    store = make(root)
    layer(store, "base", "", {"a": "1"})
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                key = f"t{number}-{turn}"
                store.prepare(key, "base")
                store.commit(f"{key}-done", key)
                store.remove(f"{key}-done")
        except BaseException as error:  # noqa: BLE001 told below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [i.name for i in store.walk()] == ["base"]
    store.close()


def test_one_of_two_that_want_a_name_gets_it(make: Make, root: str) -> None:
    store = make(root)
    layer(store, "base", "", {str(n): "x" for n in range(50)})
    won: list[int] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        with contextlib.suppress(Error):
            store.prepare("wanted", "base")
            won.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(trees(store)) == 2
    store.close()


def test_native_leaves_nothing_of_a_copy_without_a_parent(root: str) -> None:
    store = NativeSnapshotter(root)
    layer(store, "base", "", {"a": "1"})
    with pytest.raises(NotFound):
        store.prepare("child", "nosuch")
    assert len(trees(store)) == 1
    store.close()


def test_overlay_options(root: str) -> None:
    store = OverlaySnapshotter(root, mount_options=("volatile",))
    layer(store, "base", "", {"a": "1"})
    [mount] = store.prepare("active", "base")
    assert mount.type == "overlay"
    assert mount.options[0] == "volatile"
    named = {o.partition("=")[0] for o in mount.options[1:]} - {"index", "userxattr"}
    assert named == {"workdir", "upperdir", "lowerdir"}
    [bind] = store.view("view", "base")
    assert (bind.type, set(bind.options)) == ("bind", {"ro", "rbind"})
    store.close()
