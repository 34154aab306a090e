"""Where layers are extracted to: a tree that is whole, as mounted, that hides nothing.

Paths are relative to the current directory, which is the root of a chroot: symlinks in them cannot
lead out. b"" is the root itself.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Protocol

from kontti.diff.disk import DiskFiles
from kontti.diff.files import Files
from kontti.diff.removal import join, lstat, remove


class Tree(Protocol):
    """What the extractor needs to know of the tree it writes to."""

    files: Files
    """Where what is in the tree goes."""

    ready: dict[bytes, bytes]
    """Directories that are there, by the name a layer used, to their real paths."""

    times: dict[bytes, int]
    """Modification times to give directories at the end, by real path."""

    def enter(self, directory: bytes, mtime: int) -> bytes:
        """The real path of ``directory``; it and its parents are made where they are missing."""
        ...

    def clear(self, path: bytes) -> None:
        """Remove what is at ``path``, to make room."""
        ...

    def made(self, path: bytes) -> None:
        """``path`` was made by this layer and is no directory."""
        ...

    def made_directory(self, path: bytes, fresh: bool) -> None:
        """``path`` is a directory of this layer, ``fresh`` or there before."""
        ...

    def whiteout(self, path: bytes) -> None:
        """Remove what parents of this layer have at ``path``."""
        ...

    def opaque(self, directory: bytes) -> None:
        """Remove what parents of this layer have in ``directory``."""
        ...

    def link_source(self, target: bytes) -> bytes:
        """The real path of a hard link's target; raises FileNotFoundError."""
        ...


def no_directory(path: bytes) -> OSError:
    """The error for a path that goes through something else than a directory."""
    return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


def within(path: bytes, directory: bytes) -> bool:
    """Whether ``path`` is ``directory`` or below it."""
    return not directory or path == directory or path.startswith(directory + b"/")


class PlainTree:
    """A tree that shows what its parents have: a plain directory, or a mounted overlay."""

    def __init__(self) -> None:
        self.files: Files = DiskFiles()
        self.ready: dict[bytes, bytes] = {b"": b""}
        # writing into a directory must not leave its time at now
        self.times: dict[bytes, int] = {b"": os.stat(b".").st_mtime_ns}
        self._ours: set[bytes] = set()

    def enter(self, directory: bytes, mtime: int) -> bytes:
        real = self._walk(directory, mtime, follow=True)
        self.ready[directory] = real
        return real

    def _walk(self, directory: bytes, mtime: int, *, follow: bool) -> bytes:
        real = b""
        for component in directory.split(b"/") if directory else ():
            real = self._step(join(real, component), mtime, follow=follow)
        return real

    def _step(self, path: bytes, mtime: int, *, follow: bool) -> bytes:
        status = lstat(path)
        if status is None:
            os.mkdir(path, 0o755)
            self.times[path] = mtime
        elif stat.S_ISLNK(status.st_mode):
            if not follow:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.path.realpath(b"/" + path).lstrip(b"/")
            return self._walk(target, mtime, follow=False)
        elif stat.S_ISDIR(status.st_mode):
            self.times.setdefault(path, status.st_mtime_ns)
        else:
            raise no_directory(path)
        self._ours.add(path)
        return path

    def clear(self, path: bytes) -> None:
        status = lstat(path)
        if status is None:
            return
        remove(path)
        self._ours.discard(path)
        if stat.S_ISDIR(status.st_mode):
            self._forget(path)
        if not stat.S_ISREG(status.st_mode):
            self.ready = {b"": b""}

    def _forget(self, directory: bytes) -> None:
        self._ours = {p for p in self._ours if not within(p, directory)}
        self.times = {p: t for p, t in self.times.items() if not within(p, directory)}

    def made(self, path: bytes) -> None:
        self._ours.add(path)

    def made_directory(self, path: bytes, fresh: bool) -> None:
        self._ours.add(path)
        self.ready[path] = path

    def whiteout(self, path: bytes) -> None:
        if path not in self._ours:
            self.clear(path)
        elif stat.S_ISDIR(os.lstat(path).st_mode):
            self.opaque(path)

    def opaque(self, directory: bytes) -> None:
        with os.scandir(directory or b".") as children:
            names = [child.name for child in children]
        # each is looked at again: removing one forgets what was below it
        for name in names:
            self.whiteout(join(directory, name))

    def link_source(self, target: bytes) -> bytes:
        parent, _, name = target.rpartition(b"/")
        return join(os.path.realpath(b"/" + parent).lstrip(b"/"), name)
