"""Extracts straight into an overlay's upper directory, which is quicker than through the mount.

The merged tree comes out as if it had been mounted: what the lower directories hold is looked up in
them. Where that is not enough (a path goes through a parent's symlink, a hard link names a parent's
file) NeedsParents says so, and the layer is to be applied over the mounted overlay instead.
"""

from __future__ import annotations

import os
import stat

from kontti.diff.attributes import copy_xattrs
from kontti.diff.lowers import Lowers, NeedsParents, is_whiteout
from kontti.diff.removal import join, lstat, remove
from kontti.diff.trees import no_directory, within


class UpperTree:
    """An upper directory over ``lowers``, with overlayfs's whiteouts and opaque marks."""

    def __init__(self, lowers: Lowers, opaque_xattr: str) -> None:
        self.ready: dict[bytes, bytes] = {b"": b""}
        self.times: dict[bytes, int] = {b"": os.stat(b".").st_mtime_ns}
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
        status = lstat(path)
        if status is None:
            self._from_lower(path, mtime)
        elif is_whiteout(status):
            self.clear(path)
            self._fresh(path, mtime)
        elif stat.S_ISLNK(status.st_mode):
            raise NeedsParents(path)
        elif not stat.S_ISDIR(status.st_mode):
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
        os.mkdir(path, 0o755)
        self.made_directory(path, True)
        self.times[path] = mtime

    def _copy_up(self, path: bytes, status: os.stat_result) -> None:
        os.mkdir(path, 0o700)
        os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
        os.chmod(path, stat.S_IMODE(status.st_mode))
        with self._lowers.opened(path) as fd:
            copy_xattrs(fd, path)
        self.times[path] = status.st_mtime_ns

    def clear(self, path: bytes) -> None:
        status = lstat(path)
        if status is None:
            return
        remove(path)
        self._lowers.hide(path)
        self._whiteouts.discard(path)
        if stat.S_ISDIR(status.st_mode):
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
        status = lstat(path)
        if status is None:
            self._make_whiteout(path)
        elif stat.S_ISDIR(status.st_mode):
            self.opaque(path)

    def _make_whiteout(self, path: bytes) -> None:
        # one that hides nothing would be listed in directories that are not merged
        if self._lowers.shows(path):
            os.mknod(path, stat.S_IFCHR, 0)
            self._whiteouts.add(path)
            self._lowers.hide(path)

    def opaque(self, directory: bytes) -> None:
        if not directory:
            # overlayfs merges roots whatever their marks say
            raise NeedsParents(directory)
        self._lowers.hide(directory)
        self._mark_opaque(directory)
        for path in [p for p in self._whiteouts if within(p, directory)]:
            os.unlink(path)
            self._whiteouts.discard(path)

    def _mark_opaque(self, directory: bytes) -> None:
        os.setxattr(directory, self._opaque_xattr, b"y", follow_symlinks=False)

    def link_source(self, target: bytes) -> bytes:
        parent = target.rpartition(b"/")[0]
        status = lstat(target) if parent in self.ready else None
        if status is not None and not is_whiteout(status):
            return target
        # there only in a parent, or nowhere: over the mounted tree the kernel says which
        raise NeedsParents(target)
