"""What only the blockfile and btrfs snapshotters can get wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.errors import AlreadyExists, FailedPrecondition, Unimplemented
from kontti.linux.btrfs import create, is_readonly
from kontti.linux.mounts import mounted
from kontti.snapshots import blockfile as module
from kontti.snapshots.base import MAX_SIZE_LABEL
from kontti.snapshots.blockfile import BlockfileSnapshotter
from kontti.snapshots.btrfs import BtrfsSnapshotter, supported
from kontti.testing.snapshots import layer, read, seen, write
from tests.support import daemons, images
from tests.support.filesystems import (
    blockfile,
    btrfs,
    ext4,
    make_btrfs,
    make_ext4,
    mount_points,
)

pytestmark = pytest.mark.root
# 300 take most of a minute
LAYERS = int(os.environ.get("KONTTI_LAYERS", "70"))
NAME = "docker.io/library/busybox:test"


@pytest.fixture
def subvolumes(tmp_path: Path) -> Iterator[Path]:
    make_btrfs(tmp_path / "subvolumes", 192 << 20)
    with btrfs(tmp_path / "subvolumes", tmp_path / "btrfs") as path:
        yield path


def test_what_is_mounted_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.1)
    store = blockfile(str(tmp_path / "s"))
    with mounted(store.prepare("key")) as root:
        Path(root, "a").write_text("1")
        with pytest.raises(FailedPrecondition, match="snapshot key is still mounted"):
            store.commit("name", "key")
    store.commit("name", "key")
    assert seen(store, "name") == {"a": "1"}
    store.close()


def test_an_image_that_is_mounted_twice_is_one_file_system(tmp_path: Path) -> None:
    store = blockfile(str(tmp_path / "s"))
    mounts = store.prepare("key")
    with (
        mounted(mounts) as first,
        mounted(mounts) as second,
        mounted(mounts, readonly=True) as third,
    ):
        Path(first, "a").write_text("1")
        assert Path(second, "a").read_text() == Path(third, "a").read_text() == "1"
        with pytest.raises(OSError, match="Read-only"):
            Path(third, "b").touch()
        Path(second, "a").write_text("2")
    assert read(mounts) == {"a": "2"}
    store.close()


def test_two_views_of_one_image(tmp_path: Path) -> None:
    store = blockfile(str(tmp_path / "s"))
    layer(store, "base", "", {"a": "1"})
    with mounted(store.view("one", "base")) as one, mounted(store.view("two", "base")) as two:
        assert Path(one, "a").read_text() == Path(two, "a").read_text() == "1"
    store.close()


def test_scratch_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unimplemented, match="no `scratch_file` is configured"):
        BlockfileSnapshotter(str(tmp_path / "s"))
    monkeypatch.setattr(module, "SCRATCH_SIZE", 16 << 20)
    scratch = str(tmp_path / "scratch")
    store = BlockfileSnapshotter(str(tmp_path / "s"), scratch_file=scratch)
    assert os.path.getsize(store.scratch) == os.path.getsize(scratch) == 16 << 20
    assert os.stat(store.scratch).st_blocks * 512 < 5 << 20
    assert store.prepare("key")[0].type == "ext4"
    store.close()
    os.truncate(scratch, 20 << 20)
    for again, size in ((False, 16 << 20), (True, 20 << 20)):
        store = BlockfileSnapshotter(
            str(tmp_path / "s"), scratch_file=scratch, recreate_scratch=again
        )
        assert os.path.getsize(store.scratch) == size
        store.close()
    os.unlink(scratch)
    # the one that was made is enough
    store = BlockfileSnapshotter(str(tmp_path / "s"), mount_options=("noatime", "loop"))
    assert store.mounts("key")[0].options == ("noatime", "loop", "rw")
    store.close()


def test_a_file_system_that_nobody_can_make(tmp_path: Path) -> None:
    with pytest.raises(Unimplemented, match=r"no mkfs\.none"):
        BlockfileSnapshotter(str(tmp_path / "s"), scratch_file=str(tmp_path / "x"), fs_type="none")
    assert os.listdir(tmp_path / "s") == []


def test_a_lost_image_is_seen(tmp_path: Path) -> None:
    store = blockfile(str(tmp_path / "s"))
    layer(store, "base", "", {"a": "1"})
    assert store.damage("base") == ""
    os.unlink(store.image(1))
    assert store.damage("base") == "its image is gone"
    store.close()


@pytest.mark.parametrize("kind", ["blockfile", "btrfs"])
def test_what_was_committed_is_there_after_a_power_loss(tmp_path: Path, kind: str) -> None:
    make = {"blockfile": blockfile, "btrfs": BtrfsSnapshotter}[kind]
    image, after = tmp_path / "disk.img", tmp_path / "after.img"
    (make_ext4 if kind == "blockfile" else make_btrfs)(image, 192 << 20)
    mount = ext4 if kind == "blockfile" else btrfs
    with mount(image, tmp_path / "disk") as disk:
        store = make(str(disk / "root"))
        layer(store, "base", "", {"a": "1", "d/e": "x" * (1 << 20)})
        layer(store, "child", "base", {"a": "2"})
        write(store.prepare("active", "child"), {"b": "3"})
        store.view("view", "child")
        # what has reached the disk by now, and nothing else
        shutil.copyfile(image, after)
        store.close()
    os.unlink(image)
    with mount(after, tmp_path / "disk") as disk:
        store = make(str(disk / "root"))
        assert seen(store, "base") == {"a": "1", "d/e": "x" * (1 << 20)}
        assert seen(store, "child")["a"] == "2"
        assert read(store.mounts("active"))["a"] == "2"
        assert read(store.mounts("view"))["a"] == "2"
        write(store.mounts("active"), {"b": "4"})
        store.cleanup()
        assert sorted(os.listdir(store.trees)) == ["1", "2", "3", "4"]
        store.close()


KILLED = """
import os, sys
from kontti.snapshots.btrfs import BtrfsSnapshotter
from kontti.testing.snapshots import layer
store = BtrfsSnapshotter(sys.argv[1])
layer(store, "base", "", {"a": "1"})
store.prepare("key", "base")
store.records.commit = lambda *arguments: os.kill(os.getpid(), 9)
store.commit("name", "key")
"""


def test_a_kill_while_a_subvolume_is_committed(subvolumes: Path) -> None:
    root = str(subvolumes / "s")
    done = subprocess.run([sys.executable, "-c", KILLED, root], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert is_readonly(f"{root}/snapshots/2")
    store = BtrfsSnapshotter(root)
    write(store.mounts("key"), {"b": "2"})
    store.commit("name", "key")
    assert seen(store, "name") == {"a": "1", "b": "2"}
    store.close()


def test_a_committed_subvolume_cannot_be_changed(subvolumes: Path) -> None:
    store = BtrfsSnapshotter(str(subvolumes / "s"))
    layer(store, "base", "", {"a": "1"})
    with pytest.raises(OSError, match="Read-only"):
        Path(store.path(1), "b").touch()
    store.prepare("key", "base")
    with pytest.raises(AlreadyExists):
        store.commit("base", "key")
    write(store.mounts("key"), {"b": "2"})
    store.close()


def test_subvolumes_that_were_made_in_a_container_go_with_it(subvolumes: Path) -> None:
    store = BtrfsSnapshotter(str(subvolumes / "s"))
    store.prepare("key")
    os.mkdir(os.path.join(store.path(1), "d"))
    create(os.path.join(store.path(1), "d", "one"))
    create(os.path.join(store.path(1), "d", "one", "two"))
    store.commit("name", "key")
    store.remove("name")
    store.cleanup()
    assert os.listdir(store.trees) == []
    left = subprocess.run(
        ["btrfs", "subvolume", "list", subvolumes], capture_output=True, check=True
    )
    assert left.stdout == b""
    store.close()


def test_a_childs_usage_is_what_it_changed(subvolumes: Path) -> None:
    store = BtrfsSnapshotter(str(subvolumes / "s"))
    layer(store, "base", "", {"big": "x" * (4 << 20), "d/f": "1"})
    layer(store, "child", "base", {"d/g": "x" * (1 << 20)})
    usage = store.usage("child")
    assert 1 << 20 <= usage.size < 2 << 20
    # the file and the directory that it is in
    assert usage.inodes == 2
    assert store.damage("child") == ""
    store.close()


def test_files_of_a_committed_subvolume_are_replaced(subvolumes: Path) -> None:
    store = BtrfsSnapshotter(str(subvolumes / "s"))
    layer(store, "base", "", {"a": "bad"})
    write(store.prepare("again"), {"a": "good"})
    store.replace("base", "again")
    assert seen(store, "base") == {"a": "good"}
    assert is_readonly(store.path(1))
    store.cleanup()
    assert os.listdir(store.trees) == ["1"]
    store.close()


def fill(path: str, megabytes: int) -> None:
    with open(path, "wb") as file:
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())


def test_a_snapshot_takes_no_more_than_its_label_says(subvolumes: Path) -> None:
    store = BtrfsSnapshotter(str(subvolumes / "s"))
    layer(store, "base", "", {"big": "x" * (8 << 20)})
    limited = {MAX_SIZE_LABEL: str(4 << 20)}
    with pytest.raises(Unimplemented, match="no quotas enabled"):
        store.prepare("key", "base", limited)
    assert os.listdir(store.trees) == ["1"]
    subprocess.run(["btrfs", "quota", "enable", subvolumes], check=True)
    with mounted(store.prepare("key", "base", limited)) as root:
        Path(root, "little").write_bytes(bytes(1 << 20))
        with pytest.raises(OSError, match="quota exceeded"):
            fill(f"{root}/much", 16)
    with mounted(store.prepare("free", "base")) as root:
        fill(f"{root}/much", 16)
    store.close()


def test_where_there_are_no_subvolumes(tmp_path: Path) -> None:
    with pytest.raises(Unimplemented, match="is not on btrfs"):
        supported(str(tmp_path / "s"))


@pytest.mark.parametrize("client", ["ours", "debian"])
@pytest.mark.parametrize("kind", ["blockfile", "btrfs"])
def test_containers_run_on_them(tmp_path: Path, subvolumes: Path, client: str, kind: str) -> None:
    archive = tmp_path / "image.tar"
    entries = [images.Entry(f"l{number}/f", str(number).encode()) for number in range(3)]
    layers = [images.base_layer(), *(images.layer([entry]) for entry in entries)]
    archive.write_bytes(images.archive(images.build(layers), NAME))
    scratch = tmp_path / "scratch"
    module.make_file_system(str(scratch), "ext4", 64 << 20)
    more = f"""
