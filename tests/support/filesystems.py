"""File systems for tests, gone when the test is."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from kontti.linux import libc
from kontti.snapshots.blockfile import BlockfileSnapshotter, make_file_system


def mount_points() -> list[str]:
    """Where this mount namespace has mounts, in the order of their making."""
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


@contextlib.contextmanager
def no_mounts_left(below: Path) -> Iterator[None]:
    """Nothing is mounted below ``below`` after it, whatever fails within."""
    try:
        yield
    finally:
        for point in reversed([p for p in mount_points() if p.startswith(f"{below}/")]):
            libc.umount2(point, libc.MNT_DETACH)


@contextlib.contextmanager
def mounted_at(path: Path, *arguments: str) -> Iterator[Path]:
    """``path``, made and mounted by mount(8) with ``arguments`` before it."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *arguments, path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def tmpfs(path: Path, size: str = "16m") -> contextlib.AbstractContextManager[Path]:
    """A tmpfs at ``path``."""
    return mounted_at(path, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


def ext4(image: Path, path: Path) -> contextlib.AbstractContextManager[Path]:
    """The ext4 in the file ``image``, mounted at ``path``."""
    return mounted_at(path, "-o", "loop", str(image))


def make_ext4(image: Path, size: int = 64 << 20) -> None:
    """An empty ext4, with a journal, in a file."""
    image.touch()
    os.truncate(image, size)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)


def btrfs(image: Path, path: Path) -> contextlib.AbstractContextManager[Path]:
    """The btrfs in the file ``image``, mounted at ``path``."""
    return mounted_at(path, "-t", "btrfs", "-o", "loop", str(image))


def make_btrfs(image: Path, size: int = 256 << 20) -> None:
    """An empty btrfs in a file."""
    image.touch()
    os.truncate(image, size)
    subprocess.run(["mkfs.btrfs", "-q", "-f", image], check=True)


def blockfile(root: str) -> BlockfileSnapshotter:
    """A blockfile snapshotter with a small scratch file."""
    scratch = f"{root}-scratch"
    if not os.path.exists(scratch):
        make_file_system(scratch, "ext4", 16 << 20)
    return BlockfileSnapshotter(root, scratch_file=scratch)
