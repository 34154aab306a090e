"""Layers from entries, applied and looked at."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kontti.content.base import Store
from kontti.content.local import LocalStore
from kontti.diff.applier import LayerApplier
from kontti.diff.lowers import NeedsParents
from kontti.diff.media_types import OCI_LAYER_GZIP
from kontti.images.ingest import ingest
from kontti.linux.mounts import mount_one, mounted, unmount_all
from kontti.snapshots.applied import APPLIED, Folder
from kontti.values import Descriptor, Digest, Mount
from tests.support.images import Entry, directory, layer, symlink


@dataclass(frozen=True)
class Seen:
    """What a user can see of one name in a tree."""

    mode: str
    owner: tuple[int, int]
    mtime: int
    data: bytes
    device: int
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[str, ...]


def put(store: Store, data: bytes, media_type: str = OCI_LAYER_GZIP) -> Descriptor:
    """``data`` as a blob."""
    digest = Digest("sha256:" + hashlib.sha256(data).hexdigest())
    made = ingest(store, digest, iter((data,)), len(data), digest)
    return Descriptor(media_type, made.digest, len(data))


def gzipped(entries: Iterable[Entry]) -> bytes:
    return gzip.compress(layer(entries), 1, mtime=0)


class Chain:
    """Layers applied over one another, as an overlay snapshotter would have them."""

    def __init__(self, root: Path, applier: LayerApplier, store: Store) -> None:
        self.root = root
        self.applier = applier
        self.store = store
        self.layers: list[Path] = []

    def mounts(self) -> list[Mount]:
        """Of a new, empty layer on top."""
        base = self.root / str(len(self.layers))
        for name in ("fs", "work"):
            (base / name).mkdir(parents=True)
        # a snapshotter gives an upper directory its parent's mode and owner
        if self.layers:
            parent = self.layers[-1].stat()
            (base / "fs").chmod(stat.S_IMODE(parent.st_mode))
            os.chown(base / "fs", parent.st_uid, parent.st_gid)
        os.utime(base / "fs", (0, 0))
        if not self.layers:
            return [Mount("bind", str(base / "fs"), ("rbind", "rw"))]
        options = (
            f"workdir={base / 'work'}",
            f"upperdir={base / 'fs'}",
            f"lowerdir={':'.join(map(str, reversed(self.layers)))}",
        )
        return [Mount("overlay", "overlay", options)]

    def apply(self, entries: Iterable[Entry]) -> Descriptor:
        """One more layer."""
        applied = self.applier.apply(put(self.store, gzipped(entries)), self.mounts())
        self.layers.append(self.root / str(len(self.layers)) / "fs")
        return applied

    def apply_ahead(self, entries: Iterable[Entry]) -> bool:
        """One more layer, extracted before it is put over its parents; False where it cannot be."""
        [overlay] = self.mounts()
        upper = self.root / str(len(self.layers)) / "fs"
        upper.chmod(0o755)
        os.chown(upper, 0, 0)
        alone = [Mount("bind", str(upper), ("rbind", "rw"))]
        try:
            ahead = self.applier.apply_ahead(put(self.store, gzipped(entries)), alone)
            self.applier.settle(ahead, alone, [overlay])
        except NeedsParents:
            shutil.rmtree(upper.parent)
            return False
        self.layers.append(upper)
        return True

    def view(self) -> list[Mount]:
        """Read-only mounts of all layers."""
        if len(self.layers) == 1:
            return [Mount("bind", str(self.layers[0]), ("rbind", "ro"))]
        lowers = ":".join(map(str, reversed(self.layers)))
        return [Mount("overlay", "overlay", (f"lowerdir={lowers}",))]

    def tree(self) -> dict[str, Seen]:
        """What all layers show together."""
        return look(self.view())


class ImageChain(Chain):
    """Layers applied to folders that take images, as the erofs snapshotter has them.

    ``images`` counts those that became one; they stay mounted until ``close``.
    """

    def __init__(self, root: Path, store: Store, **options: Any) -> None:
        self._trees = root / "snapshots"
        applier = LayerApplier(store, images=str(self._trees), **options)
        super().__init__(self._trees, applier, store)
        self.images = 0

    def mounts(self) -> list[Mount]:
        mounts = super().mounts()
        Folder(str(self._top())).mark()
        return mounts

    def _top(self) -> Path:
        return self.root / str(len(self.layers))

    def apply(self, entries: Iterable[Entry]) -> Descriptor:
        top = self._top()
        applied = super().apply(entries)
        self._show(top)
        return applied

    def apply_ahead(self, entries: Iterable[Entry]) -> bool:
        top = self._top()
        done = super().apply_ahead(entries)
        if done:
            self._show(top)
        return done

    def _show(self, top: Path) -> None:
        image = top / APPLIED
        if image.exists():
            assert os.listdir(top / "fs") == []
            mount_one(Mount("erofs", str(image), ("ro",)), str(top / "fs"))
            self.images += 1

    def close(self) -> None:
        for path in self.layers:
            unmount_all(str(path))


def look(mounts: Sequence[Mount]) -> dict[str, Seen]:
    """The tree that ``mounts`` show, by path."""
    with mounted(mounts, readonly=True) as root:
        return look_at(root)


def look_at(root: str) -> dict[str, Seen]:
    """The tree in a directory, by path; "." is the directory itself."""
    paths = ["."]
    for parent, names, files in os.walk(root):
        paths += [os.path.relpath(os.path.join(parent, n), root) for n in names + files]
    # over several images the number alone is not unique
    inodes: dict[tuple[int, int], list[str]] = {}
    for path in paths:
        status = os.lstat(os.path.join(root, path))
        if not stat.S_ISDIR(status.st_mode):
            inodes.setdefault((status.st_dev, status.st_ino), []).append(path)
    return {path: _see(root, path, inodes) for path in sorted(paths)}


def _see(root: str, path: str, inodes: dict[tuple[int, int], list[str]]) -> Seen:
    full = os.path.join(root, path)
    status = os.lstat(full)
    names = os.listxattr(full, follow_symlinks=False)
    return Seen(
        stat.filemode(status.st_mode),
        (status.st_uid, status.st_gid),
        status.st_mtime_ns,
        _data(full, status.st_mode),
        status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0,
        tuple(
            (name, os.getxattr(full, name, follow_symlinks=False))
            for name in sorted(names)
            if ".overlay." not in name
        ),
        tuple(sorted(inodes.get((status.st_dev, status.st_ino), [])))
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1
        else (),
    )


def _data(full: str, mode: int) -> bytes:
    if stat.S_ISREG(mode):
        return Path(full).read_bytes()
    return os.fsencode(os.readlink(full)) if stat.S_ISLNK(mode) else b""


def blob_file(store: Store, blob: Descriptor) -> Path:
    with store.reader(blob.digest) as reader:
        return Path(str(reader.path))


def children_of_this_process() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def apply_all(root: Path, layers: Iterable[Iterable[Entry]], **options: Any) -> Chain:
    """Layers applied by an applier made with ``options``."""
    store = LocalStore(str(root / "content"))
    chain = Chain(root / "layers", LayerApplier(store, **options), store)
    for entries in layers:
        chain.apply(entries)
    return chain


def hard_link(name: str, target: str) -> Entry:
    return Entry(name, kind=tarfile.LNKTYPE, link=target)


def device(name: str, major: int, minor: int, kind: bytes = tarfile.CHRTYPE) -> Entry:
    return Entry(name, kind=kind, device=(major, minor), mode=0o620)


BASE = [
    directory("./", mode=0o751),
    directory("etc", mode=0o711, uid=3, gid=4),
    directory("etc/deep", mode=0o2770, uid=5, gid=6),
    directory("etc/deep/er"),
    Entry("etc/deep/er/file", b"deep", pax={"SCHILY.xattr.user.color": "red"}),
    Entry("etc/passwd", b"root\n", mode=0o640, uid=1, gid=2),
    Entry("etc/shadow", b"secret\n", mode=0o4755),
    directory("var"),
    Entry("var/a", b"a" * 100_000),
    Entry("var/b", b"b"),
    directory("var/cache"),
    Entry("var/cache/one", b"1"),
    Entry("var/cache/two", b"2"),
    symlink("link", "etc"),
    symlink("absolute", "/etc/deep"),
    Entry("fifo", kind=tarfile.FIFOTYPE, mode=0o600),
    device("null", 1, 3),
    hard_link("var/hard", "var/a"),
]
