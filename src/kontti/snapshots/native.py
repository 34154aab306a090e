"""The native snapshotter: each snapshot is a full copy of its parent. Works on any file system."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from kontti.errors import NotFound, Unimplemented
from kontti.linux import fs
from kontti.snapshots.base import Info, Kind
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
        self.records.check_new(key)
        # a copy takes long: the records are free meanwhile
        draft = secrets.randbelow(1 << 32) + (1 << 48)
        above = self.records.committed(parent) if parent else None
        try:
            with tree_errors(f"snapshot {key}"):
                self._draft(kind, draft, above)
            record, parents = self.record(
                Info(kind, key, parent, labels),
                lambda number, parents: self._adopt(number, draft, parents, above),
            )
        except BaseException:
            fs.remove_tree(self.draft(draft))
            raise
        return self._mounts(record, parents)

    def _adopt(self, number: int, draft: int, parents: list[int], copied: int | None) -> None:
        if copied is not None and parents[0] != copied:
            raise NotFound("parent snapshot was removed meanwhile")
        self.publish(number, draft)

    def _draft(self, kind: Kind, number: int, parent: int | None) -> None:
        os.mkdir(self.draft(number), 0o755)
        if kind is Kind.ACTIVE and parent is not None:
            fs.copy_tree(self.path(parent), self.draft(number))

    def make(self, info: Info, number: int, parents: list[int]) -> None:
        """A copy of the parent, or nothing where that is shown itself."""
        self._draft(info.kind, number, parents[0] if parents else None)
        self.publish(number, number)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        """As elsewhere, without rebase: what was deleted from the parent cannot be told."""
        if parent and not self.records.get(key).info.parent:
            raise Unimplemented(f"snapshot {key}: native snapshots cannot be rebased")
        super().commit(name, key, labels, parent)

    def mounts(self, key: str) -> list[Mount]:
        """How to mount an active snapshot or a view."""
        record, parents = self.records.chain(key)
        return self._mounts(record, parents)

    def _mounts(self, record: Record, parents: list[int]) -> list[Mount]:
        if record.info.kind is Kind.VIEW and parents:
            return [Mount("bind", self.path(parents[0]), ("rbind", "ro"))]
        mode = "rw" if record.info.kind is Kind.ACTIVE else "ro"
        return [Mount("bind", self.path(record.id), ("rbind", mode))]
