"""Applies a layer's entries to a tree (OCI image spec, layer.md).

Runs chrooted to that tree. A later entry of a name replaces an earlier one. Whiteouts hide what the
layer's parents have, never what the layer itself brings, wherever they stand in it.
"""

from __future__ import annotations

import errno
import posixpath
import sys
from collections.abc import Callable

from kontti.diff.attributes import bounded_time
from kontti.diff.files import Kind
from kontti.diff.pax import shown
from kontti.diff.removal import join
from kontti.diff.tar import (
    BLOCKDEV,
    CHAR,
    DIRECTORY,
    FIFO,
    HARDLINK,
    REGULAR,
    SYMLINK,
    Entry,
    TarReader,
)
from kontti.diff.trees import Tree
from kontti.errors import Error, Internal, InvalidArgument, PermissionDenied, ResourceExhausted

WHITEOUT = b".wh."
METADATA = b".wh..wh."
OPAQUE = b".wh..wh..opq"

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_DENIED = frozenset((errno.EPERM, errno.EACCES, errno.EROFS))
# the ways in which the names of a layer can be wrong
_MALFORMED = frozenset(
    (
        errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG,
        errno.EINVAL, errno.EMLINK, errno.ERANGE, errno.E2BIG, errno.EXDEV, errno.EFBIG,
    )
)  # fmt: skip


def clean(name: bytes) -> bytes:
    """A name as a path in the root, which ``..`` and slashes cannot leave; b"" is the root."""
    if b"//" in name or b"/." in name or name[:1] in b"/." or name[-1:] == b"/":
        return posixpath.normpath(b"/" + name).lstrip(b"/")
    return name


class Extractor:
    """Has a tree take what a reader gives."""

    def __init__(self, tree: Tree, reader: TarReader, most: int = 0) -> None:
        """``most``: how many entries there may be; 0 for no limit."""
        self._tree = tree
        self._files = tree.files
        self._reader = reader
        self._most = most or sys.maxsize
        self._makers: dict[bytes, Callable[[Entry, bytes], None]] = {
            REGULAR: self._file,
            HARDLINK: self._hard_link,
            SYMLINK: self._symlink,
            CHAR: self._device,
            BLOCKDEV: self._device,
            DIRECTORY: self._directory,
            FIFO: self._fifo,
        }

    def run(self) -> None:
        """Apply every entry; raises kontti's errors, naming the entry.

        What follows the archive is left for ``reader.drain``.
        """
        for number, entry in enumerate(self._reader):
            if number >= self._most:
                raise ResourceExhausted(f"layer has more than {self._most} entries")
            try:
                self._apply(entry)
            except OSError as error:
                raise failure(entry, error) from error
        for path, time in self._tree.times.items():
            self._files.set_time(path, time)

    def _apply(self, entry: Entry) -> None:
        name = clean(entry.name)
        parent, _, base = name.rpartition(b"/")
        if base.startswith(WHITEOUT):
            self._whiteout(entry, parent, base)
            return
        if name.startswith(METADATA):
            return
        real = self._tree.ready.get(parent)
        if real is None:
            real = self._tree.enter(parent, bounded_time(entry.mtime))
        path = real + b"/" + base if real else base
        if not path and entry.kind != DIRECTORY:
            raise InvalidArgument("the root of a layer must be a directory")
        self._makers[entry.kind](entry, path)

    def _whiteout(self, entry: Entry, parent: bytes, base: bytes) -> None:
        hidden = base[len(WHITEOUT) :]
        if base.startswith(METADATA) and base != OPAQUE:
            return
        if hidden in (b"", b".", b".."):
            raise InvalidArgument(f"invalid whiteout name {shown(entry.name)}")
        real = self._tree.enter(parent, bounded_time(entry.mtime))
        if base == OPAQUE:
            self._tree.opaque(real)
        else:
            self._tree.whiteout(join(real, hidden))

    def _fresh(self, path: bytes, make: Callable[[], None]) -> None:
        """Make what is no directory."""
        try:
            make()
        except FileExistsError:
            self._tree.clear(path)
            make()
        self._tree.made(path)

    def _file(self, entry: Entry, path: bytes) -> None:
        try:
            self._files.file(entry, path, self._reader)
        except FileExistsError:
            self._tree.clear(path)
            self._files.file(entry, path, self._reader)
        self._tree.made(path)

    def _hard_link(self, entry: Entry, path: bytes) -> None:
        if escapes(entry.link):
            raise InvalidArgument(f"invalid hardlink {shown(entry.name)} -> {shown(entry.link)}")
        source = self._tree.link_source(clean(entry.link))
        if source == path and self._files.kind(path) is not Kind.NOTHING:
            return
        self._fresh(path, lambda: self._files.hard_link(source, path))

    def _symlink(self, entry: Entry, path: bytes) -> None:
        self._fresh(path, lambda: self._files.symlink(entry, path))

    def _device(self, entry: Entry, path: bytes) -> None:
        if entry.kind == CHAR and entry.device == (0, 0):
            # overlayfs's whiteout, left in a layer by a tool that archived an upper directory
            self._tree.whiteout(path)
            return
        self._fresh(path, lambda: self._files.device(entry, path))

    def _fifo(self, entry: Entry, path: bytes) -> None:
        self._fresh(path, lambda: self._files.fifo(entry, path))

    def _directory(self, entry: Entry, path: bytes) -> None:
        fresh = self._make_directory(path, entry.mode & 0o777)
        self._files.describe(path, entry, fresh)
        self._tree.made_directory(path, fresh)
        self._tree.times[path] = bounded_time(entry.mtime)

    def _make_directory(self, path: bytes, mode: int) -> bool:
        """False where it was there."""
        if not path:
            return False
        try:
            self._files.directory(path, mode)
        except FileExistsError:
            if self._files.kind(path) is Kind.DIRECTORY:
                return False
            self._tree.clear(path)
            self._files.directory(path, mode)
        return True


def escapes(target: bytes) -> bool:
    """Whether a hard link's target, read from the root, climbs out of it."""
    normal = posixpath.normpath(target)
    return normal == b".." or normal.startswith(b"../")


def failure(entry: Entry, error: OSError) -> Error:
    """What to tell about an entry that could not be made."""
    reason = (error.strerror or "input/output error").lower()
    message = f"failed to extract {shown(entry.name)}: {reason}"
    if entry.kind == HARDLINK and error.errno not in _FULL:
        link = f"{shown(entry.name)} -> {shown(entry.link)}"
        return InvalidArgument(f"invalid hardlink {link}: {reason}")
    if error.errno in _FULL:
        return ResourceExhausted(message)
    if error.errno in _DENIED:
        return PermissionDenied(message)
    if error.errno in _MALFORMED:
        return InvalidArgument(message)
    return Internal(message)
