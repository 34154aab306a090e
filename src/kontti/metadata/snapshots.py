"""A snapshotter as one namespace sees it: its own names, labels and leases over a backend."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from kontti.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from kontti.filters import Adaptor, field_adaptor, parse_all
from kontti.metadata import commits
from kontti.metadata.backing import (
    Backing,
    check_lease,
    drop,
    ensure_namespace,
    hold,
    now,
    refuse_other_paths,
)
from kontti.metadata.commits import Commit
from kontti.metadata.database import Database, dump, load
from kontti.metadata.gc import lets_go
from kontti.metadata.leases import SNAPSHOTS
from kontti.metadata.sweep import PATIENCE, attempt, remove_snapshot
from kontti.metadata.unseen import look_through_snapshots
from kontti.namespaces import Scope
from kontti.snapshots.base import INHERITED_PREFIX, TARGET_LABEL, Info, Kind, Usage
from kontti.values import EMPTY, Mount, Resource, check_labels, merge_labels
from kontti.wire.messages.events.snapshot import SnapshotCommit, SnapshotPrepare, SnapshotRemove
from kontti.wire.protobuf import Message

log = logging.getLogger(__name__)
_COLUMNS = "key, backend, parent, labels, created_at, updated_at"
_WHERE = "namespace = ? AND snapshotter = ? AND key = ?"
Row = tuple[str, str, str, str, int, int]


class NamespacedSnapshotter:
    """snapshots.base.Snapshotter of one scope."""

    def __init__(self, backing: Backing, scope: Scope, name: str) -> None:
        self._backing = backing
        self._backend = backing.snapshotter(name)
        self._scope = scope
        self._namespace = scope.namespace
        self._name = name

    @property
    def _records(self) -> Database:
        """The database, once all that the backend has is in it; raises what asking it raises."""
        look_through_snapshots(self._backing, self._name)
        return self._backing.database

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The backend's."""
        return self._backend.capabilities

    def stat(self, key: str) -> Info:
        """Raises NotFound."""
        with self._records.read() as connection:
            row = self._row(connection, key)
        return self._info(row)

    def _row(self, connection: sqlite3.Connection, key: str) -> Row:
        row: Row | None = connection.execute(
            f"SELECT {_COLUMNS} FROM snapshots WHERE {_WHERE}",
            (self._namespace, self._name, key),
        ).fetchone()
        if row is None:
            raise NotFound(f"snapshot {key} does not exist")
        return row

    def _info(self, row: Row) -> Info:
        return _merged(row, self._backend.stat(row[1]))

    def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels; raises NotFound, InvalidArgument for other fields."""
        refuse_other_paths(paths, f'snapshot "{info.name}"')
        with self._records.write() as connection:
            row = self._row(connection, info.name)
            labels = load(row[3])
            merged = merge_labels(labels, info.labels, paths)
            stamp = now()
            connection.execute(
                f"UPDATE snapshots SET labels = ?, updated_at = ? WHERE {_WHERE}",
                (dump(merged), stamp, self._namespace, self._name, info.name),
            )
        self._update_backend(row, merged)
        self._backing.mutated(lets_go(labels, merged))
        return self._info((*row[:3], dump(merged), row[4], stamp))

    def _update_backend(self, row: Row, labels: Mapping[str, str]) -> None:
        old, new = _inherited(load(row[3])), _inherited(labels)
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if changed:
            wanted = Info(Kind.UNKNOWN, row[1], labels=new)
            self._backend.update(wanted, [f"labels.{key}" for key in sorted(changed)])

    def usage(self, key: str) -> Usage:
        """Raises NotFound."""
        return self._backend.usage(self._backend_key(key))

    def mounts(self, key: str) -> list[Mount]:
        """Raises NotFound."""
        return self._backend.mounts(self._backend_key(key))

    def _backend_key(self, key: str) -> str:
        with self._records.read() as connection:
            return self._row(connection, key)[1]

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """An active snapshot; AlreadyExists too where the label names a target that is there."""
        return self._create(key, parent, labels, readonly=False)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """A read-only snapshot."""
        return self._create(key, parent, labels, readonly=True)

    def _create(
        self, key: str, parent: str, labels: Mapping[str, str], *, readonly: bool
    ) -> list[Mount]:
        if not key:
            raise InvalidArgument("snapshot key must not be empty")
        check_labels(labels)
        target = labels.get(TARGET_LABEL, "")
        backend_parent = self._check_new(key, parent, target)
        backend = self._backing.names.make(self._namespace, key)
        create = self._backend.view if readonly else self._backend.prepare
        with self._backing.in_flight.making(self._name, [backend]):
            try:
                mounts = create(backend, backend_parent, _inherited(labels))
            except AlreadyExists:
                # a remote snapshotter leaves what it prepared for a target that it had before
                self._remove_backend(backend)
                self._take_over(target, parent, backend_parent, labels)
                raise
            try:
                with self._records.write() as connection:
                    self._parent_row(connection, parent)
                    self._insert(connection, key, backend, parent, labels)
            except BaseException:
                self._remove_backend(backend)
                raise
        if not readonly:
            event = SnapshotPrepare(key=key, parent=parent, snapshotter=self._name)
            self._publish("prepare", event)
        self._backing.mutated(False)
        return mounts

    def _check_new(self, key: str, parent: str, target: str) -> str:
        """The parent's name in the backend; raises what forbids a new snapshot ``key``."""
        with self._records.read() as connection:
            check_lease(connection, self._scope)
            self._check_free(connection, key)
            if not (target and self._exists(connection, target)):
                return self._parent_row(connection, parent)
        if self._scope.lease:
            with self._records.write() as connection:
                if not self._exists(connection, target):  # collected in between
                    return self._parent_row(connection, parent)
                hold(connection, self._scope, self._resource(target))
        raise AlreadyExists(f'target snapshot "{target}"')

    def _take_over(
        self, target: str, parent: str, backend_parent: str, labels: Mapping[str, str]
    ) -> None:
        """Record the target that a remote snapshotter says it has already.

        https://github.com/containerd/containerd/blob/main/docs/remote-snapshotter.md
        """
        if not target:
            return
        found = self._find_target(target, backend_parent)
        with self._backing.locks.hold(("backend", self._name, found)):
            try:
                self._backend.stat(found)
            except NotFound:
                return  # it had: who looks for the target does not find it, and tries again
            with self._records.write() as connection:
                if not self._exists(connection, target):
                    self._parent_row(connection, parent)
                    self._insert(connection, target, found, parent, labels)

    def _find_target(self, target: str, backend_parent: str) -> str:
        wanted = f'labels."{TARGET_LABEL}"=={json.dumps(target, ensure_ascii=False)}'
        for info in self._backend.walk([wanted]):
            same = info.labels.get(TARGET_LABEL) == target and info.parent == backend_parent
            if same and info.kind is Kind.COMMITTED:
                return info.name
        raise NotFound(f'target snapshot "{target}" in backend')

    def _parent_row(self, connection: sqlite3.Connection, parent: str) -> str:
        if not parent:
            return ""
        try:
            return self._row(connection, parent)[1]
        except NotFound:
            raise NotFound(f"parent snapshot {parent} does not exist") from None

    def _exists(self, connection: sqlite3.Connection, key: str) -> bool:
        try:
            self._row(connection, key)
        except NotFound:
            return False
        return True

    def _check_free(self, connection: sqlite3.Connection, key: str) -> None:
        if self._exists(connection, key):
            raise AlreadyExists(f'snapshot "{key}"')

    def _insert(
        self,
        connection: sqlite3.Connection,
        key: str,
        backend: str,
        parent: str,
        labels: Mapping[str, str],
    ) -> None:
        self._check_free(connection, key)
        ensure_namespace(connection, self._namespace)
        stamp = now()
        connection.execute(
            "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self._namespace, self._name, key, backend, parent, dump(labels), stamp, stamp),
        )
        hold(connection, self._scope, self._resource(key))

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        """snapshots.base.Snapshotter.commit."""
        if not name:
            raise InvalidArgument("snapshot name must not be empty")
        check_labels(labels)
        # two commits of one name: the second finds it taken before its snapshot is consumed
        with self._backing.locks.hold(*((self._name, self._namespace, k) for k in (name, key))):
            self._commit(name, key, labels, parent)
        event = SnapshotCommit(key=key, name=name, snapshotter=self._name)
        self._publish("commit", event)
        self._backing.mutated(False)

    def _commit(self, name: str, key: str, labels: Mapping[str, str], parent: str | None) -> None:
        with self._records.read() as connection:
            check_lease(connection, self._scope)
            self._check_free(connection, name)
            row = self._row(connection, key)
            backend_parent = self._parent_row(connection, parent) if parent else None
        made = self._commit_of(name, row, labels, parent or row[2])
        with self._backing.in_flight.making(self._name, [made.backend, row[1]]):
            try:
                # what a crash of the machine takes of this, it takes of the backend's as well
                with self._records.write(durable=False) as connection:
                    commits.note(connection, made)
                self._backend.commit(made.backend, row[1], _inherited(labels), backend_parent)
                with self._records.write() as connection:
                    self._row(connection, key)
                    self._record_commit(connection, made)
            except BaseException:
                # the active one may be consumed: a collection looks, and finishes it
                self._backing.leftovers.set()
                self._backing.mutated(True)
                raise

    def _commit_of(self, name: str, row: Row, labels: Mapping[str, str], parent: str) -> Commit:
        backend = self._backing.names.make(self._namespace, name)
        where, lease = (self._name, backend, self._namespace), self._scope.lease
        return Commit(*where, row[0], row[1], name, parent, dump(labels), lease)

    def _record_commit(self, connection: sqlite3.Connection, made: Commit) -> None:
        self._parent_row(connection, made.parent)
        self._insert(connection, made.name, made.backend, made.parent, load(made.labels))
        self._delete(connection, made.key)
        commits.strike(connection, made)

    def finish(self, made: Commit) -> None:
        """Make a commit that was cut short whole, or have it be nothing.

        Where the active snapshot is consumed and the committed one cannot be recorded, as its
        parent or lease is gone or its name taken, both are forgotten.
        """
        names = ((self._name, self._namespace, k) for k in (made.name, made.key))
        with self._backing.locks.hold(*names, timeout=PATIENCE):
            is_made, is_consumed = self._is_made(made.backend), not self._is_made(made.consumed)
            finished = is_made and self._finish(made)
            with self._records.write() as connection:
                if is_consumed and self._is_of(connection, made):
                    self._delete(connection, made.key)
                commits.strike(connection, made)
        if finished:
            event = SnapshotCommit(key=made.key, name=made.name, snapshotter=self._name)
            self._publish("commit", event)

    def _finish(self, made: Commit) -> bool:
        try:
            with self._records.write() as connection:
                wanted = commits.is_noted(connection, made) and self._is_of(connection, made)
                if wanted:
                    self._record_commit(connection, made)
        except (NotFound, AlreadyExists) as error:
            log.warning("commit of snapshot %s to %s: %s", made.key, made.name, error)
            return False
        return wanted

    def _is_of(self, connection: sqlite3.Connection, made: Commit) -> bool:
        """Whether the record of the key is still that of the snapshot which was committed."""
        return self._exists(connection, made.key) and (
            self._row(connection, made.key)[1] == made.consumed
        )

    def _is_made(self, backend: str) -> bool:
        try:
            self._backend.stat(backend)
        except NotFound:
            return False
        return True

    def _delete(self, connection: sqlite3.Connection, key: str) -> None:
        connection.execute(
            f"DELETE FROM snapshots WHERE {_WHERE}",
            (self._namespace, self._name, key),
        )
        drop(connection, self._scope, self._resource(key))

    def remove(self, key: str) -> None:
        """Raises NotFound, and FailedPrecondition where it has children."""
        with self._records.write() as connection:
            row = self._row(connection, key)
            child = connection.execute(
                "SELECT 1 FROM snapshots WHERE namespace = ? AND snapshotter = ? AND parent = ? "
                "LIMIT 1",
                (self._namespace, self._name, key),
            ).fetchone()
            if child is not None:
                raise FailedPrecondition("cannot remove snapshot with child")
            self._delete(connection, key)
        self._remove_backend(row[1])
        self._publish("remove", SnapshotRemove(key=key, snapshotter=self._name))
        self._backing.mutated(True)

    def _remove_backend(self, backend: str) -> None:
        what = f"snapshot {backend} of {self._name}"
        attempt(self._backing, what, partial(remove_snapshot, self._backing, self._name, backend))

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Those that match, by key."""
        wanted = parse_all(filters)
        with self._records.read() as connection:
            rows: list[Row] = connection.execute(
                f"SELECT {_COLUMNS} FROM snapshots WHERE namespace = ? AND snapshotter = ? "
                "ORDER BY key",
                (self._namespace, self._name),
            ).fetchall()
        backends = {info.name: info for info in self._backend.walk()}
        for row in rows:
            if row[1] not in backends:
                continue  # removed meanwhile, or a commit that a crash cut short
            info = _merged(row, backends[row[1]])
            if wanted.match(adaptor(info)):
                yield info

    def cleanup(self) -> None:
        """Have the backend free what is removed."""
        self._backend.cleanup()

    def close(self) -> None:
        """The backend is the engine's to close."""

    def _resource(self, key: str) -> Resource:
        return Resource(key, SNAPSHOTS + self._name)

    def _publish(self, what: str, event: Message) -> None:
        self._backing.publisher.publish(self._namespace, f"/snapshot/{what}", event)


def _merged(row: Row, backend: Info) -> Info:
    """A record with what only the backend knows: the kind, and labels of its own making."""
    key, _, parent, labels, created, updated = row
    both = {**backend.labels, **load(labels)}
    return Info(backend.kind, key, parent, both, created, updated)


def _inherited(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that are the backend's business too."""
    return {
        key: value
        for key, value in labels.items()
        if key.startswith(INHERITED_PREFIX) or key == TARGET_LABEL
    }


def adaptor(info: Info) -> Adaptor:
    """Fields for filters: name, parent, kind, labels."""
    fields = {"name": info.name, "parent": info.parent, "kind": Kind(info.kind).name.lower()}
    return field_adaptor(fields, {"labels": info.labels})
