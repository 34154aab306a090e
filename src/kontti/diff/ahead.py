"""Extracts a layer before its parents are there, and settles it over them afterwards.

Most of what a layer says stands by itself. What hangs on its parents is noted on the way: the look
of directories that the layer only implies, whiteouts that may hide nothing, marks of directories
that hide their parents'. Where notes are not enough, NeedsParents says so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import Protocol

from kontti.diff.attributes import copied_xattrs
from kontti.diff.disk import look_like
from kontti.diff.files import Files
from kontti.diff.job import Notes
from kontti.diff.lowers import Found, Lowers, NeedsParents
from kontti.diff.trees import within
from kontti.diff.upper_tree import UpperTree

# notes travel in a request, of which a worker takes so much (job.MAX_REQUEST)
MAX_NOTES = 1 << 19
# makes what is created in a directory different
DEFAULT_ACL = "system.posix_acl_default"


class AheadTree(UpperTree):
    """An upper directory over parents that are yet to come."""

    def __init__(self, files: Files) -> None:
        super().__init__(files, Lowers((), unknown=True), "")
        # the root is there in every tree: the layer need not name it
        self._implied: set[bytes] = {b""}
        self._described: set[bytes] = set()
        self._opaques: set[bytes] = set()

    def _from_lower(self, path: bytes, mtime: int) -> None:
        if self._lowers.is_gone(path):
            self._fresh(path, mtime)
            return
        self.files.directory(path, 0o755)
        self._implied.add(path)
        self.times[path] = mtime

    def made_directory(self, path: bytes, fresh: bool) -> None:
        super().made_directory(path, fresh)
        if path in self._implied:
            self._implied.discard(path)
            if path:
                self._described.add(path)

    def _forget(self, directory: bytes) -> None:
        if any(within(path, directory) for path in self._implied | self._described):
            # parents may have something else there, and the layer be wrong to go through it
            raise NeedsParents(directory)
        super()._forget(directory)
        self._opaques = {p for p in self._opaques if not within(p, directory)}

    def _mark_opaque(self, directory: bytes) -> None:
        self._opaques.add(directory)

    def notes(self) -> Notes:
        """What is to be settled; raises NeedsParents where it is too much to tell."""
        noted = (self._implied, self._described, self._whiteouts, self._opaques)
        if sum(len(path) + 8 for paths in noted for path in paths) > MAX_NOTES:
            raise NeedsParents(b"")
        implied, described, whiteouts, opaques = (sorted(map(os.fsdecode, s)) for s in noted)
        return {
            "implied": implied,
            "described": described,
            "whiteouts": whiteouts,
            "opaques": opaques,
        }


class Settled(Protocol):
    """What was extracted ahead, to be brought in line with its parents."""

    def unlink(self, paths: Sequence[bytes]) -> None:
        """Remove what is no directory; the directories that they are in keep their times."""
        ...

    def mark_opaque(self, path: bytes) -> None: ...

    def take_after(
        self, path: bytes, status: os.stat_result, xattrs: Mapping[bytes, bytes]
    ) -> None:
        """Give a directory owner, mode and xattrs, and one that is not the root its time."""
        ...

    def root(self) -> list[int]:
        """Mode, owner and group of the root."""
        ...


class SettledDisk:
    """The current directory."""

    def __init__(self, opaque_xattr: str) -> None:
        self._opaque_xattr = opaque_xattr

    def unlink(self, paths: Sequence[bytes]) -> None:
        for path in paths:
            directory = path.rpartition(b"/")[0] or b"."
            before = os.lstat(directory)
            os.unlink(path)
            os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns), follow_symlinks=False)

    def mark_opaque(self, path: bytes) -> None:
        os.setxattr(path, self._opaque_xattr, b"y", follow_symlinks=False)

    def take_after(
        self, path: bytes, status: os.stat_result, xattrs: Mapping[bytes, bytes]
    ) -> None:
        look_like(path or b".", status, xattrs)
        if path:
            time = status.st_mtime_ns
            os.utime(path, ns=(time, time), follow_symlinks=False)

    def root(self) -> list[int]:
        root = os.stat(b".")
        return [stat.S_IMODE(root.st_mode), root.st_uid, root.st_gid]


def settle(notes: Notes, lowers: Lowers, made: Settled) -> None:
    """Do to ``made`` what ``notes`` leave to be done; raises NeedsParents."""
    whiteouts = map(os.fsencode, notes["whiteouts"])
    made.unlink([path for path in whiteouts if not lowers.shows(path)])
    for path in map(os.fsencode, notes["opaques"]):
        made.mark_opaque(path)
    for path in map(os.fsencode, notes["described"]):
        _check_described(path, lowers)
    # in order, parents come first: what is wrong with one is wrong with all below it
    for path in map(os.fsencode, notes["implied"]):
        _take_after(path, lowers, made)


def _check_described(path: bytes, lowers: Lowers) -> None:
    """What was put in it before it was described went through what the parents have there."""
    found = lowers.find(path)
    if found is not None:
        _check_plain(path, found, lowers)


def _take_after(path: bytes, lowers: Lowers, made: Settled) -> None:
    """Make a directory look as the parents' of that name does."""
    if not path:
        made.take_after(path, lowers.root(), {})
        return
    found = lowers.find(path)
    if found is None:
        return
    _check_plain(path, found, lowers)
    with lowers.opened(path) as fd:
        made.take_after(path, found.status, copied_xattrs(fd))


def _check_plain(path: bytes, found: Found, lowers: Lowers) -> None:
    """Raises NeedsParents for a path that is no directory, or one that its children inherit of."""
    if not stat.S_ISDIR(found.status.st_mode) or found.status.st_mode & stat.S_ISGID:
        raise NeedsParents(path)
    with lowers.opened(path) as fd:
        if DEFAULT_ACL in os.listxattr(fd):
            raise NeedsParents(path)
