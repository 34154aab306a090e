"""Snapshotters when something goes wrong: power, kill -9, full disks, busy trees, races."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kontti.engine.stores import Stores, StoreSettings
from kontti.errors import Error, NotFound
from kontti.linux import fs
from kontti.linux.mounts import mount_all
from kontti.snapshots.base import Info, Kind
from kontti.snapshots.directories import Directories
from kontti.snapshots.native import NativeSnapshotter
from kontti.snapshots.overlay import OverlaySnapshotter
from kontti.testing.snapshots import layer, read, seen, write
from kontti.values import Mount
from tests.support.filesystems import ext4, make_ext4, mount_points, no_mounts_left, tmpfs

pytestmark = pytest.mark.root
Store = OverlaySnapshotter | NativeSnapshotter
Make = Callable[[str], Store]
KINDS: dict[str, Make] = {"overlayfs": OverlaySnapshotter, "native": NativeSnapshotter}
SECONDS = 20


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str) -> Make:
    return KINDS[kind]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[str]:
    before = mount_points()
    with tmpfs(tmp_path / "disk", "64m") as disk:
        yield str(disk / "root")
    assert mount_points() == before


def trees(store: Directories) -> list[str]:
    return sorted(os.listdir(store.trees), key=lambda name: (len(name), name))


def test_what_was_committed_is_there_after_a_power_loss(make: Make, tmp_path: Path) -> None:
    image, after = tmp_path / "disk.img", tmp_path / "after.img"
    make_ext4(image)
    with ext4(image, tmp_path / "disk") as disk:
        store = make(str(disk / "root"))
        big = "x" * (1 << 20)
        layer(store, "base", "", {"a": "1", "big": big, "d/e": "1"})
        layer(store, "child", "base", {"a": "2"})
        write(store.prepare("active", "child"), {"b": "3"})
        store.view("view", "child")
        # what has reached the disk by now, and nothing else
        shutil.copyfile(image, after)
        store.close()
    with ext4(after, tmp_path / "disk") as disk:
        store = make(str(disk / "root"))
        assert seen(store, "base") == {"a": "1", "big": big, "d/e": "1"}
        assert seen(store, "child") == {"a": "2", "big": big, "d/e": "1"}
        assert store.stat("active").kind is Kind.ACTIVE
        assert read(store.mounts("active")).items() >= {"a": "2", "big": big}.items()
        assert read(store.mounts("view"))["a"] == "2"
        write(store.mounts("active"), {"b": "4"})
        store.cleanup()
        assert trees(store) == ["1", "2", "3", "4"]
        store.close()


LOOP = """
import itertools, sys
from kontti.snapshots.native import NativeSnapshotter
from kontti.snapshots.overlay import OverlaySnapshotter
store = {"overlayfs": OverlaySnapshotter, "native": NativeSnapshotter}[sys.argv[1]](sys.argv[2])
def told(*words):
    sys.stdout.write(" ".join(words) + "\\n")
    sys.stdout.flush()
parent = ""
for n in itertools.count():
    store.prepare(f"k{n}", parent)
    told("active", f"k{n}")
    open(f"{store.tree(store.records.get(f'k{n}').id)}/f{n}", "w").write(str(n))
    store.commit(f"c{n}", f"k{n}")
    told("committed", f"c{n}", f"k{n}")
    store.view(f"v{n}", f"c{n}")
    store.remove(f"v{n}")
    told("removed", f"v{n}")
    store.prepare(f"gone{n}", f"c{n}")
    store.remove(f"gone{n}")
    told("removed", f"gone{n}")
    if n % 4 == 3:
        store.cleanup()
    parent = f"c{n}" if n % 6 else ""
