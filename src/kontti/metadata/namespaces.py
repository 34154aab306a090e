"""The Namespaces store."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from kontti.errors import AlreadyExists, FailedPrecondition, NotFound
from kontti.metadata.backing import Backing, ensure_namespace, refuse_other_paths
from kontti.metadata.base import Namespace
from kontti.metadata.database import clean, dump, load
from kontti.values import check_identifier, merge_labels, quoted
from kontti.wire.messages.events.namespace import (
    NamespaceCreate,
    NamespaceDelete,
    NamespaceUpdate,
)

_CONTENTS = ("images", "blobs", "containers", "sandboxes")


class NamespaceStore:
    """metadata.base.Namespaces."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing
        self._database = backing.database

    def get(self, name: str) -> Namespace:
        """One that nobody used yet has no labels: clients ask before they use it."""
        return self._find(name) or Namespace(name)

    def _find(self, name: str) -> Namespace | None:
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT labels FROM namespaces WHERE name = ?", (name,)
            ).fetchone()
        return Namespace(name, load(row[0])) if row else None

    def list(self) -> Sequence[Namespace]:
        """All, by name."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT name, labels FROM namespaces ORDER BY name")
            return [Namespace(name, load(labels)) for name, labels in rows]

    def create(self, namespace: Namespace) -> Namespace:
        """Raises AlreadyExists, InvalidArgument."""
        check_identifier(namespace.name)
        with self._database.write() as connection:
            made = connection.execute(
                "INSERT OR IGNORE INTO namespaces VALUES (?, ?)",
                (namespace.name, dump(namespace.labels)),
            )
            if not made.rowcount:
                raise AlreadyExists(f'namespace "{namespace.name}"')
        event = NamespaceCreate(name=namespace.name, labels=namespace.labels)
        self._backing.publisher.publish(namespace.name, "/namespaces/create", event)
        return Namespace(namespace.name, clean(namespace.labels))

    def update(self, namespace: Namespace, paths: Sequence[str] = ()) -> Namespace:
        """Only labels change. A namespace that nobody used yet comes to be, as in containerd."""
        check_identifier(namespace.name)
        refuse_other_paths(paths, f'namespace "{namespace.name}"')
        with self._database.write() as connection:
            ensure_namespace(connection, namespace.name)
            old = self.get(namespace.name)
            merged = merge_labels(old.labels, namespace.labels, paths)
            connection.execute(
                "UPDATE namespaces SET labels = ? WHERE name = ?", (dump(merged), namespace.name)
            )
        event = NamespaceUpdate(name=namespace.name, labels=merged)
        self._backing.publisher.publish(namespace.name, "/namespaces/update", event)
        return Namespace(namespace.name, merged)

    def delete(self, name: str) -> None:
        """Raises NotFound, and FailedPrecondition where it still holds more than leases."""
        with self._database.write() as connection:
            if self._find(name) is None:
                raise NotFound(f"namespace {quoted(name)}")
            held = _held(connection, name)
            if held:
                raise FailedPrecondition(
                    f'namespace "{name}" must be empty, but it still has {", ".join(held)}'
                )
            for table in ("lease_resources", "leases", "ingests"):
                connection.execute(f"DELETE FROM {table} WHERE namespace = ?", (name,))
            connection.execute("DELETE FROM namespaces WHERE name = ?", (name,))
        self._backing.publisher.publish(name, "/namespaces/delete", NamespaceDelete(name=name))
        # its ingests have no record any more
        self._backing.leftovers.set()
        self._backing.mutated(True)


def _held(connection: sqlite3.Connection, name: str) -> list[str]:
    held = [
        table
        for table in _CONTENTS
        if connection.execute(
            f"SELECT 1 FROM {table} WHERE namespace = ? LIMIT 1", (name,)
        ).fetchone()
    ]
    query = "SELECT DISTINCT snapshotter FROM snapshots WHERE namespace = ? ORDER BY 1"
    for (snapshotter,) in connection.execute(query, (name,)):
        held.append(f'snapshots on "{snapshotter}" snapshotter')
    return held
