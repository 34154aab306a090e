"""Subvolumes of btrfs (ioctl_btrfs of linux/btrfs.h). Each raises OSError."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

# struct btrfs_ioctl_vol_args: a descriptor and a name; _v2: with a transaction, flags and 4 words
_ARGS, _ARGS_V2 = struct.Struct("=q4088s"), struct.Struct("=qQQ4Q4040s")
# struct btrfs_ioctl_qgroup_limit_args: a group, flags, most referenced and exclusive, two more
_LIMIT = struct.Struct("=6Q")
SUBVOL_CREATE, SNAP_DESTROY, SNAP_CREATE_V2 = 0x5000940E, 0x5000940F, 0x50009417
SUBVOL_GETFLAGS, SUBVOL_SETFLAGS = 0x80089419, 0x4008941A
QGROUP_LIMIT = 0x8030942B
SUBVOL_RDONLY = 2
QGROUP_LIMIT_MAX_EXCL = 2
FIRST_INODE = 256
"""The number of each subvolume's own directory."""


class _opened:  # noqa: N801 used as a function
    __slots__ = ("_fd", "_path")

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> int:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def is_subvolume(path: str) -> bool:
    """Whether a directory on btrfs is one."""
    found = os.lstat(path)
    return stat.S_ISDIR(found.st_mode) and found.st_ino == FIRST_INODE


def create(path: str) -> None:
    """An empty subvolume."""
    folder, name = os.path.split(path)
    with _opened(folder) as parent:
        fcntl.ioctl(parent, SUBVOL_CREATE, bytearray(_ARGS.pack(0, os.fsencode(name))))


def snapshot(source: str, path: str) -> None:
    """A writable snapshot of the subvolume ``source``."""
    folder, name = os.path.split(path)
    with _opened(folder) as parent, _opened(source) as fd:
        args = _ARGS_V2.pack(fd, 0, 0, 0, 0, 0, 0, os.fsencode(name))
        fcntl.ioctl(parent, SNAP_CREATE_V2, bytearray(args))


def is_readonly(path: str) -> bool:
    """Whether a subvolume cannot be written to."""
    with _opened(path) as fd:
        raw = fcntl.ioctl(fd, SUBVOL_GETFLAGS, bytes(8))
    return bool(struct.unpack("=Q", raw)[0] & SUBVOL_RDONLY)


def set_readonly(path: str, readonly: bool) -> None:
    """Have a subvolume refuse writes, or not."""
    with _opened(path) as fd:
        fcntl.ioctl(fd, SUBVOL_SETFLAGS, struct.pack("=Q", SUBVOL_RDONLY if readonly else 0))


def limit_exclusive(path: str, size: int) -> None:
    """Let a subvolume take ``size`` bytes of its own; ENOTCONN where quotas are not enabled."""
    args = bytearray(_LIMIT.pack(0, QGROUP_LIMIT_MAX_EXCL, 0, size, 0, 0))
    with _opened(path) as fd:
        fcntl.ioctl(fd, QGROUP_LIMIT, args)


def destroy(path: str) -> None:
    """Delete a subvolume and those in it; the kernel frees what they held by and by."""
    try:
        _destroy(path)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
    else:
        return
    # deleted in reverse, each has no other in it any more
    for found in reversed([path, *_below(path)]):
        _destroy(found)


def _destroy(path: str) -> None:
    if is_readonly(path):
        set_readonly(path, False)
    folder, name = os.path.split(path)
    with _opened(folder) as parent:
        fcntl.ioctl(parent, SNAP_DESTROY, bytearray(_ARGS.pack(0, os.fsencode(name))))


def _below(path: str) -> list[str]:
    found = []
    stack = [path]
    try:
        while stack:
            for entry in os.scandir(stack.pop()):
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                    if entry.stat(follow_symlinks=False).st_ino == FIRST_INODE:
                        found.append(entry.path)
    except OSError as error:
        # whatever lies so deep is deleted with what it is in, if it is no subvolume
        if error.errno != errno.ENAMETOOLONG:
            raise
    return found
