"""Looks into a tree that its owner may be changing: by descriptors, never through a symlink."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from kontti.diff.attributes import is_copied
from kontti.diff.removal import join
from kontti.linux import libc

_RESOLVE = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# a fifo put where a file was must not block
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CAPABILITY = b"security.capability"


class Item:
    """A name in a directory, and what lstat(2) said of it."""

    __slots__ = ("_names", "directory", "name", "path", "status")

    def __init__(self, directory: int, parent: bytes, name: bytes, status: os.stat_result) -> None:
        self.directory = directory
        self.name = name
        self.path = join(parent, name)
        self.status = status
        self._names: list[str] | None = None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    def link(self) -> bytes:
        """The target of a symlink."""
        return os.readlink(self.name, dir_fd=self.directory)

    def xattrs(self) -> dict[bytes, bytes]:
        """What a layer keeps of its extended attributes."""
        found = {}
        for text in self.xattr_names():
            name = os.fsencode(text)
            if _is_kept(name):
                found[name] = os.getxattr(self._by_descriptor(), name, follow_symlinks=False)
        return found

    def xattr_names(self) -> list[str]:
        """All of them, overlayfs's too, as at the first look."""
        if self._names is None:
            try:
                self._names = os.listxattr(self._by_descriptor(), follow_symlinks=False)
            except OSError:
                # a file system without them, or a name that is gone: the next look says which
                self._names = []
        return self._names

    def _by_descriptor(self) -> bytes:
        # the calls for xattrs take no directory descriptor before kernel 6.13
        return b"/proc/self/fd/%d/%s" % (self.directory, self.name)

    def open(self) -> int:
        """The file's data; the caller's to close."""
        return os.open(self.name, _FILE, dir_fd=self.directory)


def _is_kept(name: bytes) -> bool:
    return is_copied(name) and (not name.startswith(b"security.") or name == _CAPABILITY)


class Rooted:
    """A tree by its root directory, a path or one that is open."""

    def __init__(self, root: str | int) -> None:
        self._fd = root if isinstance(root, int) else os.open(root, _DIRECTORY)

    @contextmanager
    def items(self, path: bytes) -> Iterator[list[Item]]:
        """The children of a directory, by name; usable until it is closed. Raises OSError."""
        fd = libc.openat2(self._fd, path or b".", _DIRECTORY, 0, _RESOLVE)
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(fd))
            yield [item for name in names if (item := _look(fd, path, name)) is not None]
        finally:
            os.close(fd)


def _look(fd: int, parent: bytes, name: bytes) -> Item | None:
    try:
        return Item(fd, parent, name, os.stat(name, dir_fd=fd, follow_symlinks=False))
    except FileNotFoundError:
        return None