"""


@pytest.mark.parametrize("lines", [1, 4, 7, 15, 26])
def test_what_was_told_holds_after_a_kill(make: Make, kind: str, root: str, lines: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", LOOP, kind, root],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    with child:
        assert child.stdout
        told = [child.stdout.readline() for _ in range(lines)]
        child.kill()
        told += child.stdout.readlines()
    assert child.returncode == -signal.SIGKILL
    store = make(root)
    there, gone = state_of(told)
    kinds = {info.name: info.kind for info in store.walk()}
    assert there.items() <= kinds.items() or not_told_yet(there, kinds)
    assert not gone & kinds.keys()
    store.cleanup()
    assert len(trees(store)) == len(kinds)
    assert all(name.isdecimal() for name in trees(store))
    for name in [name for name, found in kinds.items() if found is Kind.COMMITTED]:
        assert seen(store, name)[f"f{name[1:]}"] == name[1:]
    store.close()


def state_of(told: list[str]) -> tuple[dict[str, Kind], set[str]]:
    there: dict[str, Kind] = {}
    gone: set[str] = set()
    for line in told:
        if not line.endswith("\n"):
            continue
        what, name, *key = line.split()
        if what == "removed":
            gone.add(name)
        else:
            there[name] = Kind.ACTIVE if what == "active" else Kind.COMMITTED
            there.pop(key[0] if key else "", None)
    return there, gone


def not_told_yet(there: dict[str, Kind], kinds: dict[str, Kind]) -> bool:
    """The last active one may have been committed just before the kill."""
    return all(
        kinds.get(name) is kind or kinds.get(f"c{name[1:]}") is Kind.COMMITTED
        for name, kind in there.items()
    )


def test_two_crashes_at_the_same_number_are_cleaned_up(make: Make, root: str) -> None:
    for _ in range(3):
        store = make(root)
        store.close()
        for name in ("new-5", "5"):
            os.makedirs(os.path.join(root, "snapshots", name, "fs"))
    store = make(root)
    store.cleanup()
    assert trees(store) == []
    store.close()


def test_names_that_are_not_ours_are_no_hindrance(make: Make, root: str) -> None:
    for name in ("rm-", "rm-x", "rm-²", "new-", "new-x", "²", "lost+found"):
        os.makedirs(os.path.join(root, "snapshots", name, "fs"))
    store = make(root)
    layer(store, "base", "", {"a": "1"})
    store.cleanup()
    assert trees(store) == ["1", "²", "lost+found"]
    store.close()


def test_a_lost_parent_does_not_keep_the_others_away(root: str) -> None:
    store = OverlaySnapshotter(root)
    layer(store, "lost", "", {"a": "1"})
    layer(store, "whole", "", {"a": "1"})
    store.prepare("active", "lost")
    store.close()
    for number in ("1", "3"):
        shutil.rmtree(os.path.join(store.trees, number))
    store = OverlaySnapshotter(root)
    assert seen(store, "whole") == {"a": "1"}
    store.cleanup()
    assert trees(store) == ["2"]
    store.remove("active")
    store.remove("lost")
    store.cleanup()
    store.close()


def test_a_restored_directory_is_as_it_was_prepared(make: Make, root: str) -> None:
    store = make(root)
    write(store.prepare("key"), {"a": "1"})
    os.chown(store.tree(1), 5, 6)
    os.chmod(store.tree(1), 0o1751)
    store.commit("base", "key")
    store.prepare("active", "base")
    store.prepare("first")
    before = {number: os.stat(store.tree(number)) for number in (2, 3)}
    store.close()
    for number in before:
        shutil.rmtree(store.path(number))
    store = make(root)
    for number, old in before.items():
        new = os.stat(store.tree(number))
        assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
    store.close()


def test_records_that_are_no_database_leave_the_other_snapshotter(root: str) -> None:
    with contextlib.closing(Stores(StoreSettings(root))) as stores:
        whole = set(stores.snapshotters)
        assert {"overlayfs", "native"} <= whole
    file = Path(root, "io.containerd.snapshotter.v1.overlayfs", "metadata.db")
    file.write_bytes(b"garbage" * 1000)
    for name in ("metadata.db-wal", "metadata.db-shm"):
        file.with_name(name).unlink(missing_ok=True)
    with contextlib.closing(Stores(StoreSettings(root))) as stores:
        assert set(stores.snapshotters) == whole - {"overlayfs"}
        assert "not a database" in stores.failures["overlayfs"]


def test_a_busy_tree_is_freed_when_it_can_be(root: str) -> None:
    store = OverlaySnapshotter(root, sync_remove=True)
    for key in ("busy", "idle"):
        write(store.prepare(key), {"d/a": "1"})
    with no_mounts_left(Path(root)):
        mount_all([Mount("tmpfs", "tmpfs", ())], os.path.join(store.tree(1), "d"))
        # a removed snapshot is removed, whatever becomes of its directory
        store.remove("busy")
        store.remove("idle")
        with pytest.raises(Error, match="rm-1: Device or resource busy"):
            store.cleanup()
        assert trees(store) == ["rm-1"]
        assert list(store.walk()) == []
    store.cleanup()
    assert trees(store) == []
    store.close()


def test_a_directory_that_could_not_be_renamed_is_freed_later(
    make: Make, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(root)
    write(store.prepare("gone"), {"a": "1"})

    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", full)
        store.remove("gone")
    assert trees(store) == ["1"]
    store.cleanup()
    assert trees(store) == []
    store.close()


def test_a_tree_too_deep_for_paths_is_refused_and_can_be_removed(make: Make, root: str) -> None:
    store = make(root)
    store.prepare("deep")
    fd = os.open(store.tree(1), os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("dir", dir_fd=fd)
        below = os.open("dir", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(Error, match="snapshot deep: File name too long"):
        store.commit("name", "deep")
    assert store.stat("deep").kind is Kind.ACTIVE
    store.remove("deep")
    store.cleanup()
    assert trees(store) == []
    store.close()


def test_removals_at_once_do_not_get_into_each_others_way(root: str) -> None:
    store = OverlaySnapshotter(root, sync_remove=True)
    keys = [f"k{number}" for number in range(40)]
    for key in keys:
        write(store.prepare(key), {f"d{number}/f": "x" for number in range(10)})

    def remove(some: list[str]) -> None:
        for key in some:
            store.remove(key)

    in_threads(*(partial(remove, keys[number::4]) for number in range(4)))
    assert trees(store) == []
    store.close()


def in_threads(*works: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 told below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert failures == []


def test_a_failed_snapshot_does_not_take_the_next_one_along(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number is given out again as soon as its record is rolled back."""
    store = OverlaySnapshotter(root)
    real = fs.remove_tree
    others: list[threading.Thread] = []

    def remove_late(path: str) -> None:
        if not others:
            others.append(threading.Thread(target=store.prepare, args=("next",)))
            others[0].start()
            others[0].join(0.3)
        real(path)

    def build(number: int, parents: list[int]) -> None:
        os.makedirs(store.draft(number) + "/fs")
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(fs, "remove_tree", remove_late)
    with pytest.raises(Error, match="snapshot first: Input/output error"):
        store.record(Info(Kind.ACTIVE, "first"), build)
    others[0].join(SECONDS)
    assert [info.name for info in store.walk()] == ["next"]
    assert trees(store) == ["1"]
    write(store.mounts("next"), {"a": "1"})
    store.close()


