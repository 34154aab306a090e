"""Writes a tar's entries into a directory that somebody else may be changing meanwhile.

Everything is done by descriptors: a name that turns into a symlink under our hands is replaced or
refused, never gone through. What is there already is replaced in one step, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kontti.diff.attributes import bounded_time, owner_of, set_xattrs, settle_file
from kontti.diff.extract import clean, escapes, failure
from kontti.diff.inside import DIRECTORY as OPEN_DIRECTORY
from kontti.diff.inside import Destination
from kontti.diff.pax import shown
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
from kontti.errors import InvalidArgument

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Keep:
    """What of an archive is kept: ``owner`` None its owners.

    ``special``: set-id bits, extended attributes and devices, which give rights where they arrive.
    """

    owner: tuple[int, int] | None
    special: bool


@dataclass(slots=True)
class Copied:
    """How much was written."""

    files: int = 0
    bytes: int = 0


def extract(chunks: Iterable[bytes], into: Destination, keep: Keep) -> Copied:
    """Write an archive's entries; raises Error, naming the entry."""
    return _Copy(TarReader(chunks), into, keep).run()


class _Copy:
    def __init__(self, reader: TarReader, into: Destination, keep: Keep) -> None:
        self._reader = reader
        self._into = into
        self._keep = keep
        self._times: dict[bytes, int] = {}
        self._left_out: set[bytes] = set()
        self._copied = Copied()
        self._makers: dict[bytes, Callable[[Entry, int, bytes], None]] = {
            REGULAR: self._file,
            HARDLINK: self._hard_link,
            SYMLINK: self._symlink,
            CHAR: self._node,
            BLOCKDEV: self._node,
            FIFO: self._node,
        }

    def run(self) -> Copied:
        for entry in self._reader:
            try:
                self._apply(entry)
            except OSError as error:
                raise failure(entry, error) from error
        for directory, time in self._times.items():
            # what its owner has taken away meanwhile needs no time
            with contextlib.suppress(OSError):
                os.utime(self._into.enter(directory), ns=(time, time))
        self._reader.drain()
        return self._copied

    def _apply(self, entry: Entry) -> None:
        name = clean(entry.name)
        parent, _, base = name.rpartition(b"/")
        if not base:
            return
        self._adjust(entry)
        if self._is_left_out(entry, name):
            self._left_out.add(name)
            return
        if entry.kind == DIRECTORY:
            self._directory(entry, name)
        else:
            self._makers[entry.kind](entry, self._into.enter(parent), base)
        self._copied.files += 1

    def _adjust(self, entry: Entry) -> None:
        if self._keep.owner is not None:
            entry.uid, entry.gid = self._keep.owner
        if not self._keep.special:
            entry.xattrs = None
            entry.mode &= 0o1777 if entry.kind == DIRECTORY else 0o777

    def _is_left_out(self, entry: Entry, name: bytes) -> bool:
        if entry.kind == HARDLINK:
            return clean(entry.link) in self._left_out
        return entry.kind in (CHAR, BLOCKDEV) and not self._keep.special

    def _directory(self, entry: Entry, name: bytes) -> None:
        parent, _, base = name.rpartition(b"/")
        inside = self._into.enter(parent)
        try:
            os.mkdir(base, 0o700, dir_fd=inside)
        except FileExistsError:
            self._check_directory(name)
            return
        fd = os.open(base, OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=inside)
        try:
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            set_xattrs(fd, entry)
        finally:
            os.close(fd)
        self._times[name] = bounded_time(entry.mtime)

    def _check_directory(self, name: bytes) -> None:
        try:
            self._into.enter(name)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise InvalidArgument(f"{shown(name)} is there and is no directory") from None
            raise

    def _put(self, inside: int, base: bytes, make: Callable[[bytes], None]) -> None:
        """Have ``make`` make something at ``base``, in the place of what is there."""
        try:
            make(base)
            return
        except FileExistsError:
            mount_point = _is_to_be_kept(inside, base)
        beside = b".kontti-" + secrets.token_hex(8).encode()
        try:
            make(beside)
            if mount_point:
                _overwrite(inside, beside, base)
            else:
                os.rename(beside, base, src_dir_fd=inside, dst_dir_fd=inside)
        finally:
            # two names of one file are left as they are by rename(2)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=inside)

    def _file(self, entry: Entry, inside: int, base: bytes) -> None:
        def make(name: bytes) -> None:
            fd = os.open(name, _NEW, 0o600, dir_fd=inside)
            try:
                self._write(fd)
                os.fchmod(fd, entry.mode & 0o777)
                settle_file(fd, entry, owner_of(fd))
            except BaseException:
                os.unlink(name, dir_fd=inside)
                raise
            finally:
                os.close(fd)

        self._put(inside, base, make)
        self._copied.bytes += entry.size

    def _write(self, fd: int) -> None:
        """Copy the entry's data; what is all zeros is left a hole."""
        size = 0
        for view in self._reader.data():
            size += len(view)
            for start in range(0, len(view), _CHUNK):
                piece = view[start : start + _CHUNK]
                if piece == bytes(len(piece)):
                    os.lseek(fd, len(piece), os.SEEK_CUR)
                    continue
                while piece:
                    piece = piece[os.write(fd, piece) :]
        os.ftruncate(fd, size)

    def _hard_link(self, entry: Entry, inside: int, base: bytes) -> None:
        if escapes(entry.link):
            raise InvalidArgument(f"invalid hardlink {shown(entry.name)} -> {shown(entry.link)}")
        parent, _, name = clean(entry.link).rpartition(b"/")
        # entering the one lets go of the other
        inside = os.dup(inside)
        try:
            source = self._into.enter(parent)
            self._put(
                inside,
                base,
                lambda new: os.link(
                    name, new, src_dir_fd=source, dst_dir_fd=inside, follow_symlinks=False
                ),
            )
        finally:
            os.close(inside)

    def _symlink(self, entry: Entry, inside: int, base: bytes) -> None:
        def make(name: bytes) -> None:
            os.symlink(entry.link, name, dir_fd=inside)
            self._settle(entry, inside, name)

        self._put(inside, base, make)

    def _node(self, entry: Entry, inside: int, base: bytes) -> None:
        kinds = {CHAR: stat.S_IFCHR, BLOCKDEV: stat.S_IFBLK, FIFO: stat.S_IFIFO}

        def make(name: bytes) -> None:
            device = os.makedev(*entry.device)
            os.mknod(name, kinds[entry.kind] | entry.mode & 0o777, device, dir_fd=inside)
            self._settle(entry, inside, name)

        self._put(inside, base, make)

    def _settle(self, entry: Entry, inside: int, name: bytes) -> None:
        os.chown(name, entry.uid, entry.gid, dir_fd=inside, follow_symlinks=False)
        time = bounded_time(entry.mtime)
        os.utime(name, ns=(time, time), dir_fd=inside, follow_symlinks=False)


def _is_to_be_kept(inside: int, base: bytes) -> bool:
    """Whether a mount is what is there; raises InvalidArgument for a directory.

    A rename would succeed, and unmount it: it is in another mount namespace than ours.
    """
    fd = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise InvalidArgument(f"{shown(base)} is there and is a directory")
        return _mount_of(fd) != _mount_of(inside)
    finally:
        os.close(fd)


def _mount_of(fd: int) -> str:
    """The number of the mount an open file is in (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return next(line for line in file if line.startswith("mnt_id:"))


def _overwrite(inside: int, source: bytes, target: bytes) -> None:
    """Copy a file over one that is a mount point and cannot be replaced."""
    with (
        open(_reopened(inside, source, os.O_RDONLY), "rb") as new,
        open(_reopened(inside, target, os.O_WRONLY | os.O_TRUNC), "wb") as old,
    ):
        while data := new.read(_CHUNK):
            old.write(data)


def _reopened(inside: int, name: bytes, flags: int) -> int:
    """A regular file, opened only when it is known to be one: a device may do anything."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidArgument(f"{shown(name)} is there and is no regular file")
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
    finally:
        os.close(fd)
