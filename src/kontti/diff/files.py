"""Where the entries of a layer become files: a directory on disk, or an image in the making.

Paths are relative to the root, which is b""; their directories are there, and are no symlinks.
What goes wrong is raised as the OSError that a system call would give.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from typing import Protocol

from kontti.diff.tar import Entry, TarReader


class Kind(enum.Enum):
    """What is at a path."""

    NOTHING = enum.auto()
    DIRECTORY = enum.auto()
    SYMLINK = enum.auto()
    WHITEOUT = enum.auto()
    OTHER = enum.auto()


class Files(Protocol):
    """What is made raises FileExistsError where something is there, and has then done nothing."""

    def kind(self, path: bytes) -> Kind: ...

    def root_time(self) -> int:
        """When the root was changed before the layer came."""
        ...

    def file(self, entry: Entry, path: bytes, reader: TarReader) -> None:
        """A regular file, with the data that ``reader`` is at."""
        ...

    def hard_link(self, source: bytes, path: bytes) -> None: ...
    def symlink(self, entry: Entry, path: bytes) -> None: ...
    def device(self, entry: Entry, path: bytes) -> None: ...
    def fifo(self, entry: Entry, path: bytes) -> None: ...

    def directory(self, path: bytes, mode: int) -> None:
        """A directory of root's, which takes after a setgid one that it is in."""
        ...

    def describe(self, path: bytes, entry: Entry, fresh: bool) -> None:
        """Give a directory the entry's owner, mode and xattrs; what is not ``fresh`` had others."""
        ...

    def copy_up(self, path: bytes, status: os.stat_result, xattrs: Mapping[bytes, bytes]) -> None:
        """A directory that looks as one of a parent's does."""
        ...

    def whiteout(self, path: bytes) -> None:
        """overlayfs's mark that a name is gone."""
        ...

    def set_xattr(self, path: bytes, name: str, value: bytes) -> None: ...
    def set_time(self, path: bytes, time: int) -> None: ...

    def remove(self, path: bytes) -> None:
        """Remove what is at ``path``, all of it; nothing there is well."""
        ...