[plugins."io.containerd.snapshotter.v1.blockfile"]
scratch_file = "{scratch}"
[plugins."io.containerd.snapshotter.v1.btrfs"]
root_path = "{subvolumes}/s"
"""
    with daemons.running("kontti", tmp_path / "base", more) as daemon:

        def out(*args: str) -> str:
            done = daemon.ctr(client, *args, timeout=60)
            assert done.returncode == 0, done
            return done.stdout.decode()

        flags = ("--snapshotter", kind)
        out("images", "import", *flags, str(archive))
        script = "cat /l0/f /l1/f /l2/f; echo new > /l1/f; rm /l2/f; ls /l2"
        assert out("run", "--rm", *flags, NAME, f"c-{client}", "sh", "-c", script) == "012"
        out("run", "-d", *flags, "--null-io", NAME, "long", "sleep", "1000")
        # a name is looked up in the file system that is in use
        who = out("tasks", "exec", "--exec-id", "x", "--user", "root", "long", "id", "-u")
        assert who == "0\n"
        out("tasks", "rm", "-f", "long")
        out("containers", "rm", "long")
        out("images", "rm", "--sync", NAME)
        assert out("snapshots", *flags, "ls").splitlines()[1:] == []
    assert not [point for point in mount_points() if point.startswith(str(tmp_path / "base"))]


def test_debians_client_runs_an_image_of_many_layers(tmp_path: Path) -> None:
    """More than a page of options names: the client mounts it too, to look users up."""
    archive = tmp_path / "image.tar"
    entries = [images.Entry(f"l/{number}", str(number).encode()) for number in range(LAYERS)]
    layers = [images.base_layer(), *(images.layer([entry]) for entry in entries)]
    archive.write_bytes(images.archive(images.build(layers), NAME))
    with daemons.running("kontti", tmp_path / "base") as daemon:

        def out(*args: str) -> str:
            done = daemon.ctr("debian", *args, timeout=90)
            assert done.returncode == 0, done
            return done.stdout.decode()

        out("images", "import", str(archive))
        words = ("sh", "-c", f"ls /l | wc -l; cat /l/0 /l/{LAYERS - 1}")
        assert out("run", "--rm", NAME, "many", *words).split() == [str(LAYERS), f"0{LAYERS - 1}"]
        out("images", "rm", "--sync", NAME)
