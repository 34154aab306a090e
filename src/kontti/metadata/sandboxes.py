"""The Sandboxes store."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kontti.errors import AlreadyExists, InvalidArgument, NotFound
from kontti.filters import field_adaptor, parse_all
from kontti.metadata.backing import Backing, ensure_namespace, now
from kontti.metadata.base import Sandbox
from kontti.metadata.database import clean, dump, dump_any, dump_anys, load, load_any, load_anys
from kontti.metadata.gc import lets_go
from kontti.namespaces import Scope
from kontti.values import check_identifier, check_labels, merge_labels

_COLUMNS = (
    "id, runtime, runtime_options, spec, labels, extensions, sandboxer, created_at, updated_at"
)
_ALL = ("labels", "extensions", "spec", "runtime")


class SandboxStore:
    """metadata.base.Sandboxes of one namespace."""

    def __init__(self, backing: Backing, scope: Scope) -> None:
        self._backing = backing
        self._database = backing.database
        self._namespace = scope.namespace

    def get(self, id: str) -> Sandbox:
        """Raises NotFound."""
        with self._database.read() as connection:
            return self._get(connection, id)

    def _get(self, connection: sqlite3.Connection, id: str) -> Sandbox:
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM sandboxes WHERE namespace = ? AND id = ?",
            (self._namespace, id),
        ).fetchone()
        if row is None:
            raise NotFound(f'sandbox "{id}" in namespace "{self._namespace}"')
        return _from_row(row)

    def list(self, filters: Sequence[str] = ()) -> Sequence[Sandbox]:
        """Those that match by ``id`` and ``labels``, by id."""
        wanted = parse_all(filters)
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM sandboxes WHERE namespace = ? ORDER BY id",
                (self._namespace,),
            )
            found = [_from_row(row) for row in rows]
        return [s for s in found if wanted.match(field_adaptor({"id": s.id}, {"labels": s.labels}))]

    def create(self, sandbox: Sandbox) -> Sandbox:
        """Raises AlreadyExists, InvalidArgument."""
        try:
            check(sandbox)
        except InvalidArgument as error:
            raise InvalidArgument(f"failed to validate sandbox: {error.message}") from None
        stamp = now()
        made = replace(sandbox, labels=clean(sandbox.labels), created_at=stamp, updated_at=stamp)
        with self._database.write() as connection:
            ensure_namespace(connection, self._namespace)
            done = connection.execute(
                f"INSERT OR IGNORE INTO sandboxes (namespace, {_COLUMNS}) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (self._namespace, *_to_row(made)),
            )
            if not done.rowcount:
                raise AlreadyExists(f'sandbox "{sandbox.id}"')
        self._backing.mutated(False)
        return made

    def update(self, sandbox: Sandbox, paths: Sequence[str] = ()) -> Sandbox:
        """Change labels, extensions, spec, runtime; InvalidArgument for others."""
        with self._database.write() as connection:
            old = self._get(connection, sandbox.id)
            if not paths and sandbox.runtime != old.runtime:
                raise InvalidArgument("sandbox.Runtime.Name field is immutable")
            updated = replace(old, updated_at=now())
            for path in paths or _ALL:
                updated = _apply(updated, sandbox, path)
            check(updated)
            assignments = ", ".join(f"{name} = ?" for name in _COLUMNS.split(", "))
            connection.execute(
                f"UPDATE sandboxes SET {assignments} WHERE namespace = ? AND id = ?",
                (*_to_row(updated), self._namespace, sandbox.id),
            )
        self._backing.mutated(lets_go(old.labels, updated.labels))
        return updated

    def delete(self, id: str) -> None:
        """Raises NotFound; what only its labels kept becomes garbage."""
        with self._database.write() as connection:
            old = self._get(connection, id)
            connection.execute(
                "DELETE FROM sandboxes WHERE namespace = ? AND id = ?", (self._namespace, id)
            )
        self._backing.mutated(lets_go(old.labels, {}))


def check(sandbox: Sandbox) -> None:
    """Raises InvalidArgument for what containerd refuses."""
    check_identifier(sandbox.id, "invalid sandbox ID")
    check_labels(sandbox.labels)


def _apply(updated: Sandbox, new: Sandbox, path: str) -> Sandbox:
    if path == "labels" or path.startswith("labels."):
        return replace(updated, labels=merge_labels(updated.labels, new.labels, [path]))
    if path.startswith("extensions."):
        key = path.removeprefix("extensions.")
        extensions = {k: v for k, v in updated.extensions.items() if k != key}
        if key in new.extensions:
            extensions[key] = new.extensions[key]
        return replace(updated, extensions=extensions)
    if path not in _SIMPLE:
        raise InvalidArgument(f'cannot update "{path}" field on sandbox "{new.id}"')
    return _SIMPLE[path](updated, new)


_SIMPLE: Mapping[str, Callable[[Sandbox, Sandbox], Sandbox]] = {
    "extensions": lambda old, new: replace(old, extensions=dict(new.extensions)),
    "runtime": lambda old, new: replace(
        old, runtime=new.runtime, runtime_options=new.runtime_options
    ),
    "spec": lambda old, new: replace(old, spec=new.spec),
}


def _to_row(sandbox: Sandbox) -> tuple[object, ...]:
    return (
        sandbox.id,
        sandbox.runtime,
        dump_any(sandbox.runtime_options),
        dump_any(sandbox.spec),
        dump(sandbox.labels),
        dump_anys(sandbox.extensions),
        sandbox.sandboxer,
        sandbox.created_at,
        sandbox.updated_at,
    )


def _from_row(row: tuple[Any, ...]) -> Sandbox:
    (id, runtime, options, spec, labels, extensions, sandboxer, created, updated) = row
    return Sandbox(
        id=id,
        labels=load(labels),
        runtime=runtime,
        runtime_options=load_any(options),
        spec=load_any(spec),
        sandboxer=sandboxer,
        created_at=created,
        updated_at=updated,
        extensions=load_anys(extensions),
    )
