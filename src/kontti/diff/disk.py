"""The files of a layer in the current directory, which is the root of a chroot."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from kontti.diff.attributes import (
    clear_xattrs,
    owner_of,
    settle_directory,
    settle_file,
    settle_special,
)
from kontti.diff.files import Kind
from kontti.diff.removal import lstat, remove
from kontti.diff.sparse import Sparse
from kontti.diff.tar import CHAR, Entry, TarReader

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}


class DiskFiles:
    """diff.files.Files by system calls."""

    def __init__(self) -> None:
        # whose a new file is, by its directory: one with setgid hands its group on
        self._owners: dict[bytes, tuple[int, int]] = {}

    def kind(self, path: bytes) -> Kind:
        status = lstat(path or b".")
        if status is None:
            return Kind.NOTHING
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            return Kind.WHITEOUT
        return _KINDS.get(stat.S_IFMT(status.st_mode), Kind.OTHER)

    def root_time(self) -> int:
        return os.stat(b".").st_mtime_ns

    def file(self, entry: Entry, path: bytes, reader: TarReader) -> None:
        fd = os.open(path, _NEW, entry.mode & 0o777)
        try:
            if entry.sparse is not None:
                _write_sparse(fd, entry.sparse, reader)
            elif entry.size:
                _write(fd, reader)
            settle_file(fd, entry, self._owner(fd, path))
        finally:
            os.close(fd)

    def _owner(self, fd: int, path: bytes) -> tuple[int, int]:
        """Whose a file is that was just made."""
        directory = path.rpartition(b"/")[0]
        owner = self._owners.get(directory)
        if owner is None:
            owner = self._owners[directory] = owner_of(fd)
        return owner

    def hard_link(self, source: bytes, path: bytes) -> None:
        os.link(source, path, follow_symlinks=False)

    def symlink(self, entry: Entry, path: bytes) -> None:
        os.symlink(entry.link, path)
        settle_special(path, entry)

    def device(self, entry: Entry, path: bytes) -> None:
        kind = stat.S_IFCHR if entry.kind == CHAR else stat.S_IFBLK
        os.mknod(path, kind | entry.mode & 0o777, os.makedev(*entry.device))
        settle_special(path, entry)

    def fifo(self, entry: Entry, path: bytes) -> None:
        os.mkfifo(path, entry.mode & 0o777)
        settle_special(path, entry)

    def directory(self, path: bytes, mode: int) -> None:
        os.mkdir(path, mode)

    def describe(self, path: bytes, entry: Entry, fresh: bool) -> None:
        target = path or b"."
        self._owners.pop(path, None)
        if not fresh:
            clear_xattrs(target, frozenset(entry.xattrs or ()))
        settle_directory(target, entry)

    def copy_up(self, path: bytes, status: os.stat_result, xattrs: Mapping[bytes, bytes]) -> None:
        os.mkdir(path, 0o700)
        look_like(path, status, xattrs)

    def whiteout(self, path: bytes) -> None:
        os.mknod(path, stat.S_IFCHR, 0)

    def set_xattr(self, path: bytes, name: str, value: bytes) -> None:
        os.setxattr(path, name, value, follow_symlinks=False)

    def set_time(self, path: bytes, time: int) -> None:
        os.utime(path or b".", ns=(time, time), follow_symlinks=False)

    def remove(self, path: bytes) -> None:
        self._owners.clear()
        remove(path)


def look_like(path: bytes, status: os.stat_result, xattrs: Mapping[bytes, bytes]) -> None:
    """Give a directory the owner and mode that ``status`` tells of, and xattrs."""
    os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
    os.chmod(path, stat.S_IMODE(status.st_mode))
    for name, value in xattrs.items():
        os.setxattr(path, name, value, follow_symlinks=False)


def _write(fd: int, reader: TarReader) -> None:
    for view in reader.data():
        while view:
            view = view[os.write(fd, view) :]


def _write_sparse(fd: int, sparse: Sparse, reader: TarReader) -> None:
    views, view = reader.data(), memoryview(b"")
    for offset, left in sparse.parts:
        while left:
            view = view or next(views)
            written = os.pwrite(fd, view[:left], offset)
            view, offset, left = view[written:], offset + written, left - written
    os.ftruncate(fd, sparse.size)
