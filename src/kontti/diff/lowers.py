"""Looks names up in an overlay's lower directories as overlayfs merges them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kontti.diff.removal import join

_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
# directories whose children are elsewhere in the lower one
_REDIRECT = ("trusted.overlay.redirect", "user.overlay.redirect")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NeedsParents(Exception):
    """The layer cannot be applied without its parents mounted."""


class NeedsFiles(NeedsParents):
    """The layer has to be extracted to a directory, and cannot be made an image."""


class Found:
    """What is at a path in the merged lower directories; ``stack`` has those that merge there."""

    __slots__ = ("stack", "status")

    def __init__(self, status: os.stat_result, stack: Sequence[int]) -> None:
        self.status = status
        self.stack = stack


def is_whiteout(status: os.stat_result) -> bool:
    """Whether it is overlayfs's mark that a name is gone: a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


class Lowers:
    """Lower directories by open descriptors, topmost first, less what the layer hides."""

    def __init__(self, roots: Sequence[int], *, unknown: bool = False) -> None:
        """``unknown``: there are parents, but nobody can say which."""
        self._roots = roots
        self._unknown = unknown
        self._hidden: set[bytes] = set()
        self._merged: dict[bytes, Found | None] = {}

    @property
    def are_none(self) -> bool:
        """Whether it is known that there are no parents."""
        return not self._roots and not self._unknown

    def hide(self, path: bytes) -> None:
        """From now on parents have nothing at ``path`` or below."""
        self._hidden.add(path)

    def is_hidden(self, path: bytes) -> bool:
        """Whether ``path`` itself was hidden."""
        return path in self._hidden

    def is_gone(self, path: bytes) -> bool:
        """Whether the layer hides whatever parents may have at ``path``."""
        if not self._hidden:
            return False
        if b"" in self._hidden or path in self._hidden:
            return True
        end = path.find(b"/")
        while end >= 0:
            if path[:end] in self._hidden:
                return True
            end = path.find(b"/", end + 1)
        return False

    def shows(self, path: bytes) -> bool:
        """Whether there is, or may be, something at ``path`` that a whiteout would hide."""
        if self._unknown:
            return not self.is_gone(path)
        return self.find(path) is not None

    def find(self, path: bytes) -> Found | None:
        """What the parents have at ``path``, symlinks not followed; raises NeedsParents."""
        if b"" in self._hidden or (self._unknown and self.is_gone(path)):
            return None
        if self._unknown:
            raise NeedsParents(path)
        stack: Sequence[int] = self._roots
        here, found = b"", None
        for component in path.split(b"/"):
            here = join(here, component)
            found = None if here in self._hidden else self._look(here, stack)
            if found is None:
                return None
            stack = found.stack
        return found

    def root(self) -> os.stat_result:
        """What the merged tree's root directory looks like."""
        return os.fstat(self._roots[0])

    @contextmanager
    def opened(self, path: bytes) -> Iterator[int]:
        """The topmost directory at ``path``, which was found to be one."""
        found = self.find(path)
        if found is None:
            raise FileNotFoundError(path)
        fd = os.open(path, _DIRECTORY, dir_fd=found.stack[0])
        try:
            yield fd
        finally:
            os.close(fd)

    def _look(self, path: bytes, stack: Sequence[int]) -> Found | None:
        if path not in self._merged:
            self._merged[path] = _merge(path, stack)
        return self._merged[path]


def _merge(path: bytes, stack: Sequence[int]) -> Found | None:
    first: os.stat_result | None = None
    merged: list[int] = []
    for root in stack:
        status = _lstat(path, root)
        if status is None:
            continue
        if not stat.S_ISDIR(status.st_mode):
            if first is None and not is_whiteout(status):
                return Found(status, ())
            break
        first = first or status
        merged.append(root)
        if _ends_here(path, root):
            break
    return Found(first, merged) if first is not None else None


def _lstat(path: bytes, root: int) -> os.stat_result | None:
    try:
        return os.stat(path, dir_fd=root, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _ends_here(path: bytes, root: int) -> bool:
    """Whether a directory hides those below it."""
    fd = os.open(path, _DIRECTORY, dir_fd=root)
    try:
        names = os.listxattr(fd)
        if any(name in _REDIRECT for name in names):
            raise NeedsParents(path)
        return any(name in _OPAQUE and os.getxattr(fd, name) == b"y" for name in names)
    finally:
        os.close(fd)
