"""Mounts as snapshotters describe them: long overlays, read-only ones, and what failures leave."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.errors import InvalidArgument
from kontti.linux import overlays
from kontti.linux.mounts import mount_all, mounted, unmount_all
from kontti.values import Mount
from tests.support.filesystems import mount_points, no_mounts_left, tmpfs

pytestmark = pytest.mark.root
TMPFS = Mount("tmpfs", "tmpfs", ("size=1m",))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs with nothing below it mounted in the end; overlays may be on it."""
    before = mount_points()
    with no_mounts_left(tmp_path), tmpfs(tmp_path / "disk") as path, no_mounts_left(path):
        yield path
    assert mount_points() == before


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def bind(source: Path, *options: str) -> Mount:
    return Mount("bind", str(source), ("rbind", *options))


def overlay(disk: Path, count: int, name: str = "layer") -> Mount:
    """An overlay of ``count`` lower directories, each with a file of its number and a ``top``."""
    lowers = [folder(disk / f"{name}-{number}" / "fs") for number in range(count)]
    for number, lower in enumerate(lowers):
        (lower / str(number)).touch()
        (lower / "top").write_text(str(number))
    upper, work = folder(disk / "own/fs"), folder(disk / "own/work")
    joined = ":".join(map(str, reversed(lowers)))
    options = (f"workdir={work}", f"upperdir={upper}", f"lowerdir={joined}")
    return Mount("overlay", "overlay", options)


@pytest.mark.parametrize("kernel", [(6, 8), (5, 10)])
def test_an_overlay_of_more_layers_than_fit_a_page(
    disk: Path, kernel: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlays, "kernel_version", lambda: kernel)
    mount = overlay(disk, 200)
    assert len(",".join(mount.options)) > overlays.PAGE
    here = os.getcwd()
    with mounted([mount]) as path:
        assert len(os.listdir(path)) == 201
        assert Path(path, "top").read_text() == "199"
        Path(path, "top").write_text("written")
    assert (disk / "own/fs/top").read_text() == "written"
    assert os.getcwd() == here


def test_a_long_overlay_takes_flags_and_options(disk: Path) -> None:
    mount = overlay(disk, 200)
    folder(disk / "at")
    words = ("ro", "nosuid", "nodev", "noatime", "index=off", "volatile")
    mount_all([Mount("overlay", "overlay", (*words, *mount.options))], str(disk / "at"))
    [line] = [x for x in Path("/proc/self/mounts").read_text().splitlines() if f"{disk}/at " in x]
    found = line.split()[3].split(",")
    assert {"ro", "nosuid", "nodev", "noatime"} <= set(found)
    # newer kernels show it as fsync=volatile
    assert any(word.endswith("volatile") for word in found)
    with pytest.raises(OSError, match="Read-only"):
        (disk / "at/new").touch()


def test_before_lowerdir_plus_there_is_an_end_to_layers(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlays, "kernel_version", lambda: (6, 7))
    mount = overlay(disk, 200, "a-name-that-is-long-also-when-it-is-relative")
    here = os.getcwd()
    with pytest.raises(InvalidArgument, match="200 layers"), mounted([mount]):
        pass
    assert os.getcwd() == here


def test_a_long_overlay_of_what_is_not_there_leaves_no_mount(disk: Path) -> None:
    mount = overlay(disk, 200)
    (disk / "layer-7/fs/7").unlink()
    (disk / "layer-7/fs/top").unlink()
    (disk / "layer-7/fs").rmdir()
    before = mount_points()
    with pytest.raises(OSError, match="No such file"), mounted([mount]):
        pass
    assert mount_points() == before


def test_a_read_only_view_of_an_overlay_shows_what_was_written(disk: Path) -> None:
    mount = overlay(disk, 2)
    with mounted([mount]) as path:
        Path(path, "written").write_text("x")
        os.unlink(os.path.join(path, "0"))
    with mounted([mount], readonly=True) as path:
        assert sorted(os.listdir(path)) == ["1", "top", "written"]
        with pytest.raises(OSError, match="Read-only"):
            Path(path, "new").touch()


@pytest.mark.parametrize("options", [("rw",), (), ("ro",)])
def test_a_read_only_view_of_a_bind(disk: Path, options: tuple[str, ...]) -> None:
    folder(disk / "source")
    with mounted([bind(disk / "source", *options)], readonly=True) as path:
        with pytest.raises(OSError, match="Read-only"):
            Path(path, "new").touch()
        (disk / "source/below").touch()
        assert os.listdir(path) == ["below"]


def test_a_bind_of_what_is_read_only_stays_so(disk: Path) -> None:
    folder(disk / "source")
    with (
        mounted([bind(disk / "source", "ro", "nodev")]) as first,
        mounted([bind(Path(first), "nosuid")]) as second,
    ):
        with pytest.raises(OSError, match="Read-only"):
            Path(second, "new").touch()
        assert os.statvfs(second).f_flag & os.ST_NODEV
        assert os.statvfs(second).f_flag & os.ST_NOSUID


def test_a_file_can_be_bound(disk: Path) -> None:
    (disk / "source").write_text("x")
    (disk / "target").touch()
    mount_all([bind(disk / "source", "ro")], str(disk / "target"))
    assert (disk / "target").read_text() == "x"
    with pytest.raises(OSError, match="Read-only"):
        (disk / "target").write_text("y")
    unmount_all(str(disk / "target"))
    assert (disk / "target").read_text() == ""


def test_propagation(disk: Path) -> None:
    folder(disk / "at")
    mount_all([Mount("tmpfs", "tmpfs", ("size=1m", "rshared"))], str(disk / "at"))
    [line] = [
        x for x in Path("/proc/self/mountinfo").read_text().splitlines() if f" {disk}/at " in x
    ]
    assert "shared:" in line


def test_a_target_that_is_not_there_is_told_and_the_others_are_undone(disk: Path) -> None:
    folder(disk / "at")
    before = mount_points()
    wanted = [TMPFS, Mount("tmpfs", "tmpfs", (), "/no/such/place")]
    with pytest.raises(FileNotFoundError):
        mount_all(wanted, str(disk / "at"))
    assert mount_points() == before


def test_a_symlink_out_of_the_root_is_not_followed_by_unmount(disk: Path) -> None:
    folder(disk / "victim")
    mount_all([TMPFS], str(disk / "victim"))
    (disk / "link").symlink_to("victim")
    unmount_all(str(disk / "link"))
    assert str(disk / "victim") in mount_points()


def test_mounts_in_a_mount_go_with_it(disk: Path) -> None:
    folder(disk / "source/inside")
    with mounted([bind(disk / "source"), Mount("tmpfs", "tmpfs", (), "/inside")]) as path:
        assert f"{path}/inside" in mount_points()
    assert not [point for point in mount_points() if point.startswith(path)]
    assert not os.path.exists(path)


def test_what_cannot_be_mounted_leaves_no_directory(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder(disk / "temporary")))
    with pytest.raises(FileNotFoundError), mounted([bind(disk / "nosuch")]):
        pass
    assert os.listdir(disk / "temporary") == []


def test_a_busy_mount_is_gone_when_its_block_ends(disk: Path) -> None:
    with mounted([TMPFS]) as path:
        busy = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert path not in mount_points()
        assert not os.path.exists(path)
    finally:
        os.close(busy)
