"""Applies a layer's entries to the tree in the current directory (OCI image spec, layer.md).

Runs chrooted to that tree. A later entry of a name replaces an earlier one. Whiteouts hide what the
layer's parents have, never what the layer itself brings, wherever they stand in it.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import sys
from collections.abc import Callable
from typing import TypeVar

from kontti.diff.attributes import (
    bounded_time,
    clear_xattrs,
    settle_directory,
    settle_file,
    settle_special,
)
from kontti.diff.pax import shown
from kontti.diff.removal import join, lstat
from kontti.diff.sparse import Sparse
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

_T = TypeVar("_T")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
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
    """Writes what a reader gives to a tree."""

    def __init__(self, tree: Tree, reader: TarReader, most: int = 0) -> None:
        """``most``: how many entries there may be; 0 for no limit."""
        self._tree = tree
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
        """Apply every entry; raises kontti's errors, naming the entry."""
        for number, entry in enumerate(self._reader):
            if number >= self._most:
                raise ResourceExhausted(f"layer has more than {self._most} entries")
            try:
                self._apply(entry)
            except OSError as error:
                raise failure(entry, error) from error
        self._set_times()
        self._reader.drain()

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

    def _fresh(self, path: bytes, make: Callable[[], _T]) -> _T:
        try:
            return make()
        except FileExistsError:
            self._tree.clear(path)
            return make()

    def _file(self, entry: Entry, path: bytes) -> None:
        mode = entry.mode & 0o777
        try:
            fd = os.open(path, _NEW, mode)
        except FileExistsError:
            self._tree.clear(path)
            fd = os.open(path, _NEW, mode)
        try:
            if entry.sparse is not None:
                self._write_sparse(fd, entry.sparse)
            elif entry.size:
                self._write(fd)
            settle_file(fd, entry)
        finally:
            os.close(fd)
        self._tree.made(path)

    def _write(self, fd: int) -> None:
        for view in self._reader.data():
            while view:
                view = view[os.write(fd, view) :]

    def _write_sparse(self, fd: int, sparse: Sparse) -> None:
        views, view = self._reader.data(), memoryview(b"")
        for offset, left in sparse.parts:
            while left:
                view = view or next(views)
                written = os.pwrite(fd, view[:left], offset)
                view, offset, left = view[written:], offset + written, left - written
        os.ftruncate(fd, sparse.size)

    def _hard_link(self, entry: Entry, path: bytes) -> None:
        if escapes(entry.link):
            raise InvalidArgument(f"invalid hardlink {shown(entry.name)} -> {shown(entry.link)}")
        source = self._tree.link_source(clean(entry.link))
        if source == path and lstat(path) is not None:
            return
        self._fresh(path, lambda: os.link(source, path, follow_symlinks=False))
        self._tree.made(path)

    def _symlink(self, entry: Entry, path: bytes) -> None:
        self._fresh(path, lambda: os.symlink(entry.link, path))
        settle_special(path, entry)
        self._tree.made(path)

    def _device(self, entry: Entry, path: bytes) -> None:
        if entry.kind == CHAR and entry.device == (0, 0):
            # overlayfs's whiteout, left in a layer by a tool that archived an upper directory
            self._tree.whiteout(path)
            return
        kind = stat.S_IFCHR if entry.kind == CHAR else stat.S_IFBLK
        device = os.makedev(*entry.device)
        self._fresh(path, lambda: os.mknod(path, kind | entry.mode & 0o777, device))
        settle_special(path, entry)
        self._tree.made(path)

    def _fifo(self, entry: Entry, path: bytes) -> None:
        self._fresh(path, lambda: os.mkfifo(path, entry.mode & 0o777))
        settle_special(path, entry)
        self._tree.made(path)

    def _directory(self, entry: Entry, path: bytes) -> None:
        fresh = self._make_directory(path, entry.mode & 0o777)
        target = path or b"."
        if not fresh:
            clear_xattrs(target, frozenset(entry.xattrs or ()))
        settle_directory(target, entry)
        self._tree.made_directory(path, fresh)
        self._tree.times[path] = bounded_time(entry.mtime)

    def _make_directory(self, path: bytes, mode: int) -> bool:
        """False where it was there."""
        if not path:
            return False
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                return False
            self._tree.clear(path)
            os.mkdir(path, mode)
        return True

    def _set_times(self) -> None:
        for path, time in self._tree.times.items():
            os.utime(path or b".", ns=(time, time), follow_symlinks=False)


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
