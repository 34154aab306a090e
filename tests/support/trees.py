"""Layers from entries, applied and looked at."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kontti.content.base import Store
from kontti.diff.applier import LayerApplier
from kontti.diff.media_types import OCI_LAYER_GZIP
from kontti.images.ingest import ingest
from kontti.linux.mounts import mounted
from kontti.values import Descriptor, Digest, Mount
from tests.support.images import Entry, layer


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

    def view(self) -> list[Mount]:
        """Read-only mounts of all layers."""
        if len(self.layers) == 1:
            return [Mount("bind", str(self.layers[0]), ("rbind", "ro"))]
        lowers = ":".join(map(str, reversed(self.layers)))
        return [Mount("overlay", "overlay", (f"lowerdir={lowers}",))]

    def tree(self) -> dict[str, Seen]:
        """What all layers show together."""
        return look(self.view())


def look(mounts: Sequence[Mount]) -> dict[str, Seen]:
    """The tree that ``mounts`` show, by path."""
    with mounted(mounts, readonly=True) as root:
        return look_at(root)


def look_at(root: str) -> dict[str, Seen]:
    """The tree in a directory, by path; "." is the directory itself."""
    paths = ["."]
    for directory, names, files in os.walk(root):
        paths += [os.path.relpath(os.path.join(directory, n), root) for n in names + files]
    inodes: dict[int, list[str]] = {}
    for path in paths:
        status = os.lstat(os.path.join(root, path))
        if not stat.S_ISDIR(status.st_mode):
            inodes.setdefault(status.st_ino, []).append(path)
    return {path: _see(root, path, inodes) for path in sorted(paths)}


def _see(root: str, path: str, inodes: dict[int, list[str]]) -> Seen:
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
        tuple(sorted(inodes.get(status.st_ino, [])))
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1
        else (),
    )


def _data(full: str, mode: int) -> bytes:
    if stat.S_ISREG(mode):
        return Path(full).read_bytes()
    return os.fsencode(os.readlink(full)) if stat.S_ISLNK(mode) else b""
