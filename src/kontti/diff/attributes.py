"""Sets on a file what an entry says of it: owner, mode, extended attributes, times."""

from __future__ import annotations

import errno
import os
import stat

from kontti.diff.tar import DIRECTORY, REGULAR, Entry

# 2262: what a 64-bit count of nanoseconds can still say
_MAX_TIME = (1 << 63) - 1
# overlayfs keeps its own state in these: a layer that sets them could reach into other layers
OVERLAY = (b"trusted.overlay.", b"user.overlay.")
# set by the kernel's policy, not by layers
_POLICY = b"security.selinux"


def bounded_time(nanoseconds: int) -> int:
    """A time that every file system can keep: the epoch for those before it or past 2262."""
    return nanoseconds if 0 <= nanoseconds <= _MAX_TIME else 0


def owner_of(fd: int) -> tuple[int, int]:
    """Whose an open file is."""
    found = os.fstat(fd)
    return found.st_uid, found.st_gid


def settle_file(fd: int, entry: Entry, owner: tuple[int, int]) -> None:
    """Owner, mode, xattrs and times of an open regular file, which is ``owner``'s now."""
    # a change to what it is would be written to the journal all the same
    if owner != (entry.uid, entry.gid):
        os.fchown(fd, entry.uid, entry.gid)
    # after chown, which clears them
    if entry.mode & 0o7000:
        os.fchmod(fd, entry.mode)
    if entry.xattrs:
        set_xattrs(fd, entry)
    time = bounded_time(entry.mtime)
    os.utime(fd, ns=(time, time))


def settle_directory(path: bytes, entry: Entry) -> None:
    """Owner, mode and xattrs of a directory; its times are set when its children are there."""
    os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
    os.chmod(path, entry.mode)
    if entry.xattrs:
        set_xattrs(path, entry)


def settle_special(path: bytes, entry: Entry) -> None:
    """Owner, mode, xattrs and times of a symlink, device or fifo."""
    os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
    if entry.mode & 0o7000 and not stat.S_ISLNK(os.lstat(path).st_mode):
        os.chmod(path, entry.mode)
    if entry.xattrs:
        set_xattrs(path, entry)
    time = bounded_time(entry.mtime)
    os.utime(path, ns=(time, time), follow_symlinks=False)


def set_xattrs(target: int | bytes, entry: Entry) -> None:
    """The entry's xattrs, but for those that this file or file system cannot have."""
    for name, value in (entry.xattrs or {}).items():
        if not name.startswith(OVERLAY):
            _set_xattr(target, name, value, entry.kind in (REGULAR, DIRECTORY))


def _set_xattr(target: int | bytes, name: bytes, value: bytes, strict: bool) -> None:
    try:
        if isinstance(target, int):
            os.setxattr(target, name, value)
        else:
            os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return
        # user.* exists on files and directories only (xattr(7))
        if error.errno == errno.EPERM and not strict and name.startswith(b"user."):
            return
        raise


def clear_xattrs(path: bytes, keep: frozenset[bytes] = frozenset()) -> None:
    """Remove a directory's xattrs, but for the kernel's own and those in ``keep``."""
    for text in os.listxattr(path, follow_symlinks=False):
        name = os.fsencode(text)
        if name not in keep and is_copied(name):
            os.removexattr(path, name, follow_symlinks=False)


def is_copied(name: bytes) -> bool:
    """Whether an xattr belongs to the file rather than to overlayfs or a security policy."""
    return not name.startswith(OVERLAY) and name != _POLICY


def copied_xattrs(fd: int) -> dict[bytes, bytes]:
    """The xattrs of an open file that its copy is to have."""
    names = map(os.fsencode, os.listxattr(fd))
    return {name: os.getxattr(fd, name) for name in names if is_copied(name)}
