"""What the stores of one metadata database share."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kontti.content.base import Store as ContentStore
from kontti.errors import InvalidArgument, NotFound
from kontti.events.base import Publisher
from kontti.metadata.database import Database
from kontti.namespaces import Scope
from kontti.snapshots.base import Snapshotter
from kontti.values import Digest, Resource

STRIPES = 64


@dataclass(frozen=True)
class Backing:
    """The database, the backends, who hears of changes, and the locks between them."""

    database: Database
    content: ContentStore
    snapshotters: Mapping[str, Snapshotter]
    publisher: Publisher
    mutated: Callable[[bool], None]
    """Told of each change, True where something may have become garbage."""
    shared: bool = True
    """Whether a blob that one namespace has is another's for the asking of its digest."""
    stripes: tuple[threading.Lock, ...] = field(
        default_factory=lambda: tuple(threading.Lock() for _ in range(STRIPES))
    )

    def digest_lock(self, digest: Digest) -> threading.Lock:
        """Held while a blob's file and its rows change together."""
        return self.stripes[int(digest.encoded[:8], 16) % STRIPES]

    def snapshotter(self, name: str) -> Snapshotter:
        """A backend; raises InvalidArgument for one that is not loaded."""
        try:
            return self.snapshotters[name]
        except KeyError:
            raise InvalidArgument(f"snapshotter not loaded: {name}") from None


def now() -> int:
    """Nanoseconds since the epoch."""
    return time.time_ns()


def next_number(connection: sqlite3.Connection, name: str) -> int:
    """The next of the numbers that make names in a backend unique."""
    connection.execute(
        "INSERT INTO counters (name, next) VALUES (?, 1) "
        "ON CONFLICT (name) DO UPDATE SET next = next + 1",
        (name,),
    )
    row = connection.execute("SELECT next FROM counters WHERE name = ?", (name,)).fetchone()
    return int(row[0])


def ensure_namespace(connection: sqlite3.Connection, namespace: str) -> None:
    """A namespace comes to be when something is first put into it."""
    connection.execute("INSERT OR IGNORE INTO namespaces VALUES (?, '{}')", (namespace,))


def hold(connection: sqlite3.Connection, scope: Scope, resource: Resource) -> None:
    """Have the scope's lease, if any, keep ``resource``; raises NotFound for an unknown lease."""
    if not scope.lease:
        return
    check_lease(connection, scope)
    connection.execute(
        "INSERT OR IGNORE INTO lease_resources VALUES (?, ?, ?, ?)",
        (scope.namespace, scope.lease, resource.type, resource.id),
    )


def check_lease(connection: sqlite3.Connection, scope: Scope) -> None:
    """Raises NotFound where the scope names a lease that does not exist."""
    if not scope.lease:
        return
    key = (scope.namespace, scope.lease)
    found = connection.execute("SELECT 1 FROM leases WHERE namespace = ? AND id = ?", key)
    if found.fetchone() is None:
        raise NotFound(f"lease {scope.lease!r}")


def drop(connection: sqlite3.Connection, scope: Scope, resource: Resource) -> None:
    """What is deleted on purpose is no lease's any more."""
    connection.execute(
        "DELETE FROM lease_resources WHERE namespace = ? AND type = ? AND id = ?",
        (scope.namespace, resource.type, resource.id),
    )
