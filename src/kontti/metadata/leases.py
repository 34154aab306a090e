"""The Leases store."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Mapping, Sequence

from kontti.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented
from kontti.filters import Adaptor, parse_all
from kontti.metadata.backing import Backing, ensure_namespace, now
from kontti.metadata.base import Lease
from kontti.metadata.database import clean, dump, load
from kontti.namespaces import Scope
from kontti.values import EMPTY, Digest, Resource

CONTENT, IMAGES, INGESTS, SNAPSHOTS = "content", "images", "ingests", "snapshots/"


class LeaseStore:
    """metadata.base.Leases of one namespace."""

    def __init__(self, backing: Backing, scope: Scope) -> None:
        self._backing = backing
        self._database = backing.database
        self._namespace = scope.namespace

    def create(self, id: str, labels: Mapping[str, str] = EMPTY) -> Lease:
        """Raises AlreadyExists; an empty id gets a random one."""
        name = id or secrets.token_hex(16)
        stamp = now()
        with self._database.write() as connection:
            ensure_namespace(connection, self._namespace)
            done = connection.execute(
                "INSERT OR IGNORE INTO leases VALUES (?, ?, ?, ?)",
                (self._namespace, name, dump(labels), stamp),
            )
            if not done.rowcount:
                raise AlreadyExists(f'lease "{name}"')
        self._backing.mutated(False)
        return Lease(name, stamp, clean(labels))

    def delete(self, id: str) -> None:
        """Raises NotFound; what only it kept becomes garbage."""
        with self._database.write() as connection:
            self._check(connection, id)
            for table, column in (("lease_resources", "lease"), ("leases", "id")):
                connection.execute(
                    f"DELETE FROM {table} WHERE namespace = ? AND {column} = ?",
                    (self._namespace, id),
                )
        self._backing.mutated(True)

    def list(self, filters: Sequence[str] = ()) -> Sequence[Lease]:
        """Those that match, by id."""
        wanted = parse_all(filters)
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id, created_at, labels FROM leases WHERE namespace = ? ORDER BY id",
                (self._namespace,),
            )
            leases = [Lease(id, created, load(labels)) for id, created, labels in rows]
        return [lease for lease in leases if wanted.match(_adaptor(lease))]

    def add_resource(self, id: str, resource: Resource) -> None:
        """Keep ``resource``, there or to come; raises NotFound for the lease, InvalidArgument."""
        check_resource(resource)
        with self._database.write() as connection:
            self._check(connection, id)
            connection.execute(
                "INSERT OR IGNORE INTO lease_resources VALUES (?, ?, ?, ?)",
                (self._namespace, id, resource.type, resource.id),
            )

    def delete_resource(self, id: str, resource: Resource) -> None:
        """Let go of ``resource``; raises NotFound for the lease."""
        check_resource(resource)
        with self._database.write() as connection:
            self._check(connection, id)
            connection.execute(
                "DELETE FROM lease_resources "
                "WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
                (self._namespace, id, resource.type, resource.id),
            )
        self._backing.mutated(True)

    def list_resources(self, id: str) -> Sequence[Resource]:
        """What it keeps; raises NotFound."""
        with self._database.read() as connection:
            self._check(connection, id)
            rows = connection.execute(
                "SELECT id, type FROM lease_resources WHERE namespace = ? AND lease = ? "
                "ORDER BY type, id",
                (self._namespace, id),
            )
            return [Resource(id, type) for id, type in rows]

    def _check(self, connection: sqlite3.Connection, id: str) -> None:
        key = (self._namespace, id)
        found = connection.execute("SELECT 1 FROM leases WHERE namespace = ? AND id = ?", key)
        if found.fetchone() is None:
            raise NotFound(f'lease "{id}"')


def check_resource(resource: Resource) -> None:
    """Raises InvalidArgument for a malformed resource, Unimplemented for an unknown type."""
    if not resource.id:
        raise InvalidArgument("resource id must not be empty")
    if resource.type == CONTENT:
        Digest.parse(resource.id)
    elif f"{resource.type}/".startswith(SNAPSHOTS):
        snapshotter = resource.type.removeprefix(SNAPSHOTS)
        if snapshotter in ("", resource.type) or "/" in snapshotter:
            raise InvalidArgument(f"invalid snapshot resource type {resource.type}")
    elif resource.type not in (INGESTS, IMAGES):
        raise Unimplemented(f'resource type "{resource.type}" not supported yet')


def _adaptor(lease: Lease) -> Adaptor:
    def value(path: Sequence[str]) -> tuple[str, bool]:
        if list(path) == ["id"]:
            return lease.id, True
        if path[0] == "labels" and len(path) > 1:
            key = ".".join(path[1:])
            return lease.labels.get(key, ""), key in lease.labels
        return "", False

    return value
