"""Files and trees that need no root: durable writes, depth, what is not copied."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.linux import fs

DEPTH = 3000


@pytest.fixture(autouse=True)
def nothing_deep_left(tmp_path: Path) -> Iterator[None]:
    """What fails to remove a deep tree must not have pytest's own clean-up fail as well."""
    yield
    subprocess.run(["rm", "-rf", str(tmp_path / "top")], check=True)


def make_deep(top: Path, depth: int = DEPTH) -> None:
    """Directories in directories, further down than any path can tell."""
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep", dir_fd=fd)
        below = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def test_a_tree_deeper_than_any_path_is_removed(tmp_path: Path) -> None:
    make_deep(tmp_path / "top")
    fs.remove_tree(str(tmp_path / "top"))
    assert os.listdir(tmp_path) == []


def test_many_deep_trees_in_one_are_removed(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    for number in range(5):
        make_deep(tmp_path / "top" / ("n" * 200 + str(number)), 1200)
    fs.remove_tree(str(tmp_path / "top"))
    assert os.listdir(tmp_path) == []


def test_what_is_removed_need_not_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "link").symlink_to("kept")
    fs.remove_tree(str(tmp_path / "link"))
    fs.remove_tree(str(tmp_path / "none"))
    assert [p.name for p in tmp_path.rglob("*")] == ["kept", "file"]


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        fs.atomic_write(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        fs.atomic_write(str(tmp_path / "folder"), b"new", sync=False)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    path, failures = tmp_path / "file", []
    whole = [bytes([65 + n]) * 50_000 for n in range(4)]

    def work(data: bytes) -> None:
        try:
            for _ in range(25):
                fs.atomic_write(str(path), data, sync=False)
                assert path.read_bytes() in whole
        except (OSError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(data,)) for data in whole]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert os.listdir(tmp_path) == ["file"]


def test_sockets_are_not_copied_whatever_their_names(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    fd = os.open(source, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as made:
        # by a short name: a socket's may have 107 bytes
        made.bind(f"/proc/self/fd/{fd}/one")
    os.close(fd)
    os.link(source / "one", source / "two")
    (source / "file").write_text("x")
    fs.copy_tree(str(source), str(copy))
    assert os.listdir(copy) == ["file"]


def test_a_symlink_is_copied_as_it_is(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    (source / "link").symlink_to("/nowhere")
    os.utime(source / "link", ns=(10**18, 10**18 + 3), follow_symlinks=False)
    fs.copy_tree(str(source), str(copy))
    assert os.readlink(copy / "link") == "/nowhere"
    assert (copy / "link").lstat().st_mtime_ns == 10**18 + 3


def test_a_file_is_copied_whole_also_without_copy_file_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    data = os.urandom((2 << 20) + 17)
    (source / "file").write_bytes(data)
    whole = os.write

    def none(source: int, target: int, count: int) -> int:
        raise OSError(errno.EXDEV, "other file system")

    def part(fd: int, data: bytes) -> int:
        # write(2) may take less than it is given
        return whole(fd, data[:100_000])

    monkeypatch.setattr(os, "copy_file_range", none)
    monkeypatch.setattr(os, "write", part)
    fs.copy_tree(str(source), str(copy))
    assert (copy / "file").read_bytes() == data


def test_usage_of_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    assert fs.usage(str(tmp_path / "none")) == (0, 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    assert fs.usage(str(tmp_path))[1] == 3
