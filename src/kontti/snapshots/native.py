"""The native snapshotter: each snapshot is a full copy of its parent. Works on any file system."""

from __future__ import annotations

import os
from collections.abc import Mapping

from kontti.linux import fs
from kontti.snapshots.base import Kind
from kontti.snapshots.directories import Directories, tree_errors
from kontti.snapshots.records import Record
from kontti.values import EMPTY, Mount


class NativeSnapshotter(Directories):
    """snapshots.base.Snapshotter in ``root``."""

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """An active snapshot: a copy of the parent."""
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """A read-only mount of the parent itself."""
        return self._create(Kind.VIEW, key, parent, labels)

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        def make(number: int, parents: list[int]) -> None:
            with tree_errors(f"snapshot {key}"):
                self._make(kind, number, parents)

        record, parents = self.records.create(kind, key, parent, labels, make)
        return self._mounts(record, parents)

    def _make(self, kind: Kind, number: int, parents: list[int]) -> None:
        new = os.path.join(self.trees, f"new-{number}")
        os.mkdir(new, 0o755)
        if kind is Kind.ACTIVE and parents:
            fs.copy_tree(self.path(parents[0]), new)
        self.publish(number)

    def mounts(self, key: str) -> list[Mount]:
        """How to mount an active snapshot or a view."""
        record, parents = self.records.chain(key)
        return self._mounts(record, parents)

    def _mounts(self, record: Record, parents: list[int]) -> list[Mount]:
        if record.info.kind is Kind.VIEW and parents:
            return [Mount("bind", self.path(parents[0]), ("rbind", "ro"))]
        mode = "ro" if record.info.kind is Kind.VIEW else "rw"
        return [Mount("bind", self.path(record.id), ("rbind", mode))]
