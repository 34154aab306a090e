"""The btrfs snapshotter: each snapshot is a subvolume, which shares what it did not change.

<root>/snapshots/<number>    the subvolume; read-only once committed
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from kontti.errors import Unimplemented
from kontti.linux import btrfs, fs, libc
from kontti.snapshots.base import MAX_SIZE_LABEL, Info, Kind, Usage, max_size
from kontti.snapshots.directories import tree_errors
from kontti.snapshots.native import NativeSnapshotter
from kontti.snapshots.records import Record
from kontti.values import EMPTY


class BtrfsSnapshotter(NativeSnapshotter):
    """snapshots.base.Snapshotter in ``root``, a directory on btrfs."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        for number in self.records.ids(Kind.ACTIVE):
            # a crash came between this and the record that it is committed
            if btrfs.is_readonly(self.path(number)):
                btrfs.set_readonly(self.path(number), False)

    def fill(self, info: Info, path: str, parent: int | None) -> None:
        """A snapshot of the parent's subvolume, or an empty one."""
        if parent is None:
            btrfs.create(path)
            os.chmod(path, 0o755)
        elif info.kind is Kind.ACTIVE:
            btrfs.snapshot(self.path(parent), path)
        else:
            os.mkdir(path, 0o755)
        if info.kind is Kind.ACTIVE and max_size(info.labels):
            _limit(path, max_size(info.labels))

    def check_limit(self, info: Info) -> None:
        """Raises InvalidArgument; whether there are quotas is known when one is set."""
        max_size(info.labels)

    def discard(self, path: str) -> None:
        """Delete a subvolume, or a view's directory."""
        try:
            if btrfs.is_subvolume(path):
                btrfs.destroy(path)
                return
        except FileNotFoundError:
            return
        fs.remove_tree(path)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        """As elsewhere; its files cannot be changed after it."""
        record = self.records.get(key)
        if record.info.kind is not Kind.ACTIVE:
            super().commit(name, key, labels, parent)
            return
        with tree_errors(f"snapshot {key}"):
            btrfs.set_readonly(self.path(record.id), True)
        try:
            super().commit(name, key, labels, parent)
        except BaseException:
            if record.id in self.records.ids(Kind.ACTIVE):
                btrfs.set_readonly(self.path(record.id), False)
            raise

    def replace(self, name: str, key: str) -> None:
        """Give committed ``name`` the files of active ``key``."""
        super().replace(name, key)
        with tree_errors(f"snapshot {name}"):
            btrfs.set_readonly(self.path(self.records.get(name).id), True)

    def _measure(self, record: Record) -> Usage:
        """What is in it and not in its parent."""
        if not record.info.parent:
            return super()._measure(record)
        above = self.path(self.records.get(record.info.parent).id)
        with tree_errors(f"snapshot {record.info.name}"):
            return Usage(*fs.usage_over(self.path(record.id), above))


def _limit(path: str, size: int) -> None:
    try:
        btrfs.limit_exclusive(path, size)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.EINVAL):
            raise
        raise Unimplemented(f"label {MAX_SIZE_LABEL}: this btrfs has no quotas enabled") from None


def supported(root: str) -> None:
    """Raises Unimplemented where ``root`` is not on btrfs."""
    os.makedirs(root, mode=0o700, exist_ok=True)
    if libc.statfs_type(root) != libc.BTRFS_SUPER_MAGIC:
        raise Unimplemented(f"btrfs: {root} is not on btrfs")
