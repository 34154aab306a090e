"""Extracts straight into an overlay's upper directory, which is quicker than through the mount.

The merged tree comes out as if it had been mounted: what the lower directories hold is looked up in
them. Where that is not enough (a path goes through a parent's symlink, a hard link names a parent's
file) NeedsParents says so, and the layer is to be applied over the mounted overlay instead.
"""

from __future__ import annotations

import os
import stat

from kontti.diff.attributes import copied_xattrs
from kontti.diff.files import Files, Kind
from kontti.diff.lowers import Lowers, NeedsParents
from kontti.diff.removal import join
from kontti.diff.trees import no_directory, within


class UpperTree:
    """An upper directory over ``lowers``, with overlayfs's whiteouts and opaque marks."""

    def __init__(self, files: Files, lowers: Lowers, opaque_xattr: str) -> None:
        self.files = files
        self.ready: dict[bytes, bytes] = {b"": b""}
        self.times: dict[bytes, int] = {b"": files.root_time()}
        self._lowers = lowers
        self._opaque_xattr = opaque_xattr
        self._whiteouts: set[bytes] = set()

    def enter(self, directory: bytes, mtime: int) -> bytes:
        path = b""
        for component in directory.split(b"/"):
            path = join(path, component)
            if path not in self.ready:
                self._step(path, mtime)
                self.ready[path] = path
        return path

    def _step(self, path: bytes, mtime: int) -> None:
        kind = self.files.kind(path)
        if kind is Kind.NOTHING:
            self._from_lower(path, mtime)
        elif kind is Kind.WHITEOUT:
            self.clear(path)
            self._fresh(path, mtime)
        elif kind is Kind.SYMLINK:
            raise NeedsParents(path)
        elif kind is not Kind.DIRECTORY:
            raise no_directory(path)

    def _from_lower(self, path: bytes, mtime: int) -> None:
        found = self._lowers.find(path)
        if found is None:
            self._fresh(path, mtime)
        elif stat.S_ISLNK(found.status.st_mode):
            raise NeedsParents(path)
        elif not stat.S_ISDIR(found.status.st_mode):
            raise no_directory(path)
        else:
            self._copy_up(path, found.status)

    def _fresh(self, path: bytes, mtime: int) -> None:
        self.files.directory(path, 0o755)
        self.made_directory(path, True)
        self.times[path] = mtime

    def _copy_up(self, path: bytes, status: os.stat_result) -> None:
        with self._lowers.opened(path) as fd:
            xattrs = copied_xattrs(fd)
        self.files.copy_up(path, status, xattrs)
        self.times[path] = status.st_mtime_ns

    def clear(self, path: bytes) -> None:
        kind = self.files.kind(path)
        if kind is Kind.NOTHING:
            return
        self.files.remove(path)
        self._lowers.hide(path)
        self._whiteouts.discard(path)
        if kind is Kind.DIRECTORY:
            self._forget(path)

    def _forget(self, directory: bytes) -> None:
        self.ready = {p: r for p, r in self.ready.items() if not within(p, directory)}
        self.times = {p: t for p, t in self.times.items() if not within(p, directory)}
        self._whiteouts = {p for p in self._whiteouts if not within(p, directory)}

    def made(self, path: bytes) -> None:
        pass

    def made_directory(self, path: bytes, fresh: bool) -> None:
        self.ready[path] = path
        # something else was here: without the mark, the parents' directory would shine through
        if fresh and self._lowers.is_hidden(path):
            self._mark_opaque(path)

    def whiteout(self, path: bytes) -> None:
        kind = self.files.kind(path)
        if kind is Kind.NOTHING:
            self._make_whiteout(path)
        elif kind is Kind.DIRECTORY:
            self.opaque(path)

    def _make_whiteout(self, path: bytes) -> None:
        # one that hides nothing would be listed in directories that are not merged
        if self._lowers.shows(path):
            self.files.whiteout(path)
            self._whiteouts.add(path)
            self._lowers.hide(path)

    def opaque(self, directory: bytes) -> None:
        if self._lowers.are_none:
            return
        if not directory:
            # overlayfs merges roots whatever their marks say
            raise NeedsParents(directory)
        self._lowers.hide(directory)
        self._mark_opaque(directory)
        for path in [p for p in self._whiteouts if within(p, directory)]:
            self.files.remove(path)
            self._whiteouts.discard(path)

    def _mark_opaque(self, directory: bytes) -> None:
        if not self._lowers.are_none:
            self.files.set_xattr(directory, self._opaque_xattr, b"y")

    def link_source(self, target: bytes) -> bytes:
        parent = target.rpartition(b"/")[0]
        kind = self.files.kind(target) if parent in self.ready else Kind.NOTHING
        if kind not in (Kind.NOTHING, Kind.WHITEOUT):
            return target
        # there only in a parent, or nowhere: over the mounted tree the kernel says which
        raise NeedsParents(target)
