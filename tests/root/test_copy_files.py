"""Copying from and to a tree that is a container's, on a tree that is none: every way out."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.engine.files import Files, Root
from kontti.errors import Error, InvalidArgument, NotFound

pytestmark = pytest.mark.root
TREE = os.O_PATH | os.O_DIRECTORY


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "src" / "sub").mkdir(parents=True)
    (made / "src" / "one").write_text("one\n")
    os.chmod(made / "src" / "one", 0o640)
    os.chown(made / "src" / "one", 7, 8)
    os.setxattr(made / "src" / "one", "user.a", b"b")
    os.utime(made / "src" / "one", (981158400, 981158400))
    (made / "src" / "sub" / "two").write_text("two\n")
    os.link(made / "src" / "one", made / "src" / "sub" / "hard")
    (made / "src" / "link").symlink_to("one")
    (made / "src" / "far").symlink_to("/etc/passwd")
    os.mkfifo(made / "src" / "pipe")
    (made / "src" / ".wh.name").touch()
    os.chmod(made / "src" / "sub", 0o700)
    (made / "etc").mkdir()
    (made / "etc" / "passwd").write_text("the container's")
    return made


@pytest.fixture
def files(root: Path) -> Iterator[Files]:
    with Files("box", Root(os.open(root, TREE))) as made:
        yield made


def test_a_directory_out(files: Files, tmp_path: Path) -> None:
    new = tmp_path / "new"
    copied = files.get("/src", str(new))
    assert (copied.files, copied.bytes) == (9, 8)
    assert sorted(os.listdir(new)) == [".wh.name", "far", "link", "one", "pipe", "sub"]
    found = os.lstat(new / "one")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 0, 0)
    assert found.st_mtime == 981158400
    assert os.listxattr(new / "one") == []
    assert os.stat(new / "sub" / "hard").st_ino == found.st_ino
    assert stat.S_IMODE(os.stat(new / "sub").st_mode) == 0o700
    assert os.readlink(new / "far") == "/etc/passwd"
    assert stat.S_ISFIFO(os.lstat(new / "pipe").st_mode)


def test_into_a_directory_that_is_there(files: Files, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(0o711)
    files.get("/src", str(tmp_path / "there"), archive=True)
    assert os.lstat(tmp_path / "there" / "src" / "one").st_uid == 7
    assert os.getxattr(tmp_path / "there" / "src" / "one", "user.a") == b"b"
    files.get("/src/.", str(tmp_path / "there"))
    assert (tmp_path / "there" / "sub" / "two").read_text() == "two\n"
    # a directory that is there is not changed by a copy into it
    assert stat.S_IMODE(os.stat(tmp_path / "there").st_mode) == 0o711


def test_files_out(files: Files, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("old")
    files.get("src/one", str(there))
    assert there.read_text() == "one\n"
    files.get("/src/../src/one", str(tmp_path))
    assert (tmp_path / "one").read_text() == "one\n"
    files.get("/src/link", str(tmp_path))
    assert os.readlink(tmp_path / "link") == "one"
    files.get("/src/link", str(tmp_path / "followed"), follow=True)
    assert (tmp_path / "followed").read_text() == "one\n"
    files.get("/src/far", str(tmp_path / "passwd"), follow=True)
    assert (tmp_path / "passwd").read_text() == "the container's"


def test_in(files: Files, root: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "f").write_text("f")
    os.chown(tree / "d" / "f", 11, 12)
    os.chmod(tree / "d" / "f", 0o4751)
    with (tree / "sparse").open("wb") as file:
        file.truncate(8 << 20)
    files.put(str(tree), "/new")
    found = os.stat(root / "new" / "d" / "f")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o4751, 0, 0)
    sparse = os.stat(root / "new" / "sparse")
    assert sparse.st_size == 8 << 20
    assert sparse.st_blocks < 1024
    files.put(f"{tree}/.", "src", archive=True)
    found = os.stat(root / "src" / "d" / "f")
    assert (found.st_uid, found.st_gid) == (11, 12)
    files.put(str(tree / "d" / "f"), "/src/link")
    assert (root / "src" / "one").read_text() == "f"  # where the symlink leads
    assert (root / "src" / "sub" / "hard").read_text() == "one\n"


def test_tar_streams(files: Files, root: Path) -> None:
    out = io.BytesIO()
    files.read_tar("/src", out.write)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        assert {m.name: m.uid for m in tar if m.isreg()} == {
            "src/.wh.name": 0,
            "src/one": 7,
            "src/sub/two": 0,
        }
    files.write_tar(_tar({"a/b/c": b"abc", ".wh.src": b"", "src/one": b"new"}, uid=99), "/")
    assert (root / "a" / "b" / "c").read_bytes() == b"abc"
    assert os.stat(root / "a" / "b" / "c").st_uid == 99
    assert (root / ".wh.src").exists()
    assert (root / "src" / "one").read_bytes() == b"new"


def test_a_tar_that_is_cut_short_leaves_what_was_there(files: Files, root: Path) -> None:
    data = _tar({"src/one": b"x" * 5000}).getvalue()[:2000]
    with pytest.raises(InvalidArgument, match="unexpected EOF"):
        files.write_tar(io.BytesIO(data), "/")
    assert (root / "src" / "one").read_text() == "one\n"
    assert sorted(os.listdir(root / "src")) == sorted(
        [".wh.name", "far", "link", "one", "pipe", "sub"]
    )


@pytest.mark.parametrize(
    ("source", "target", "kind", "message"),
    [
        ("/nosuch", "/tmp", NotFound, "box:/nosuch: not found"),
        ("/src", "/etc/passwd", InvalidArgument, "/etc/passwd is no directory to copy one to"),
        ("/src/one", "/no/such/f", NotFound, "directory of /no/such/f: not found"),
        ("/src/one", "/no-such/", NotFound, "directory /no-such/: not found"),
        ("/src/one/", "/tmp", InvalidArgument, "box:/src/one/: Not a directory"),
        ("", "/tmp", InvalidArgument, "path ''"),
        ("/a\0b", "/tmp", InvalidArgument, "path '/a"),
    ],
)
def test_errors(files: Files, source: str, target: str, kind: type[Error], message: str) -> None:
    with pytest.raises(kind) as caught:
        files.get(source, target)
    assert message in caught.value.message


def test_neither_takes_the_others_place(files: Files, root: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").write_text("a file")
    with pytest.raises(InvalidArgument, match="is there and is a directory"):
        files.put(str(tmp_path / "sub"), "/src")
    (tmp_path / "d" / "one").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match="is there and is no directory"):
        files.put(f"{tmp_path}/d/.", "/src")
    assert (root / "src" / "one").read_text() == "one\n"


ATTACKS = {
    "absolute": ["{outside}"],
    "climbing": ["../../../../../../../../..{outside}"],
    "through another": ["b", "{outside}"],
    "by a process's root": ["/proc/1/root{outside}"],
    "by a magic link": ["/proc/self/cwd/../../../..{outside}"],
}


@pytest.fixture(params=ATTACKS)
def outside(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> Path:
    """A directory of the host's that /evil in the container would like to be."""
    made = tmp_path / "outside"
    made.mkdir()
    (made / "kept").write_text("kept")
    for name, target in zip(("evil", "b"), ATTACKS[request.param], strict=False):
        (root / name).symlink_to(target.format(outside=made))
    # as if it had the host's proc
    (root / "proc").mkdir()
    return made


