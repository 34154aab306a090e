"""Paths in a tree that its owner may be changing: symlinks and ``..`` in them never lead out."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from types import TracebackType
from typing import Self

from kontti.diff.removal import join
from kontti.linux import libc

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
MAX_LINKS = 40
TRIES = 100
_IN_ROOT = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
_BENEATH = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_MAGICLINKS


class Root:
    """A tree by its root directory ``fd``, which is closed with this. Paths are read from there."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def open(self, path: bytes, flags: int) -> int:
        """openat2(2) inside; raises OSError."""
        return open_inside(self._fd, path, flags, _IN_ROOT)

    def look(self, path: bytes, *, follow: bool) -> os.stat_result | None:
        """What is at ``path``, or None; ``follow`` a symlink at its end."""
        try:
            fd = self.open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        except FileNotFoundError:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def final(self, path: bytes) -> bytes:
        """``path``, or where the symlinks at its end lead, there or not."""
        for _ in range(MAX_LINKS):
            parent, name = split(path)
            if not name:
                return path
            try:
                fd = self.open(parent, DIRECTORY)
            except FileNotFoundError:
                return path
            try:
                target = os.readlink(name, dir_fd=fd)
            except (FileNotFoundError, OSError) as error:
                if error.errno in (errno.ENOENT, errno.EINVAL):
                    return path  # there is nothing, or it is no symlink
                raise
            finally:
                os.close(fd)
            path = target if target.startswith(b"/") else join(parent, target)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

    def close(self) -> None:
        """Let go of the tree."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class Destination:
    """A directory of ``root`` to write into.

    With ``follow`` symlinks below it lead to where its owner has them lead, inside the root;
    without, none is gone through: what is written stays in the directory.
    """

    def __init__(self, root: Root, path: bytes, *, follow: bool) -> None:
        self._root = root
        self._path = path
        self._follow = follow
        self._fd = root.open(path, DIRECTORY)
        self._entered: tuple[bytes, int] | None = None

    def enter(self, directory: bytes) -> int:
        """The descriptor of a directory below, until the next call; made where it is not there."""
        if self._entered is not None:
            if self._entered[0] == directory:
                return self._entered[1]
            self._leave()
        try:
            fd = self._open(directory)
        except FileNotFoundError:
            self._make(directory)
            fd = self._open(directory)
        self._entered = directory, fd
        return fd

    def _open(self, directory: bytes) -> int:
        if self._follow:
            return self._root.open(self._path + b"/" + directory, DIRECTORY)
        return open_inside(self._fd, directory, DIRECTORY, _BENEATH)

    def _make(self, directory: bytes) -> None:
        made = b""
        for name in directory.split(b"/"):
            parent = self._open(made)
            try:
                os.mkdir(name, 0o755, dir_fd=parent)
            except FileExistsError:
                pass
            finally:
                os.close(parent)
            made = join(made, name)

    def _leave(self) -> None:
        if self._entered is not None:
            os.close(self._entered[1])
            self._entered = None

    def close(self) -> None:
        """Let go of the directory."""
        self._leave()
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def open_inside(root: int, path: bytes, flags: int, resolve: int) -> int:
    """openat2(2), again where a rename elsewhere keeps the kernel from being sure of ``..``."""
    for _ in range(TRIES):
        with contextlib.suppress(BlockingIOError):
            return libc.openat2(root, path or b".", flags, 0, resolve)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


def split(path: bytes) -> tuple[bytes, bytes]:
    """Directory and last name of a path; no name for the root, ``.`` and ``..``."""
    parent, _, name = path.rstrip(b"/").rpartition(b"/")
    if name in (b".", b".."):
        return path, b""
    return parent or (b"/" if path.startswith(b"/") else b""), name


def is_directory(status: os.stat_result | None) -> bool:
    """Whether something is there and is a directory."""
    return status is not None and stat.S_ISDIR(status.st_mode)
