"""Layers made of the difference of two trees turn the one into the other again."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kontti.content.local import LocalStore
from kontti.diff.applier import LayerApplier
from kontti.diff.base import DiffOptions
from kontti.diff.differ import WalkingDiffer
from kontti.errors import Error, InvalidArgument, Unimplemented
from kontti.linux.mounts import mounted
from kontti.values import Descriptor, Mount
from tests.support.trees import BASE, Chain, Seen, look

pytestmark = pytest.mark.root

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
PLAIN = "application/vnd.oci.image.layer.v1.tar"


def remove_tree(root: Path) -> None:
    for path in sorted((root / "var/cache").iterdir()):
        path.unlink()
    (root / "var/cache").rmdir()


def replace_directory(root: Path) -> None:
    remove_tree(root)
    (root / "var/cache").mkdir()
    (root / "var/cache/three").write_text("3")


def new_things(root: Path) -> None:
    (root / "new/deep").mkdir(parents=True)
    (root / "new/deep/file").write_bytes(os.urandom(700_000))
    os.link(root / "new/deep/file", root / "new/linked")
    (root / "new/link").symlink_to("../nowhere")
    os.mkfifo(root / "new/fifo", 0o600)
    os.mknod(root / "new/tty", stat.S_IFCHR | 0o666, os.makedev(5, 0))
    os.setxattr(root / "new/linked", "user.note", b"\0binary\n")
    os.chown(root / "new/link", 7, 8, follow_symlinks=False)
    (root / ("new/" + "ä" * 100)).write_text("long")
    (root / "new/suid").write_text("x")
    (root / "new/suid").chmod(0o6755)
    (root / "empty").mkdir(mode=0o700)


def metadata(root: Path) -> None:
    (root / "etc/passwd").chmod(0o600)
    os.chown(root / "etc/deep", 100, 3_000_000)
    os.setxattr(root / "etc/shadow", "user.k", b"v")


def same_size_and_time(root: Path) -> None:
    path = root / "var/b"
    before = path.stat()
    path.write_text("B")
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))


def types(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").mkdir()
    (root / "link/in").write_text("i")
    (root / "var/a").unlink()
    (root / "var/a").symlink_to("b")


def link_to_old(root: Path) -> None:
    os.link(root / "etc/passwd", root / "var/passwd")


def socket_and_file(root: Path) -> None:
    (root / "srv").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "srv/sock"))
    (root / "srv/file").write_text("f")


CHANGES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda root: None,
    "a tree removed": remove_tree,
    "a directory made again": replace_directory,
    "new things": new_things,
    "metadata": metadata,
    "same size and time": same_size_and_time,
    "types": types,
    "a link to an old file": link_to_old,
}


class Rig:
    """A base, a changed tree over it, and both made again from the layers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = LocalStore(str(root / "content"))
        self.applier = LayerApplier(self.store)
        self.differ = WalkingDiffer(self.store)
        self.chain = Chain(root / "layers", self.applier, self.store)
        self.chain.apply(BASE)

    @contextmanager
    def changed(self, change: Callable[[Path], None]) -> Iterator[list[Mount]]:
        mounts = self.chain.mounts()
        with mounted(mounts) as root:
            change(Path(root))
        yield mounts

    def again(self, layer: Descriptor) -> list[Mount]:
        self.chain.root = self.root / "again"
        mounts = self.chain.mounts()
        self.applier.apply(layer, mounts)
        return mounts


def below(mounts: list[Mount]) -> dict[str, Seen]:
    """A tree without its root, which is the snapshot's and not the layer's."""
    return {path: seen for path, seen in look(mounts).items() if path != "."}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.mark.parametrize("name", CHANGES)
def test_the_layer_of_a_change_makes_it_again(rig: Rig, name: str) -> None:
    with rig.changed(CHANGES[name]) as mounts:
        layer = rig.differ.compare(rig.chain.view(), mounts, DiffOptions(media_type=GZIP))
        assert below(rig.again(layer)) == below(mounts)
    assert rig.store.list_statuses() == []


@pytest.mark.parametrize("name", CHANGES)
def test_walking_both_trees_gives_the_same(rig: Rig, name: str) -> None:
    base = rig.chain.layers[0]
    with rig.changed(CHANGES[name]) as mounts, mounted(mounts) as upper:
        # bind mounts of what is mounted: not known to be an overlay's
        seen = Mount("bind", upper, ("rbind", "ro"))
        lower = Mount("bind", str(base), ("rbind", "ro"))
        layer = rig.differ.compare([lower], [seen], DiffOptions(media_type=PLAIN))
        assert below(rig.again(layer)) == below([seen])


@pytest.mark.parametrize("media_type", [PLAIN, GZIP, ZSTD])
def test_a_whole_tree_is_a_layer_over_nothing(rig: Rig, media_type: str) -> None:
    view = rig.chain.view()
    layer = rig.differ.compare([], view, DiffOptions(media_type=media_type))
    fresh = rig.root / "fresh"
    fresh.mkdir()
    bind = Mount("bind", str(fresh), ("rbind", "rw"))
    applied = rig.applier.apply(layer, [bind])
    assert below([bind]) == below(view)
    assert applied.size > 100_000


def test_the_same_trees_give_the_same_bytes(rig: Rig) -> None:
    with rig.changed(new_things) as mounts:
        options = DiffOptions(media_type=GZIP, source_date_epoch=1_000_000_000)
        first = rig.differ.compare(rig.chain.view(), mounts, options)
        rig.store.delete(first.digest)
        again = rig.differ.compare(rig.chain.view(), mounts, options)
        assert first == again
        times = {seen.mtime for path, seen in look(rig.again(first)).items() if "new/" in path}
        assert max(times) == 1_000_000_000 * 10**9


def test_an_unchanged_tree_is_an_empty_layer(rig: Rig) -> None:
    layer = rig.differ.compare(rig.chain.view(), rig.chain.view(), DiffOptions(media_type=PLAIN))
    with rig.store.reader(layer.digest) as reader:
        assert reader.read_at(0, reader.size) == bytes(1024)


def test_sockets_are_left_out(rig: Rig) -> None:
    with rig.changed(socket_and_file) as mounts:
        layer = rig.differ.compare(rig.chain.view(), mounts, DiffOptions())
        made = look(rig.again(layer))
    assert "srv/file" in made
    assert "srv/sock" not in made


def test_gnu_tar_reads_the_layer(rig: Rig) -> None:
    with rig.changed(new_things) as mounts:
        layer = rig.differ.compare(rig.chain.view(), mounts, DiffOptions(media_type=GZIP))
    with rig.store.reader(layer.digest) as reader:
        command = ["tar", "-tzf", str(reader.path)]
        listed = subprocess.run(command, check=True, capture_output=True).stdout
    assert b"new/deep/file" in listed


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda root: (root / ".wh.trap").write_text("x"), InvalidArgument),
    ],
)
def test_what_no_layer_can_hold_is_refused(
    rig: Rig, change: Callable[[Path], None], error: type[Error]
) -> None:
    with rig.changed(change) as mounts, pytest.raises(error):
        rig.differ.compare(rig.chain.view(), mounts, DiffOptions())
    assert rig.store.list_statuses() == []


def test_an_unknown_media_type_is_refused(rig: Rig) -> None:
    with pytest.raises(Unimplemented, match="unsupported diff media type"):
        rig.differ.compare([], rig.chain.view(), DiffOptions(media_type="text/plain"))