class Copying:
    """A native snapshotter in the middle of a copy, for as long as the block lasts."""

    def __init__(self, store: NativeSnapshotter, patch: pytest.MonkeyPatch) -> None:
        self.failure: BaseException | None = None
        self._store = store
        self._reached, self._go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._prepare)
        real = fs.copy_tree

        def copy(source: str, target: str) -> None:
            real(source, target)
            self._reached.set()
            self._go_on.wait(SECONDS)

        patch.setattr(fs, "copy_tree", copy)

    def _prepare(self) -> None:
        try:
            self._store.prepare("copy", "base")
        except BaseException as error:  # noqa: BLE001 told by the test
            self.failure = error

    def __enter__(self) -> Copying:
        self._thread.start()
        assert self._reached.wait(SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._go_on.set()
        self._thread.join(SECONDS)


def test_others_go_on_while_a_native_snapshot_is_copied(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = NativeSnapshotter(root)
    layer(store, "base", "", {"a": "1"})
    with Copying(store, monkeypatch) as copying:
        in_threads(lambda: store.prepare("other"), lambda: list(store.walk()))
        assert store.stat("other").kind is Kind.ACTIVE
        with pytest.raises(NotFound):
            store.stat("copy")
    assert copying.failure is None
    assert read(store.mounts("copy")) == {"a": "1"}
    store.close()


@pytest.mark.parametrize("again", [True, False])
def test_a_parent_that_goes_while_it_is_copied_is_not_mistaken(
    root: str, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    store = NativeSnapshotter(root)
    layer(store, "base", "", {"a": "1"})
    with Copying(store, monkeypatch) as copying:
        store.remove("base")
        if again:
            layer(store, "base", "", {"other": "2"})
    assert isinstance(copying.failure, NotFound)
    with pytest.raises(NotFound):
        store.stat("copy")
    store.cleanup()
    assert trees(store) == (["2"] if again else [])
    store.close()
