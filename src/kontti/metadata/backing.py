"""What the stores of one metadata database share."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kontti.content.base import Store as ContentStore
from kontti.content.locks import Held, NamedLocks
from kontti.errors import InvalidArgument, NotFound
from kontti.events.base import Publisher
from kontti.metadata.base import Collector
from kontti.metadata.database import Database
from kontti.metadata.gc import Type
from kontti.metadata.kept import KeptReaders
from kontti.namespaces import Scope
from kontti.snapshots.base import Snapshotter
from kontti.values import Digest, Resource

BLOCK = 1000


class BackendNames:
    """Names for the backends, ``<namespace>/<n>/<name>``: never the same twice, crash or not.

    Numbers are taken from the database in blocks, so that a name costs no transaction.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._mutex = threading.Lock()
        self._next = self._end = 0

    def make(self, namespace: str, name: str) -> str:
        """A new name; not to be called within a transaction."""
        with self._mutex:
            if self._next == self._end:
                self._next = self._reserve()
                self._end = self._next + BLOCK
            number, self._next = self._next, self._next + 1
        return f"{namespace}/{number}/{name}"

    def _reserve(self) -> int:
        with self._database.write() as connection:
            connection.execute("INSERT OR IGNORE INTO counters VALUES ('backend', 1)")
            query = "SELECT next FROM counters WHERE name = 'backend'"
            (first,) = connection.execute(query).fetchone()
            update = "UPDATE counters SET next = next + ? WHERE name = 'backend'"
            connection.execute(update, (BLOCK,))
        return int(first)


class InFlight:
    """Snapshots in backends that have no record yet, or not under this name: not orphans."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._mutex = threading.Lock()

    @contextlib.contextmanager
    def making(self, snapshotter: str, names: Sequence[str]) -> Iterator[None]:
        """``names`` are being made during the block."""
        self._count(snapshotter, names, 1)
        try:
            yield
        finally:
            self._count(snapshotter, names, -1)

    def _count(self, snapshotter: str, names: Sequence[str], by: int) -> None:
        with self._mutex:
            for name in names:
                left = self._counts.pop((snapshotter, name), 0) + by
                if left:
                    self._counts[snapshotter, name] = left

    def names(self, snapshotter: str) -> set[str]:
        """What is being made now."""
        with self._mutex:
            return {name for where, name in self._counts if where == snapshotter}


@dataclass(frozen=True)
class Backing:
    """The database, the backends, who hears of changes, and the locks between them."""

    database: Database
    content: ContentStore
    snapshotters: Mapping[str, Snapshotter]
    publisher: Publisher
    mutated: Callable[[bool], None]
    """Told of each change, True where something may have become garbage."""
    names: BackendNames
    readers: KeptReaders
    shared: bool = True
    """Whether a blob that one namespace has is another's for the asking of its digest."""
    locks: NamedLocks = field(default_factory=NamedLocks)
    """Taken before a transaction, never within one."""
    writers: Held = field(default_factory=Held)
    """Namespace and ref of each ingest that is being written."""
    in_flight: InFlight = field(default_factory=InFlight)
    leftovers: threading.Event = field(default_factory=threading.Event)
    """A backend may hold what no record names: the next collection looks through all of it."""
    collectors: dict[Type, Collector] = field(default_factory=dict)
    """Who keeps what is collected with the records and has none."""
    unclean: set[str] = field(default_factory=set)
    """Snapshotters that removed something and have not freed it: the next collection has them."""
    unseen: set[str] = field(default_factory=set)
    """Backends whose things are not recorded yet (see metadata.unseen)."""
    silent: set[str] = field(default_factory=set)
    """Snapshotters that did not answer in time during this collection."""

    def digest_lock(self, digest: Digest) -> contextlib.AbstractContextManager[None]:
        """Held while a blob's file and its rows change together."""
        return self.locks.hold(("blob", digest))

    def snapshotter(self, name: str) -> Snapshotter:
        """A backend; raises InvalidArgument for one that is not loaded."""
        try:
            return self.snapshotters[name]
        except KeyError:
            raise InvalidArgument(f"snapshotter not loaded: {name}") from None


def now() -> int:
    """Nanoseconds since the epoch."""
    return time.time_ns()


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
        raise NotFound(f'lease "{scope.lease}"')


def drop(connection: sqlite3.Connection, scope: Scope, resource: Resource) -> None:
    """What is deleted on purpose is no lease's any more."""
    connection.execute(
        "DELETE FROM lease_resources WHERE namespace = ? AND type = ? AND id = ?",
        (scope.namespace, resource.type, resource.id),
    )


def refuse_other_paths(paths: Sequence[str], what: str) -> None:
    """Raises InvalidArgument where a field mask names anything but labels."""
    for path in paths:
        if path != "labels" and not path.startswith("labels."):
            raise InvalidArgument(f'cannot update "{path}" field on {what}')
