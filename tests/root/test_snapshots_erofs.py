"""What only the erofs snapshotter can get wrong: images, and when they are mounted."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.errors import ResourceExhausted, Unimplemented
from kontti.linux import libc
from kontti.linux.mounts import mounted
from kontti.snapshots.erofs import ErofsSnapshotter, supported
from kontti.snapshots.erofs_build import write_image
from kontti.testing.snapshots import layer, read, seen, write
from kontti.values import Mount
from tests.support import daemons, images
from tests.support.filesystems import ext4, make_ext4, mount_points, tmpfs

pytestmark = pytest.mark.root
NAME = "docker.io/library/busybox:erofs"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    make_ext4(folder / "image", 256 << 20)
    with ext4(folder / "image", folder / "disk") as path:
        yield path


@pytest.fixture
def root(disk: Path, tmp_path: Path) -> str:
    return str(disk / tmp_path.name)


@pytest.mark.parametrize("seed", range(6))
def test_an_image_shows_what_the_directory_has(disk: Path, tmp_path: Path, seed: int) -> None:
    """Owners, modes, times to the ns, links, devices, attributes, of every size of directory."""
    source = disk / f"source-{seed}"
    plant(source, random.Random(seed))
    image = disk / f"image-{seed}"
    write_image(str(source), str(image))
    with mounted([Mount("erofs", str(image), ("ro",))]) as shown:
        assert snapshot_of(Path(shown)) == snapshot_of(source)


def plant(root: Path, chance: random.Random) -> None:
    folders = [root]
    root.mkdir()
    for number in range(chance.choice((3, 60, 400))):
        folder = chance.choice(folders)
        path = folder / ("n" * chance.choice((1, 8, 120, 240)) + f"{number}ä")
        kind = chance.randrange(8)
        if kind == 0:
            path.mkdir()
            folders.append(path)
        elif kind == 1:
            os.symlink("t" * chance.choice((1, 511, 512, 513, 900)), path)
        elif kind == 2:
            os.mknod(path, 0o600 | 0o020000, os.makedev(chance.choice((0, 7)), 0))
        elif kind == 3:
            os.mknod(path, 0o600 | 0o060000, os.makedev(259, 70000))
        elif kind == 4:
            os.mkfifo(path)
        else:
            path.write_bytes(chance.randbytes(chance.choice((0, 1, 511, 512, 513, 70_000))))
            if kind == 5:
                os.link(path, folder / f"link-{number}")
            if kind == 6:
                os.setxattr(path, "user.colour", b"red" * chance.randrange(1, 100))
                os.setxattr(path, "trusted.odd", b"\0\1")
        if not path.is_symlink():
            path.chmod(chance.choice((0o644, 0o4755, 0o1777, 0)))
        os.chown(path, chance.choice((0, 1000, 4_000_000_000)), 7, follow_symlinks=False)
        os.utime(path, ns=(0, chance.randrange(4 * 10**18)), follow_symlinks=False)


def snapshot_of(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for folder, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(folder, name)
            status = path.lstat()
            plain = stat.S_ISREG(status.st_mode)
            attributes = os.listxattr(path, follow_symlinks=False)
            found[str(path.relative_to(root))] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_nlink if not stat.S_ISDIR(status.st_mode) else 0,
                status.st_rdev,
                os.readlink(path) if path.is_symlink() else "",
                path.read_bytes() if plain else b"",
                {n: os.getxattr(path, n, follow_symlinks=False) for n in attributes},
            )
    return found


def test_a_committed_snapshot_is_one_file(root: str) -> None:
    store = ErofsSnapshotter(root)
    layer(store, "base", "", {"a/b": "1"})
    assert sorted(os.listdir(store.path(1))) == ["fs", "layer.erofs"]
    assert os.listdir(store.tree(1)) == []
    assert store.usage("base").size > 0
    # it is mounted when it is first wanted, once, and by its file
    store.prepare("one", "base")
    store.prepare("two", "base")
    assert mount_points().count(store.tree(1)) == 1
    line = next(x for x in Path("/proc/self/mountinfo").read_text().splitlines() if root in x)
    assert "/dev/loop" not in line
    assert seen(store, "base") == {"a/b": "1"}
    store.remove("one")
    store.remove("two")
    store.remove("base")
    assert not [point for point in mount_points() if point.startswith(root)]
    store.cleanup()
    assert os.listdir(store.trees) == []
    store.close()


def test_what_is_mounted_over_images_outlives_the_snapshotter(root: str, tmp_path: Path) -> None:
    store = ErofsSnapshotter(root)
    layer(store, "base", "", {"a": "1"})
    with mounted(store.prepare("active", "base")) as shown:
        store.close()
        assert not [point for point in mount_points() if point.startswith(root)]
        assert Path(shown, "a").read_text() == "1"
        Path(shown, "b").write_text("2")
        store = ErofsSnapshotter(root)
        assert Path(shown, "b").read_text() == "2"
    assert read(store.mounts("active")) == {"a": "1", "b": "2"}
    store.close()


def test_a_commit_of_what_is_mounted(root: str) -> None:
    """Who has it mounted goes on with its own files, and the image has them as they were."""
    store = ErofsSnapshotter(root)
    layer(store, "base", "", {"a": "1"})
    with mounted(store.prepare("key", "base")) as shown:
        Path(shown, "b").write_text("2")
        store.commit("above", "key")
        assert seen(store, "above") == {"a": "1", "b": "2"}
        Path(shown, "b").write_text("3")
        assert Path(shown, "b").read_text() == "3"
    assert seen(store, "above") == {"a": "1", "b": "2"}
    store.close()
    store = ErofsSnapshotter(root)
    assert seen(store, "above") == {"a": "1", "b": "2"}
    store.close()


def test_a_killed_process_leaves_what_it_committed(root: str) -> None:
    program = f"""
