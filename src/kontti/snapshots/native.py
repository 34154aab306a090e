"""The native snapshotter: each snapshot is a full copy of its parent. Works on any file system."""

from __future__ import annotations

import os

from kontti.linux import fs
from kontti.snapshots.base import Info, Kind
from kontti.snapshots.copying import CopyingSnapshotter
from kontti.snapshots.records import Record
from kontti.values import Mount


class NativeSnapshotter(CopyingSnapshotter):
    """snapshots.base.Snapshotter in ``root``."""

    def fill(self, info: Info, path: str, parent: int | None) -> None:
        """A copy of the parent's files."""
        os.mkdir(path, 0o755)
        if info.kind is Kind.ACTIVE and parent is not None:
            fs.copy_tree(self.path(parent), path)

    def _mounts(self, record: Record, parents: list[int]) -> list[Mount]:
        if record.info.kind is Kind.VIEW and parents:
            return [Mount("bind", self.path(parents[0]), ("rbind", "ro"))]
        mode = "rw" if record.info.kind is Kind.ACTIVE else "ro"
        return [Mount("bind", self.path(record.id), ("rbind", mode))]
