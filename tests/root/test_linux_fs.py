"""Trees on more than one file system, and as others than root."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kontti.linux import fs, process
from tests.support.filesystems import tmpfs

pytestmark = pytest.mark.root
NOBODY = 65534


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A directory of nobody's, where nobody can reach it."""
    path = Path(tempfile.mkdtemp(prefix="kontti-test-"))
    os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def as_nobody(work: Callable[[], None]) -> int:
    pid = process.fork()
    if not pid:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
            code = 0
        finally:
            os._exit(code)
    return process.wait(pid, 20)


def test_who_is_not_root_removes_own_trees_of_any_mode(theirs: Path) -> None:
    for number, mode in enumerate((0, 0o100, 0o400, 0o500, 0o700)):
        path = theirs / "top" / str(number) / "below"
        path.mkdir(parents=True)
        (path / "file").touch()
        (path / "empty").mkdir()
        for made in (path / "file", path / "empty", path, path.parent):
            os.chown(made, NOBODY, NOBODY)
        for made in (path / "empty", path, path.parent):
            made.chmod(mode)
    os.chown(theirs / "top", NOBODY, NOBODY)
    assert as_nobody(lambda: fs.remove_tree(str(theirs / "top"))) == 0
    assert os.listdir(theirs) == []


def test_who_is_not_root_cannot_remove_others_trees(theirs: Path) -> None:
    (theirs / "top").mkdir()
    (theirs / "top/file").touch()
    assert as_nobody(lambda: fs.remove_tree(str(theirs / "top"))) == 1
    assert (theirs / "top/file").exists()


def test_a_tree_is_copied_to_another_file_system(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    data = os.urandom((3 << 20) + 5)
    (source / "d/large").write_bytes(data)
    (source / "d/empty").touch()
    os.link(source / "d/large", source / "again")
    os.chown(source / "d/empty", 7, 8)
    with tmpfs(tmp_path / "other") as other:
        (other / "copy").mkdir()
        fs.copy_tree(str(source), str(other / "copy"))
        assert (other / "copy/d/large").read_bytes() == data
        assert (other / "copy/again").samefile(other / "copy/d/large")
        assert (other / "copy/d/empty").stat().st_uid == 7


def test_a_copy_for_which_there_is_no_room_says_so(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/large").write_bytes(bytes(4 << 20))
    with tmpfs(tmp_path / "small", "1m") as small:
        (small / "copy").mkdir()
        with pytest.raises(OSError, match="No space left"):
            fs.copy_tree(str(tmp_path / "source"), str(small / "copy"))
        fs.remove_tree(str(small / "copy"))
        assert fs.usage(str(small))[1] == 1


def test_capabilities_of_a_file_are_copied(tmp_path: Path) -> None:
    # cap_net_raw+ep, as xattr(7) has it: lost when the owner changes after it is set
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    (tmp_path / "source").mkdir()
    (tmp_path / "copy").mkdir()
    (tmp_path / "source/ping").touch()
    os.chown(tmp_path / "source/ping", 5, 6)
    os.setxattr(tmp_path / "source/ping", "security.capability", value)
    fs.copy_tree(str(tmp_path / "source"), str(tmp_path / "copy"))
    assert os.getxattr(tmp_path / "copy/ping", "security.capability") == value
    assert (tmp_path / "copy/ping").stat().st_uid == 5