import os
from kontti.snapshots.erofs import ErofsSnapshotter
from kontti.testing.snapshots import layer
store = ErofsSnapshotter({root!r})
layer(store, "base", "", {{"a": "1"}})
store.prepare("active", "base")
store._make_mount_point = lambda number: os.kill(os.getpid(), 9)
layer(store, "above", "base", {{"b": "2"}})
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    # its mount stays, as a kill leaves it, and its next owner uses it
    assert [point for point in mount_points() if point.startswith(root)]
    store = ErofsSnapshotter(root)
    assert seen(store, "above") == {"a": "1", "b": "2"}
    assert read(store.mounts("active")) == {"a": "1"}
    assert len([point for point in mount_points() if point.startswith(root)]) == 2
    store.close()
    assert not [point for point in mount_points() if point.startswith(root)]


def test_a_full_disk_makes_no_image(tmp_path: Path) -> None:
    make_ext4(tmp_path / "image", 24 << 20)
    with ext4(tmp_path / "image", tmp_path / "disk") as small:
        store = ErofsSnapshotter(str(small / "s"))
        write(store.prepare("key"), {"a": "x" * (12 << 20)})
        with pytest.raises(ResourceExhausted):
            store.commit("name", "key")
        assert sorted(os.listdir(store.path(1))) == ["fs", "work"]
        assert store.stat("key").name == "key"
        store.remove("key")
        store.close()


def test_where_images_cannot_be_mounted_from(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory") as path:
        with pytest.raises(Unimplemented, match="cannot be mounted from files here"):
            supported(str(path / "s"))
        assert os.listdir(path / "s") == []


@pytest.mark.parametrize("client", ["ours", "debian"])
def test_containers_run_on_images(disk: Path, tmp_path: Path, client: str) -> None:
    base = disk / f"daemon-{client}"
    archive = tmp_path / "image.tar"
    entries = [images.Entry(f"l{number}/f", str(number).encode()) for number in range(3)]
    layers = [images.base_layer(), *(images.layer([entry]) for entry in entries)]
    archive.write_bytes(images.archive(images.build(layers), NAME))
    with daemons.running("kontti", base) as daemon:

        def out(*args: str) -> str:
            done = daemon.ctr(client, *args, timeout=60)
            assert done.returncode == 0, done
            return done.stdout.decode()

        flags = ("--snapshotter", "erofs")
        out("images", "import", *flags, str(archive))
        script = "cat /l0/f /l1/f /l2/f; echo new > /l1/f; rm /l2/f; ls /l2"
        assert out("run", "--rm", *flags, NAME, f"erofs-{client}", "sh", "-c", script) == "012"
        out("images", "rm", "--sync", NAME)
        assert out("snapshots", *flags, "ls").splitlines()[1:] == []
    assert libc.statfs_type(str(base)) != libc.EROFS_SUPER_MAGIC
    assert not [point for point in mount_points() if point.startswith(str(base))]