def test_no_symlink_leads_a_write_out(files: Files, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("new")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "kept").write_text("new")
    copies = (
        ("f", "/evil/kept"),
        ("f", "/evil/f"),
        ("f", "/evil"),
        ("evil", "/"),
        ("evil/.", "/evil"),
    )
    for source, target in copies:
        with contextlib.suppress(Error):
            files.put(f"{tmp_path}/{source}", target)
    for name in ("evil/kept", "/evil/f", "x/../evil/kept", f"../../..{outside}/kept"):
        with contextlib.suppress(Error):
            files.write_tar(_tar({name: b"new"}), "/")
    assert {p.name: p.read_text() for p in outside.iterdir()} == {"kept": "kept"}


def test_no_symlink_leads_a_read_out(files: Files, outside: Path, tmp_path: Path) -> None:
    for follow in (False, True):
        for index, source in enumerate(("/evil/kept", "/evil/", "/evil/.", "/evil")):
            target = tmp_path / f"out-{follow}-{index}"
            with contextlib.suppress(Error):
                files.get(source, str(target), follow=follow)
            # a symlink itself may be copied, as one
            assert target.is_symlink() or not target.exists()


def test_links_of_an_archive_stay_in_the_tree(files: Files, root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    for link in (f"{secret}", f"../../../../../..{secret}", "x/../../../secret"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            entry = tarfile.TarInfo("stolen")
            entry.type, entry.linkname = tarfile.LNKTYPE, link
            tar.addfile(entry)
        with pytest.raises(Error):
            files.write_tar(io.BytesIO(out.getvalue()), "/")
    assert not (root / "stolen").exists()
    assert secret.stat().st_nlink == 1


def test_what_comes_from_a_container_is_not_gone_through(
    files: Files, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "sub").symlink_to(outside)
    with pytest.raises(InvalidArgument, match="is no directory"):
        files.get("/src/.", str(target))
    assert list(outside.iterdir()) == []


def test_rights_are_taken_over_only_if_asked_for(files: Files, root: Path, tmp_path: Path) -> None:
    (root / "r").mkdir()
    (root / "r" / "su").write_text("evil")
    os.chmod(root / "r" / "su", 0o6755)
    os.mknod(root / "r" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.link(root / "r" / "null", root / "r" / "null2")
    files.get("/r", str(tmp_path / "plain"))
    assert os.listdir(tmp_path / "plain") == ["su"]
    assert stat.S_IMODE(os.stat(tmp_path / "plain" / "su").st_mode) == 0o755
    files.get("/r", str(tmp_path / "all"), archive=True)
    assert stat.S_IMODE(os.stat(tmp_path / "all" / "su").st_mode) == 0o6755
    assert os.stat(tmp_path / "all" / "null2").st_rdev == os.makedev(1, 3)


def test_a_device_in_a_files_place_is_not_written_to(
    files: Files, root: Path, tmp_path: Path
) -> None:
    os.mknod(root / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 250))
    (tmp_path / "f").write_text("new")
    files.put(str(tmp_path / "f"), "/disk")
    assert (root / "disk").read_text() == "new"


def test_a_tree_that_changes_meanwhile(files: Files, root: Path, tmp_path: Path) -> None:
    """A directory that is a symlink out of the tree every other moment leads nowhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("the host's")
    fake, now, trash = root / "src" / "fake", root / "src" / "now", root / "trash"
    fake.symlink_to(outside)
    trash.mkdir()
    over = threading.Event()

    def swap() -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            for source, target in ((now, trash / str(turn)), (fake, now), (now, fake)):
                # the copy makes a directory of that name again and again
                with contextlib.suppress(OSError):
                    os.rename(source, target)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        (tmp_path / "now").mkdir()
        for index in range(20):
            (tmp_path / "now" / f"f{index}").write_text("new")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            out = io.BytesIO()
            with contextlib.suppress(Error):
                files.put(str(tmp_path / "now"), "/src")
            with contextlib.suppress(Error):
                files.read_tar("/src", out.write)
            assert b"the host's" not in out.getvalue()
    finally:
        over.set()
        thread.join()
    assert os.listdir(outside) == ["secret"]


def _tar(files: dict[str, bytes], uid: int = 0) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.uid = len(data), uid
            tar.addfile(entry, io.BytesIO(data))
    return io.BytesIO(out.getvalue())
