"""What snapshotters share whose snapshots are whole copies of their parents."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from kontti.errors import NotFound, Unimplemented
from kontti.snapshots.base import Info, Kind
from kontti.snapshots.directories import Directories, tree_errors
from kontti.snapshots.records import Record
from kontti.values import EMPTY, Mount


class CopyingSnapshotter(Directories):
    """snapshots.base.Snapshotter in ``root``, but for ``fill`` and ``_mounts``."""

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """An active snapshot: a copy of the parent."""
        return self._create(Info(Kind.ACTIVE, key, parent, labels))

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """A read-only mount of the parent itself."""
        return self._create(Info(Kind.VIEW, key, parent, labels))

    def _create(self, info: Info) -> list[Mount]:
        self.check_limit(info)
        self.records.check_new(info.name)
        # a copy takes long: the records are free meanwhile
        draft = secrets.randbelow(1 << 32) + (1 << 48)
        above = self.records.committed(info.parent) if info.parent else None
        try:
            with tree_errors(f"snapshot {info.name}"):
                self.fill(info, self.draft(draft), above)
            record, parents = self.record(
                info, lambda number, parents: self._adopt(number, draft, parents, above)
            )
        except BaseException:
            self.discard(self.draft(draft))
            raise
        return self._mounts(record, parents)

    def _adopt(self, number: int, draft: int, parents: list[int], copied: int | None) -> None:
        if copied is not None and parents[0] != copied:
            raise NotFound("parent snapshot was removed meanwhile")
        self.publish(number, draft)

    def fill(self, info: Info, path: str, parent: int | None) -> None:
        """Make a snapshot's directory at ``path``; ``parent`` is shown by a view itself."""
        raise NotImplementedError

    def make(self, info: Info, number: int, parents: list[int]) -> None:
        """As it was prepared."""
        self.fill(info, self.draft(number), parents[0] if parents else None)
        self.publish(number, number)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        """As elsewhere, without rebase: what was deleted from the parent cannot be told."""
        if parent and not self.records.get(key).info.parent:
            raise Unimplemented(f"snapshot {key}: a copy of its parent cannot be rebased")
        super().commit(name, key, labels, parent)

    def mounts(self, key: str) -> list[Mount]:
        """How to mount an active snapshot or a view."""
        record, parents = self.records.chain(key)
        return self._mounts(record, parents)

    def _mounts(self, record: Record, parents: list[int]) -> list[Mount]:
        raise NotImplementedError
