"""A snapshotter as one namespace sees it: its own names, labels and leases over a backend."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from kontti.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from kontti.filters import Adaptor, parse_all
from kontti.metadata.backing import (
    Backing,
    check_lease,
    drop,
    ensure_namespace,
    hold,
    next_number,
    now,
)
from kontti.metadata.database import dump, load
from kontti.metadata.leases import SNAPSHOTS
from kontti.namespaces import Scope
from kontti.snapshots.base import INHERITED_PREFIX, TARGET_LABEL, Info, Kind, Usage
from kontti.values import EMPTY, Mount, Resource, check_labels, merge_labels
from kontti.wire.messages.events.snapshot import (
    SnapshotCommit,
    SnapshotPrepare,
    SnapshotRemove,
)
from kontti.wire.protobuf import Message

_COLUMNS = "key, backend, parent, labels, created_at, updated_at"
_WHERE = "namespace = ? AND snapshotter = ? AND key = ?"
Row = tuple[str, str, str, str, int, int]


class NamespacedSnapshotter:
    """snapshots.base.Snapshotter of one scope."""

    def __init__(self, backing: Backing, scope: Scope, name: str) -> None:
        self._backing = backing
        self._database = backing.database
        self._backend = backing.snapshotter(name)
        self._scope = scope
        self._namespace = scope.namespace
        self._name = name

    def stat(self, key: str) -> Info:
        """Raises NotFound."""
        with self._database.read() as connection:
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
        key, backend, parent, labels, created, updated = row
        kind = self._backend.stat(backend).kind
        return Info(kind, key, parent, load(labels), created, updated)

    def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels; raises NotFound, InvalidArgument for other fields."""
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgument(f"cannot update {path!r} field on snapshot {info.name!r}")
        check_labels(info.labels)
        with self._database.write() as connection:
            row = self._row(connection, info.name)
            merged = merge_labels(load(row[3]), info.labels, paths)
            stamp = now()
            connection.execute(
                f"UPDATE snapshots SET labels = ?, updated_at = ? WHERE {_WHERE}",
                (dump(merged), stamp, self._namespace, self._name, info.name),
            )
        inherited = _inherited(merged)
        with contextlib.suppress(NotFound):
            old = self._backend.stat(row[1])
            if dict(old.labels) != inherited:
                self._backend.update(replace(old, labels=inherited), ["labels"])
        self._backing.mutated(True)
        return replace(self._info(row), labels=merged, updated_at=stamp)

    def usage(self, key: str) -> Usage:
        """Raises NotFound."""
        return self._backend.usage(self._backend_key(key))

    def mounts(self, key: str) -> list[Mount]:
        """Raises NotFound."""
        return self._backend.mounts(self._backend_key(key))

    def _backend_key(self, key: str) -> str:
        with self._database.read() as connection:
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
        backend_key, backend_parent = self._plan(key, parent, labels.get(TARGET_LABEL, ""))
        create = self._backend.view if readonly else self._backend.prepare
        mounts = create(backend_key, backend_parent, _inherited(labels))
        try:
            with self._database.write() as connection:
                self._parent_row(connection, parent)
                self._insert(connection, key, backend_key, parent, labels)
        except BaseException:
            self._remove_backend(backend_key)
            raise
        if not readonly:
            event = SnapshotPrepare(key=key, parent=parent, snapshotter=self._name)
            self._publish("prepare", event)
        self._backing.mutated(False)
        return mounts

    def _plan(self, key: str, parent: str, target: str) -> tuple[str, str]:
        """Names in the backend for a snapshot and its parent; raises what forbids it."""
        with self._database.write() as connection:
            check_lease(connection, self._scope)
            self._check_free(connection, key)
            if target and self._exists(connection, target):
                hold(connection, self._scope, self._resource(target))
                raise AlreadyExists(f"target snapshot {target!r}")
            backend_parent = self._parent_row(connection, parent)
            number = next_number(connection, "snapshot")
        return f"{self._namespace}/{number}/{key}", backend_parent

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
        with self._database.write() as connection:
            check_lease(connection, self._scope)
            self._check_free(connection, name)
            row = self._row(connection, key)
            backend_parent = self._parent_row(connection, parent) if parent else None
            number = next_number(connection, "snapshot")
        backend_name = f"{self._namespace}/{number}/{name}"
        self._backend.commit(backend_name, row[1], _inherited(labels), backend_parent)
        self._record_commit(name, key, backend_name, labels, row[2] if parent is None else parent)
        event = SnapshotCommit(key=key, name=name, snapshotter=self._name)
        self._publish("commit", event)
        self._backing.mutated(False)

    def _record_commit(
        self, name: str, key: str, backend: str, labels: Mapping[str, str], parent: str
    ) -> None:
        try:
            with self._database.write() as connection:
                self._insert(connection, name, backend, parent, labels)
                self._delete(connection, key)
        except AlreadyExists:
            # another commit of the same name won while the backend was at it
            with self._database.write() as connection:
                self._delete(connection, key)
            self._remove_backend(backend)
            raise

    def _delete(self, connection: sqlite3.Connection, key: str) -> None:
        connection.execute(
            f"DELETE FROM snapshots WHERE {_WHERE}",
            (self._namespace, self._name, key),
        )
        drop(connection, self._scope, self._resource(key))

    def remove(self, key: str) -> None:
        """Raises NotFound, and FailedPrecondition where it has children."""
        with self._database.write() as connection:
            row = self._row(connection, key)
            child = connection.execute(
                "SELECT 1 FROM snapshots WHERE namespace = ? AND snapshotter = ? AND parent = ? "
                "LIMIT 1",
                (self._namespace, self._name, key),
            ).fetchone()
            if child is not None:
                raise FailedPrecondition(f'cannot remove snapshot "{key}" with child')
            self._delete(connection, key)
        self._remove_backend(row[1])
        self._publish("remove", SnapshotRemove(key=key, snapshotter=self._name))
        self._backing.mutated(True)

    def _remove_backend(self, backend: str) -> None:
        # what is left behind in the backend is an orphan, and the next start's collection takes it
        with contextlib.suppress(NotFound):
            self._backend.remove(backend)

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Those that match, by key."""
        wanted = parse_all(filters)
        with self._database.read() as connection:
            rows: list[Row] = connection.execute(
                f"SELECT {_COLUMNS} FROM snapshots WHERE namespace = ? AND snapshotter = ? "
                "ORDER BY key",
                (self._namespace, self._name),
            ).fetchall()
        kinds = {info.name: info.kind for info in self._backend.walk()}
        for key, backend, parent, labels, created, updated in rows:
            if backend not in kinds:
                continue  # removed meanwhile
            info = Info(kinds[backend], key, parent, load(labels), created, updated)
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


def _inherited(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that are the backend's business too."""
    return {
        key: value
        for key, value in labels.items()
        if key.startswith(INHERITED_PREFIX) or key == TARGET_LABEL
    }


def adaptor(info: Info) -> Adaptor:
    """Fields for filters: name, parent, kind, labels."""

    def value(path: Sequence[str]) -> tuple[str, bool]:
        fields = {"name": info.name, "parent": info.parent, "kind": Kind(info.kind).name.lower()}
        if len(path) == 1 and path[0] in fields:
            return fields[path[0]], bool(fields[path[0]])
        if path[0] == "labels" and len(path) > 1:
            key = ".".join(path[1:])
            return info.labels.get(key, ""), key in info.labels
        return "", False

    return value
