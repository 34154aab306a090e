"""The metadata database over its backends: metadata.base.Metadata."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from kontti.content.base import Store as ContentStore
from kontti.errors import InvalidArgument
from kontti.events.base import Publisher
from kontti.metadata.backing import BackendNames, Backing
from kontti.metadata.base import Collected, Collector
from kontti.metadata.collect import collect
from kontti.metadata.commits import Commit, noted
from kontti.metadata.containers import ContainerStore
from kontti.metadata.content import NamespacedContent
from kontti.metadata.database import Database
from kontti.metadata.gc import Type
from kontti.metadata.images import ImageStore
from kontti.metadata.kept import KeptReaders
from kontti.metadata.leases import LeaseStore
from kontti.metadata.namespaces import NamespaceStore
from kontti.metadata.sandboxes import SandboxStore
from kontti.metadata.snapshots import NamespacedSnapshotter
from kontti.metadata.unseen import find_unseen
from kontti.namespaces import Scope
from kontti.snapshots.base import Snapshotter


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """What is recorded of a snapshot: ``backend`` is its name in the snapshotter."""

    namespace: str
    key: str
    backend: str
    parent: str


class MetadataStore:
    """Opened at ``path``. ``policy`` is ``shared`` or ``isolated`` (content between namespaces).

    ``elsewhere`` are the backends that other processes are: ``content``, ``snapshots/<name>``.
    """

    def __init__(
        self,
        path: str,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        publisher: Publisher,
        *,
        policy: str = "shared",
        elsewhere: Collection[str] = (),
    ) -> None:
        """Raises InvalidArgument for another policy, and what opening the database raises."""
        if policy not in ("shared", "isolated"):
            raise InvalidArgument(f"unknown content sharing policy {policy!r}")
        self._elsewhere = frozenset(elsewhere)
        self._listeners: list[Callable[[bool], None]] = []
        database = Database(path)
        self._backing = Backing(
            database,
            content,
            dict(snapshotters),
            publisher,
            self._mutated,
            BackendNames(database),
            KeptReaders(database, content),
            shared=policy == "shared",
        )
        self._backing.unseen.update(find_unseen(self._backing))
        self._copied = database.generation
        # a crash may have left things in the backends; the first collection looks for them
        self._backing.leftovers.set()
        self._backing.unclean.update(snapshotters)

    @property
    def namespaces(self) -> NamespaceStore:
        """All namespaces."""
        return NamespaceStore(self._backing)

    @property
    def snapshotters(self) -> Mapping[str, Snapshotter]:
        """The backends by name."""
        return self._backing.snapshotters

    def is_here(self, backend: str) -> bool:
        """metadata.base.Metadata.is_here."""
        return backend not in self._elsewhere and backend not in self._backing.unseen

    @property
    def backend_content(self) -> ContentStore:
        """The blobs of all namespaces, without records."""
        return self._backing.content

    def snapshot_rows(self, snapshotter: str) -> list[SnapshotRow]:
        """What is recorded of a snapshotter's snapshots, in all namespaces."""
        with self._backing.database.read() as connection:
            rows = connection.execute(
                "SELECT namespace, key, backend, parent FROM snapshots WHERE snapshotter = ?",
                (snapshotter,),
            ).fetchall()
        return [SnapshotRow(*row) for row in rows]

    def unfinished(self, snapshotter: str) -> list[Commit]:
        """Commits of a snapshotter's snapshots that are under way, or were cut short."""
        with self._backing.database.read() as connection:
            return [commit for commit in noted(connection) if commit.snapshotter == snapshotter]

    def making(self, snapshotter: str, names: Sequence[str]) -> AbstractContextManager[None]:
        """No collection takes snapshots of these names in the backend for orphans meanwhile."""
        return self._backing.in_flight.making(snapshotter, names)

    def integrity(self) -> list[str]:
        """What is wrong with the database itself; nothing where all is well."""
        with self._backing.database.read() as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)")]
        return [] if found == ["ok"] else found

    def collect_orphans(self) -> Collected:
        """Collect, and look through the backends for what no record names."""
        self._backing.leftovers.set()
        return self.collect()

    @property
    def changed(self) -> bool:
        """Whether anything was written since this was opened, or since the last copy."""
        return self._backing.database.generation != self._copied

    def back_up(self) -> None:
        """Keep a copy of the database beside it, whole or not at all."""
        self._copied = self._backing.database.generation
        self._backing.database.back_up()

    def images(self, scope: Scope) -> ImageStore:
        """Images of the scope's namespace."""
        return ImageStore(self._backing, scope)

    def containers(self, scope: Scope) -> ContainerStore:
        """Containers of the scope's namespace."""
        return ContainerStore(self._backing, scope)

    def sandboxes(self, scope: Scope) -> SandboxStore:
        """Sandboxes of the scope's namespace."""
        return SandboxStore(self._backing, scope)

    def content(self, scope: Scope) -> NamespacedContent:
        """Content as the scope sees it."""
        return NamespacedContent(self._backing, scope)

    def snapshots(self, scope: Scope, snapshotter: str) -> NamespacedSnapshotter:
        """A snapshotter as the scope sees it; raises InvalidArgument for an unknown one."""
        return NamespacedSnapshotter(self._backing, scope, snapshotter)

    def leases(self, scope: Scope) -> LeaseStore:
        """Leases of the scope's namespace."""
        return LeaseStore(self._backing, scope)

    def collect(self) -> Collected:
        """Mark and sweep now."""
        return collect(self._backing)

    def collect_with(self, type: Type, collector: Collector) -> None:
        """Have ``collector`` collect what it keeps with every collection from now on."""
        self._backing.collectors[type] = collector

    def on_mutation(self, listener: Callable[[bool], None]) -> None:
        """Have ``listener`` told of each change, with whether it may have made garbage."""
        self._listeners.append(listener)

    def _mutated(self, garbage: bool) -> None:
        for listener in self._listeners:
            listener(garbage)

    def close(self) -> None:
        """Close the database; the backends are the caller's."""
        self._backing.readers.drop()
        self._backing.database.close()
