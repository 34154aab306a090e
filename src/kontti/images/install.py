"""Programs of an image put into a directory of the host: its ``bin``, and ``lib`` if asked for.

Names in layers are hostile: only plain names directly in those directories are written, by
descriptor, and nothing through a symlink.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from kontti.content.base import Provider
from kontti.content.stream import BlobStream
from kontti.diff.compression import decompressed
from kontti.diff.tar import HARDLINK, REGULAR, SYMLINK, Entry, TarReader
from kontti.errors import Error, InvalidArgument
from kontti.images.graph import find_manifest
from kontti.images.platforms import Matcher
from kontti.values import Descriptor

_WHITEOUT = ".wh."


@dataclass(frozen=True, slots=True)
class Target:
    """Where to, and what besides programs; ``replace`` what is there."""

    path: str
    libs: bool = False
    replace: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        """Directories of the image that are taken."""
        return ("bin", "lib") if self.libs else ("bin",)


def install(
    provider: Provider, image: Descriptor, matcher: Matcher, target: Target
) -> tuple[str, ...]:
    """Write the files; their paths below the target. All are looked at before the first.

    Raises Error for one that is there, InvalidArgument for one that cannot be written.
    """
    _, manifest = find_manifest(provider, image, matcher)
    names = _names(provider, manifest.layers, target)
    for name in names:
        if not target.replace and os.path.lexists(os.path.join(target.path, name)):
            raise Error(f"cannot replace {name} in {target.path}")
    with _Folders(target) as folders:
        for layer in manifest.layers:
            for folder, name, entry, reader in _files(provider, layer, target):
                _write(folders.fd(folder), name, entry, reader)
    return names


def _names(provider: Provider, layers: Sequence[Descriptor], target: Target) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for layer in layers:
        for folder, name, entry, _ in _files(provider, layer, target):
            if entry.kind == HARDLINK:
                _linked(folder, entry)
            found[f"{folder}/{name}"] = None
    return tuple(found)


def _files(
    provider: Provider, layer: Descriptor, target: Target
) -> Iterator[tuple[str, str, Entry, TarReader]]:
    with provider.reader(layer.digest) as reader:
        tar = TarReader(decompressed(BlobStream(reader).read))
        for entry in tar:
            folder, name = _split(entry.name)
            if folder in target.folders and entry.kind in (REGULAR, SYMLINK, HARDLINK):
                yield folder, name, entry, tar
        tar.drain()


def _split(raw: bytes) -> tuple[str, str]:
    """The directory and name, both "" for a name that is not two plain parts."""
    parts = [p for p in os.fsdecode(raw).split("/") if p not in ("", ".")]
    if len(parts) != 2 or ".." in parts or parts[1].startswith(_WHITEOUT):
        return "", ""
    return parts[0], parts[1]


def _linked(folder: str, entry: Entry) -> str:
    """The name that a hard link is to, beside it."""
    where, name = _split(entry.link)
    if where != folder:
        raise InvalidArgument(f"link {os.fsdecode(entry.name)!r} leads out of {folder}")
    return name


class _Folders:
    """The target's directories, made and opened when they are needed."""

    def __init__(self, target: Target) -> None:
        os.makedirs(target.path, mode=0o711, exist_ok=True)
        self._root = os.open(target.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: dict[str, int] = {}

    def fd(self, name: str) -> int:
        if name not in self._open:
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self._root)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._open[name] = os.open(name, flags, dir_fd=self._root)
        return self._open[name]

    def __enter__(self) -> _Folders:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (*self._open.values(), self._root):
            os.close(fd)


def _write(folder: int, name: str, entry: Entry, reader: TarReader) -> None:
    """Make it under another name, then put it in place: a program that runs is not disturbed."""
    temporary = f".install-{secrets.token_hex(8)}"
    try:
        if entry.kind == SYMLINK:
            os.symlink(entry.link, temporary, dir_fd=folder)
        elif entry.kind == HARDLINK:
            # within one directory: the name's own parts were checked before
            source = os.fsdecode(entry.link).rpartition("/")[2]
            os.link(source, temporary, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        else:
            _copy(folder, temporary, entry, reader)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        # there is none after the rename, and of two links to one file rename leaves both
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)


def _copy(folder: int, name: str, entry: Entry, reader: TarReader) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=folder)
    with open(fd, "wb") as file:
        file.writelines(reader.data())
        file.flush()
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode & 0o7777)
        os.fsync(fd)
