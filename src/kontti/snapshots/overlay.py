"""The overlayfs snapshotter: each snapshot is an upper directory over its parents'.

<root>/snapshots/<number>/fs      the snapshot's own files
<root>/snapshots/<number>/work    overlayfs's work directory, for active snapshots
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from kontti.errors import Unimplemented
from kontti.linux import libc, mounts
from kontti.snapshots.base import Info, Kind
from kontti.snapshots.directories import Directories
from kontti.snapshots.records import Record
from kontti.values import EMPTY, Mount

UPPERDIR_LABEL = "containerd.io/snapshot/overlay.upperdir"
MAPPING_LABELS = ("containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping")


class OverlaySnapshotter(Directories):
    """snapshots.base.Snapshotter in ``root``; options are named as the original's settings."""

    def __init__(
        self,
        root: str,
        *,
        upperdir_label: bool = False,
        sync_remove: bool = False,
        mount_options: Sequence[str] = (),
    ) -> None:
        super().__init__(root, sync_remove=sync_remove)
        self._upperdir_label = upperdir_label
        self._options = tuple(mount_options) or default_options()

    def tree(self, number: int) -> str:
        """The upper directory."""
        return os.path.join(self.path(number), "fs")

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """An active snapshot."""
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """A read-only snapshot."""
        return self._create(Kind.VIEW, key, parent, labels)

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        if any(label in labels for label in MAPPING_LABELS):
            raise Unimplemented("id-mapped snapshots")

        record, parents = self.record(
            Info(kind, key, parent, labels), lambda number, above: self.make(kind, number, above)
        )
        return self._mounts(record, parents)

    def make(self, kind: Kind, number: int, parents: list[int]) -> None:
        """An upper directory that looks like the parent's, and one for overlayfs to work in."""
        new = self.draft(number)
        os.mkdir(new, 0o700)
        upper = os.path.join(new, "fs")
        os.mkdir(upper, 0o755)
        if kind is Kind.ACTIVE:
            os.mkdir(os.path.join(new, "work"), 0o711)
        if parents:
            # the root directory of the merged tree is the upper one: it must look like the parent's
            above = os.stat(self.tree(parents[0]))
            os.chown(upper, above.st_uid, above.st_gid)
            os.chmod(upper, above.st_mode & 0o7777)
        self.publish(number, number)

    def mounts(self, key: str) -> list[Mount]:
        """How to mount an active snapshot or a view."""
        record, parents = self.records.chain(key)
        return self._mounts(record, parents)

    def _mounts(self, record: Record, parents: list[int]) -> list[Mount]:
        active = record.info.kind is Kind.ACTIVE
        if not parents:
            mode = "rw" if active else "ro"
            return [Mount("bind", self.tree(record.id), (mode, "rbind"))]
        if not active and len(parents) == 1:
            return [Mount("bind", self.tree(parents[0]), ("ro", "rbind"))]
        options = list(self._options)
        if active:
            options.append(f"workdir={os.path.join(self.path(record.id), 'work')}")
            options.append(f"upperdir={self.tree(record.id)}")
        options.append("lowerdir=" + ":".join(self.tree(n) for n in parents))
        return [Mount("overlay", "overlay", tuple(options))]


def default_options() -> tuple[str, ...]:
    """``index=off`` where the kernel has the index (a layer may be lower to many), ``userxattr``
    where only that works: in a user namespace."""
    options = []
    if os.path.exists("/sys/module/overlay/parameters/index"):
        options.append("index=off")
    if _in_user_namespace() and mounts.kernel_version() >= (5, 11):
        options.append("userxattr")
    return tuple(options)


def _in_user_namespace() -> bool:
    with open("/proc/self/uid_map") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def supported(root: str) -> None:
    """Raises Unimplemented with the reason where overlayfs cannot be used over ``root``."""
    os.makedirs(root, exist_ok=True)
    with open("/proc/filesystems") as file:
        known = any(line.split()[-1] == "overlay" for line in file)
    if not known:
        raise Unimplemented("overlayfs: the kernel has no such file system")
    if libc.statfs_type(root) == libc.OVERLAYFS_SUPER_MAGIC:
        raise Unimplemented(f"overlayfs: {root} is on an overlay itself")
