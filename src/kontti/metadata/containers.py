"""The Containers store."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kontti.errors import AlreadyExists, InvalidArgument, NotFound
from kontti.filters import Adaptor, parse_all
from kontti.metadata.backing import Backing, ensure_namespace, now
from kontti.metadata.base import Container
from kontti.metadata.database import clean, dump, dump_any, dump_anys, load, load_any, load_anys
from kontti.metadata.gc import lets_go
from kontti.namespaces import Scope
from kontti.values import AnyValue, check_identifier, check_labels, merge_labels, quoted
from kontti.wire.messages.events.container import (
    ContainerCreate,
    ContainerCreateRuntime,
    ContainerDelete,
    ContainerUpdate,
)
from kontti.wire.messages.google import Any as ProtoAny

_COLUMNS = (
    "id, image, runtime, runtime_options, spec, spec_value, snapshotter, snapshot_key, labels, "
    "extensions, sandbox, created_at, updated_at"
)


class ContainerStore:
    """metadata.base.Containers of one namespace."""

    def __init__(self, backing: Backing, scope: Scope) -> None:
        self._backing = backing
        self._database = backing.database
        self._namespace = scope.namespace

    def get(self, id: str) -> Container:
        """Raises NotFound."""
        with self._database.read() as connection:
            return self._get(connection, id)

    def _get(self, connection: sqlite3.Connection, id: str) -> Container:
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? AND id = ?",
            (self._namespace, id),
        ).fetchone()
        if row is None:
            raise self._missing(id)
        return _from_row(row)

    def _missing(self, id: str) -> NotFound:
        return NotFound(f'container {quoted(id)} in namespace "{self._namespace}"')

    def list(self, filters: Sequence[str] = ()) -> Sequence[Container]:
        """Those that match, by id."""
        wanted = parse_all(filters)
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM containers WHERE namespace = ? ORDER BY id",
                (self._namespace,),
            )
            containers = [_from_row(row) for row in rows]
        return [c for c in containers if wanted.match(adaptor(c))]

    def create(self, container: Container) -> Container:
        """Raises AlreadyExists, InvalidArgument."""
        try:
            check(container)
        except InvalidArgument as error:
            raise InvalidArgument(f"create container failed validation: {error.message}") from None
        stamp = now()
        made = replace(
            container, labels=clean(container.labels), created_at=stamp, updated_at=stamp
        )
        with self._database.write() as connection:
            ensure_namespace(connection, self._namespace)
            done = connection.execute(
                f"INSERT OR IGNORE INTO containers (namespace, {_COLUMNS}) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (self._namespace, *_to_row(made)),
            )
            if not done.rowcount:
                raise AlreadyExists(f'container "{container.id}"')
        options = container.runtime_options
        runtime = ContainerCreateRuntime(
            name=container.runtime,
            options=ProtoAny(type_url=options.type_url, value=options.value) if options else None,
        )
        event = ContainerCreate(id=container.id, image=container.image, runtime=runtime)
        self._backing.publisher.publish(self._namespace, "/containers/create", event)
        self._backing.mutated(False)
        return made

    def update(self, container: Container, paths: Sequence[str] = ()) -> Container:
        """Change labels, spec, extensions, image, snapshot key; InvalidArgument for others."""
        if not container.id:
            raise InvalidArgument("Container.ID required")
        with self._database.write() as connection:
            old = self._get(connection, container.id)
            updated = replace(_masked(old, container, paths), updated_at=now())
            check(updated)
            row = _to_row(updated)
            names = [c.strip() for c in _COLUMNS.split(",")]
            assignments = ", ".join(f"{name} = ?" for name in names)
            connection.execute(
                f"UPDATE containers SET {assignments} WHERE namespace = ? AND id = ?",
                (*row, self._namespace, container.id),
            )
        event = ContainerUpdate(
            id=container.id,
            image=updated.image,
            labels=updated.labels,
            snapshot_key=updated.snapshot_key,
        )
        self._backing.publisher.publish(self._namespace, "/containers/update", event)
        moved = updated.snapshot_key != old.snapshot_key
        self._backing.mutated(moved or lets_go(old.labels, updated.labels))
        return updated

    def delete(self, id: str) -> None:
        """Raises NotFound."""
        with self._database.write() as connection:
            done = connection.execute(
                "DELETE FROM containers WHERE namespace = ? AND id = ?", (self._namespace, id)
            )
            if not done.rowcount:
                raise self._missing(id)
        event = ContainerDelete(id=id)
        self._backing.publisher.publish(self._namespace, "/containers/delete", event)
        self._backing.mutated(True)


def check(container: Container) -> None:
    """Raises InvalidArgument for what containerd refuses: a bad id, no runtime, half a snapshot."""
    check_identifier(container.id, "container.ID")
    check_labels(container.labels)
    for key in container.extensions:
        if not key:
            raise InvalidArgument("container.Extension keys must not be zero-length")
    if not container.runtime:
        raise InvalidArgument("container.Runtime.Name must be set")
    if container.spec is None:
        raise InvalidArgument("container.Spec must be set")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument("container.Snapshotter must be set if container.SnapshotKey is set")


def _masked(old: Container, new: Container, paths: Sequence[str]) -> Container:
    if not paths:
        paths = ("labels", "spec", "extensions", "image", "snapshotkey")
        if new.snapshotter != old.snapshotter:
            raise InvalidArgument("container.Snapshotter field is immutable")
        if new.runtime != old.runtime:
            raise InvalidArgument("container.Runtime.Name field is immutable")
    updated = old
    for path in paths:
        updated = _apply(updated, new, path)
    return updated


def _apply(updated: Container, new: Container, path: str) -> Container:
    if path == "labels" or path.startswith("labels."):
        return replace(updated, labels=merge_labels(updated.labels, new.labels, [path]))
    if path.startswith("extensions."):
        key = path.removeprefix("extensions.")
        extensions = dict(updated.extensions)
        if key in new.extensions:
            extensions[key] = new.extensions[key]
        else:
            extensions.pop(key, None)
        return replace(updated, extensions=extensions)
    simple = {
        "spec": lambda: replace(updated, spec=new.spec),
        "extensions": lambda: replace(updated, extensions=dict(new.extensions)),
        "image": lambda: replace(updated, image=new.image),
        "snapshotkey": lambda: replace(updated, snapshot_key=new.snapshot_key),
    }
    if path not in simple:
        raise InvalidArgument(f'cannot update "{path}" field on "{new.id}"')
    return simple[path]()


def adaptor(container: Container) -> Adaptor:
    """Fields for filters: id, image, runtime.name, snapshotter, labels."""

    def value(path: Sequence[str]) -> tuple[str, bool]:
        fields = {
            ("id",): container.id,
            ("image",): container.image,
            ("runtime", "name"): container.runtime,
            ("snapshotter",): container.snapshotter,
            ("snapshotkey",): container.snapshot_key,
        }
        if tuple(path) in fields:
            found = fields[tuple(path)]
            return found, bool(found)
        if path[0] == "labels" and len(path) > 1:
            key = ".".join(path[1:])
            return container.labels.get(key, ""), key in container.labels
        return "", False

    return value


def _to_row(container: Container) -> tuple[object, ...]:
    spec = container.spec
    return (
        container.id,
        container.image,
        container.runtime,
        dump_any(container.runtime_options),
        spec.type_url if spec else None,
        spec.value if spec else None,
        container.snapshotter,
        container.snapshot_key,
        dump(container.labels),
        dump_anys(container.extensions),
        container.sandbox,
        container.created_at,
        container.updated_at,
    )


def _from_row(row: tuple[Any, ...]) -> Container:
    (id, image, runtime, options, spec, spec_value, *rest) = row
    (snapshotter, snapshot_key, labels, extensions, sandbox, created, updated) = rest
    return Container(
        id=id,
        labels=load(labels),
        image=image,
        runtime=runtime,
        runtime_options=load_any(options),
        spec=AnyValue(spec, spec_value) if spec is not None else None,
        snapshotter=snapshotter,
        snapshot_key=snapshot_key,
        created_at=created,
        updated_at=updated,
        extensions=load_anys(extensions),
        sandbox=sandbox,
    )
