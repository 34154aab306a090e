"""Mounts, trees, commands and cgroups: what the rest of kontti takes for granted of them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.linux import cgroups, fs, libc, process
from kontti.linux.mounts import mount_all, mounted, parse_options, unmount_all
from kontti.values import Mount

pytestmark = pytest.mark.root


def mount_points() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A directory whose mounts are gone after the test."""
    path = tmp_path / "target"
    path.mkdir()
    before = mount_points()
    yield path
    for point in reversed([p for p in mount_points() if p.startswith(str(tmp_path))]):
        libc.umount2(point, libc.MNT_DETACH)
    assert mount_points() == before


def tmpfs(inside: str = "", size: str = "1m") -> Mount:
    return Mount("tmpfs", "tmpfs", (f"size={size}",), inside)


def test_options_are_flags_propagation_and_data() -> None:
    flags, propagation, data = parse_options(["ro", "nosuid", "rbind", "rslave", "size=1m"])
    assert flags == libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_BIND | libc.MS_REC
    assert propagation == libc.MS_SLAVE | libc.MS_REC
    assert data == ["size=1m"]


def test_a_read_only_bind_cannot_be_written(target: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    mount_all([Mount("bind", str(source), ("rbind", "ro"))], str(target))
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").write_text("x")
    unmount_all(str(target))
    (target / "file").write_text("x")


def test_targets_stay_in_the_root(target: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (target / "link").symlink_to(outside)
    # absolute links and dots mean places in the root, as in a container
    inside = target / str(outside).lstrip("/")
    inside.mkdir(parents=True)
    mount_all([tmpfs("/link")], str(target))
    assert str(inside) in mount_points()
    assert str(outside) not in mount_points()
    mount_all([tmpfs(f"/../../{str(outside).lstrip('/')}")], str(target))
    assert mount_points().count(str(inside)) == 2


def test_a_failure_undoes_what_was_made_and_nothing_else(target: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    mount_all([tmpfs()], str(victim))
    (target / "link").symlink_to(tmp_path)
    inside = target / str(victim).lstrip("/")
    inside.mkdir(parents=True)
    before = mount_points()
    with pytest.raises(OSError, match=r"nosuchfs|No such device"):
        mount_all([tmpfs("/link/victim"), Mount("nosuchfs", "x", ())], str(target))
    assert mount_points() == before


def test_mounted_is_gone_also_after_an_error() -> None:
    before = mount_points()
    seen: list[str] = []
    with pytest.raises(ValueError, match="mine"):
        fail_within(seen)
    assert mount_points() == before
    assert not os.path.exists(seen[0])


def fail_within(seen: list[str]) -> None:
    with mounted([tmpfs()]) as path:
        seen.append(path)
        assert path in mount_points()
        raise ValueError("mine")


def test_stacked_and_busy_mounts_are_all_undone(target: Path) -> None:
    for _ in range(3):
        mount_all([tmpfs()], str(target))
    with (target / "open").open("w"):
        unmount_all(str(target))
    unmount_all(str(target / "nosuch"))
    assert str(target) not in mount_points()


def test_atomic_write_replaces_and_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fs.atomic_write(str(path), b"one", 0o600)
    fs.atomic_write(str(path), b"two", 0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_fill_ahead(target: Path) -> None:
    fs.fill_ahead(str(target / "new"), 3 << 20)
    assert (target / "new").read_bytes() == bytes(3 << 20)
    (target / "old").write_bytes(b"kept")
    fs.fill_ahead(str(target / "old"), 3 << 20)
    assert (target / "old").read_bytes() == b"kept"
    mount_all([tmpfs()], str(target))
    fs.fill_ahead(str(target / "too-large"), 3 << 20)
    assert os.listdir(target) == []


def test_usage_counts_a_hard_linked_file_once(tmp_path: Path) -> None:
    size, inodes = fs.usage(str(tmp_path))
    (tmp_path / "a").write_bytes(os.urandom(1 << 20))
    os.link(tmp_path / "a", tmp_path / "b")
    more, count = fs.usage(str(tmp_path))
    assert 1 << 20 <= more - size < 2 << 20
    assert count - inodes == 1


def test_copy_tree_copies_all_that_a_file_is(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    (source / "d").mkdir(parents=True)
    (source / "d/f").write_bytes(b"data")
    os.setxattr(source / "d/f", "user.colour", b"red")
    os.chown(source / "d/f", 5, 6)
    os.chmod(source / "d/f", 0o4751)
    os.link(source / "d/f", source / "hard")
    (source / "soft").symlink_to("/etc/passwd")
    os.mkfifo(source / "fifo")
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.utime(source / "d/f", ns=(10**18, 10**18 + 7))
    os.utime(source / "d", ns=(10**18, 10**18 + 9))
    copy.mkdir()
    fs.copy_tree(str(source), str(copy))
    found = (copy / "d/f").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (5, 6, 0o4751)
    assert (found.st_mtime_ns, found.st_nlink) == (10**18 + 7, 2)
    assert (copy / "d").stat().st_mtime_ns == 10**18 + 9
    assert (copy / "d/f").read_bytes() == b"data"
    assert os.getxattr(copy / "d/f", "user.colour") == b"red"
    assert os.readlink(copy / "soft") == "/etc/passwd"
    assert stat.S_ISFIFO((copy / "fifo").stat().st_mode)
    assert (copy / "null").stat().st_rdev == os.makedev(1, 3)


def test_remove_tree_of_any_mode_and_depth(tmp_path: Path) -> None:
    top = tmp_path / "top"
    path = top
    for _ in range(40):
        path = path / "deep"
    path.mkdir(parents=True)
    (top / "closed").mkdir()
    (top / "closed/file").write_text("x")
    (top / "closed").chmod(0)
    (tmp_path / "precious").write_text("kept")
    (top / "link").symlink_to(tmp_path)
    fs.remove_tree(str(top))
    fs.remove_tree(str(top))
    assert os.listdir(tmp_path) == ["precious"]


def test_run_gives_code_and_output() -> None:
    done = process.run(["/bin/sh", "-c", "cat; echo e >&2; exit 3"], timeout=10, input=b"in")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in", b"e\n")
    assert process.run(["/bin/sh", "-c", "kill -9 $$"], timeout=10).returncode == -signal.SIGKILL


def test_run_is_bounded_in_time_and_output() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        process.run(["/bin/sleep", "60"], timeout=0.2)
    assert time.monotonic() - began < 10
    done = process.run(["/bin/sh", "-c", "head -c 100000 /dev/zero"], timeout=10, limit=1000)
    assert done.stdout == bytes(1000)


def test_run_leaks_no_descriptor_and_passes_none() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open("/dev/null") as kept:
        done = process.run(["/bin/ls", "/proc/self/fd"], timeout=10)
        assert str(kept.fileno()) not in done.stdout.decode().split() or kept.fileno() < 4
    with pytest.raises(FileNotFoundError):
        process.run(["/no/such/command"], timeout=10)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_group_is_read_and_removed() -> None:
    group = cgroups.paths_of(os.getpid()).get("pids")
    if group is None:
        group = f"/sys/fs/cgroup{Path('/proc/self/cgroup').read_text().split('::')[1].strip()}"
    made = f"{group.rstrip('/')}/kontti-test-{os.getpid()}"
    os.makedirs(f"{made}/below")
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        try:
            Path(f"{made}/below/cgroup.procs").write_text(str(child.pid))
            assert cgroups.pids(made) == [child.pid]
            assert any(path.endswith("/below") for path in cgroups.paths_of(child.pid).values())
        finally:
            child.kill()
            child.wait()
            deadline = time.monotonic() + 10
            while os.path.exists(made) and time.monotonic() < deadline:
                cgroups.remove(made)
    assert not os.path.exists(made)
