"""Mounts with mapped owners, and the snapshots and containers that have them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.diff.plan import plan_reading, plan_tree, stack
from kontti.errors import InvalidArgument
from kontti.linux import overlays
from kontti.linux.mounts import mount_all, mounted, unmount_all
from kontti.snapshots.erofs import ErofsSnapshotter
from kontti.snapshots.overlay import MAPPING_LABELS, OverlaySnapshotter
from kontti.testing.snapshots import layer
from kontti.values import Mount
from tests.support.filesystems import ext4, make_ext4, mount_points
from tests.support.host import IMAGE, Host, host

pytestmark = pytest.mark.root
MAPS = ("uidmap=0:1000:10,10:5000:10", "gidmap=0:2000:10")
KERNELS = [(6, 18), (6, 14), (6, 5)]


def labels(uid: int, gid: int) -> dict[str, str]:
    return dict(zip(MAPPING_LABELS, (f"0:{uid}:65536", f"0:{gid}:65536"), strict=True))


def owners(root: str, *names: str) -> set[tuple[int, int]]:
    found = [os.lstat(os.path.join(root, name)) for name in names]
    return {(status.st_uid, status.st_gid) for status in found}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    make_ext4(folder / "image")
    with ext4(folder / "image", folder / "disk") as path:
        yield path


@pytest.fixture(autouse=True)
def nothing_left(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield
    places = (f"{disk}/", str(tmp_path))
    assert not [point for point in mount_points() if point.startswith(places)]
    assert os.listdir(temporary) == []


@pytest.mark.parametrize("make", [OverlaySnapshotter, ErofsSnapshotter])
def test_two_mappings_over_one_image(
    disk: Path, make: type[OverlaySnapshotter], request: pytest.FixtureRequest
) -> None:
    store = make(str(disk / request.node.name))
    layer(store, "base", "", {"a": "1", "d/b": "1"})
    layer(store, "image", "base", {"c": "1"})
    for uid, gid in ((1000, 2000), (100000, 200000)):
        mounts = store.prepare(f"key-{uid}", "image", labels(uid, gid))
        assert store.mounts(f"key-{uid}") == mounts
        with mounted(mounts) as root:
            assert owners(root, ".", "a", "c", "d", "d/b") == {(uid, gid)}
            # it is copied up with the owner that it shows
            Path(root, "a").write_text("2")
            os.chown(os.path.join(root, "c"), uid + 5, gid + 5)
        assert owners(store.tree(store.records.get(f"key-{uid}").id), ".", "a") == {(uid, gid)}
        with mounted(mounts, readonly=True) as root:
            assert owners(root, "a", "d/b") == {(uid, gid)}
            assert owners(root, "c") == {(uid + 5, gid + 5)}
            with pytest.raises(OSError, match="Read-only"):
                Path(root, "new").touch()
        with mounted(store.view(f"view-{uid}", "base", labels(uid, gid))) as root:
            assert owners(root, ".", "a", "d/b") == {(uid, gid)}
    with mounted(store.view("view", "image")) as root:
        assert owners(root, ".", "a", "c", "d", "d/b") == {(0, 0)}
        assert Path(root, "a").read_text() == "1"
    store.close()


def test_what_has_no_parent_is_its_root_users_own(disk: Path) -> None:
    store = OverlaySnapshotter(str(disk / "first"))
    with mounted(store.prepare("key", "", labels(1000, 2000))) as root:
        assert owners(root, ".") == {(1000, 2000)}
        Path(root, "a").touch()
        assert owners(root, "a") == {(0, 0)}
    store.close()


def test_a_mapped_snapshot_that_a_power_loss_took_is_its_root_users_again(disk: Path) -> None:
    store = OverlaySnapshotter(str(disk / "lost"))
    layer(store, "base", "", {"a": "1"})
    store.prepare("key", "base", labels(1000, 2000))
    path = store.path(2)
    store.close()
    os.rename(path, disk / "taken")
    store = OverlaySnapshotter(str(disk / "lost"))
    with mounted(store.mounts("key")) as root:
        assert owners(root, ".", "a") == {(1000, 2000)}
    store.close()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("count", [1, 200])
def test_overlays_of_any_length(
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernel: tuple[int, int],
    count: int,
) -> None:
    monkeypatch.setattr(overlays, "kernel_version", lambda: kernel)
    lowers = []
    for number in range(count):
        lowers.append(tmp_path / f"layer-{number}" / "fs")
        lowers[-1].mkdir(parents=True)
        (lowers[-1] / str(number)).touch()
        os.chown(lowers[-1] / str(number), number % 20, number % 10)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    joined = ":".join(map(str, lowers))
    own = (f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    with mounted([Mount("overlay", "overlay", (*MAPS, f"lowerdir={joined}", *own))]) as root:
        for number in range(count):
            uid = number % 20
            wanted = 1000 + uid if uid < 10 else 4990 + uid
            assert owners(root, str(number)) == {(wanted, 2000 + number % 10)}
        os.chown(os.path.join(root, "0"), 1, 1)
    assert owners(str(tmp_path / "upper"), "0") == {(1, 1)}
    assert owners(str(lowers[0]), "0") == {(0, 0)}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_lower_directory_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, int]
) -> None:
    monkeypatch.setattr(overlays, "kernel_version", lambda: kernel)
    lowers = f"lowerdir={tmp_path}:{tmp_path}/none"
    with (
        pytest.raises(OSError, match="No such file"),
        mounted([Mount("overlay", "overlay", (*MAPS, lowers))]),
    ):
        pass


def test_binds_and_files(disk: Path, tmp_path: Path) -> None:
    (disk / "source").mkdir()
    (disk / "source/f").touch()
    os.chown(disk / "source/f", 12, 3)
    bind = Mount("bind", str(disk / "source"), (*MAPS, "rbind", "ro", "nosuid"))
    with mounted([bind]) as root:
        assert owners(root, ".") == {(1000, 2000)}
        assert owners(root, "f") == {(5002, 2003)}
        assert os.statvfs(root).f_flag & os.ST_NOSUID
        with pytest.raises(OSError, match="Read-only"):
            Path(root, "new").touch()
    make_ext4(tmp_path / "image", 8 << 20)
    with mounted([Mount("ext4", str(tmp_path / "image"), (*MAPS, "loop"))]) as root:
        assert owners(root, ".", "lost+found") == {(1000, 2000)}


@pytest.mark.parametrize(
    "options",
    [MAPS[:1], MAPS[1:], ("uidmap=0:0", MAPS[1]), ("uidmap=", MAPS[1]),
     ("uidmap=" + ",".join(f"{n}:{n}:1" for n in range(341)), MAPS[1])],
)  # fmt: skip
def test_mappings_that_are_none(tmp_path: Path, options: tuple[str, ...]) -> None:
    with (
        pytest.raises(InvalidArgument, match="map"),
        mounted([Mount("bind", str(tmp_path), (*options, "bind"))]),
    ):
        pass


def test_mappings_that_the_kernel_refuses(tmp_path: Path) -> None:
    overlapping = ("uidmap=0:1000:10,5:2000:10", MAPS[1])
    descriptors = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(OSError, match="Invalid argument"),
        mounted([Mount("bind", str(tmp_path), (*overlapping, "bind"))]),
    ):
        pass
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_layers_are_applied_over_what_mapped_mounts_show(disk: Path) -> None:
    overlay = Mount("overlay", "overlay", (*MAPS, "lowerdir=/a:/b", "upperdir=/u", "workdir=/w"))
    bind = Mount("bind", "/a", (*MAPS, "rbind"))
    for mount in (overlay, bind):
        assert plan_tree([mount])["kind"] == plan_reading([mount])["kind"] == "mounted"
        assert stack([mount]) == ()


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    with host(start=False, image=False) as made:
        # a root that is nobody on the host has to get to its root file system
        made.base.chmod(0o711)
        made.start()
        made.import_image()
        yield made


@pytest.mark.parametrize("runtime", [(), ("--runc-binary", "runc")])
def test_containers_of_different_users_share_layers(here: Host, runtime: tuple[str, ...]) -> None:
    before = here.out("snapshots", "ls").splitlines()
    for uid in (100000, 300000):
        maps = ("--uidmap", f"0:{uid}:65536", "--gidmap", f"0:{uid + 7}:65536")
        script = "stat -c %u:%g / /bin/busybox; echo more >> /bin/busybox; sleep 1000"
        words = ("--remap-labels", *runtime, IMAGE, f"c{uid}", "sh", "-c", script)
        here.out("run", "-d", "--null-io", *maps, *words)
        pid = here.until(f"c{uid}", "RUNNING")
        done = here.out(
            "tasks", "exec", "--exec-id", "x", f"c{uid}", "stat", "-c", "%u:%g", "/bin/sh"
        )
        assert done == "0:0\n"
        assert owners(f"/proc/{pid}/root", ".", "bin", "bin/busybox") == {(uid, uid + 7)}
    # one more for each container, and no copies
    assert len(here.out("snapshots", "ls").splitlines()) == len(before) + 2
    top = here.base / "root/io.containerd.snapshotter.v1.overlayfs/snapshots"
    assert owners(str(top / "1/fs"), ".", "bin", "bin/busybox") == {(0, 0)}
    for uid in (100000, 300000):
        here.out("tasks", "rm", "-f", f"c{uid}")
        here.out("containers", "rm", f"c{uid}")
    assert here.nothing() == {}


def test_the_daemon_says_that_it_can(here: Host) -> None:
    found = here.out("plugins", "ls", "-d", "id==overlayfs")
    assert "remap-ids" in found
    assert "only-remap-ids" in found


def test_a_failed_mapped_mount_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "at").mkdir()
    mounts = [Mount("bind", str(tmp_path), ("bind",)), Mount("tmpfs", "none", (*MAPS, "size=x"))]
    with pytest.raises(OSError, match="Invalid argument"):
        mount_all(mounts, str(tmp_path / "at"))
    unmount_all(str(tmp_path / "at"))
