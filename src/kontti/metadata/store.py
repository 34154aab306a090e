"""The metadata database over its backends: metadata.base.Metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kontti.content.base import Store as ContentStore
from kontti.errors import InvalidArgument
from kontti.events.base import Publisher
from kontti.metadata.backing import BackendNames, Backing
from kontti.metadata.base import Collected
from kontti.metadata.collect import collect
from kontti.metadata.containers import ContainerStore
from kontti.metadata.content import NamespacedContent
from kontti.metadata.database import Database
from kontti.metadata.images import ImageStore
from kontti.metadata.leases import LeaseStore
from kontti.metadata.namespaces import NamespaceStore
from kontti.metadata.snapshots import NamespacedSnapshotter
from kontti.namespaces import Scope
from kontti.snapshots.base import Snapshotter


class MetadataStore:
    """Opened at ``path``. ``policy`` is ``shared`` or ``isolated`` (content between namespaces)."""

    def __init__(
        self,
        path: str,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        publisher: Publisher,
        *,
        policy: str = "shared",
    ) -> None:
        """Raises InvalidArgument for another policy, and what opening the database raises."""
        if policy not in ("shared", "isolated"):
            raise InvalidArgument(f"unknown content sharing policy {policy!r}")
        self._listeners: list[Callable[[bool], None]] = []
        database = Database(path)
        self._backing = Backing(
            database,
            content,
            dict(snapshotters),
            publisher,
            self._mutated,
            BackendNames(database),
            shared=policy == "shared",
        )
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

    def images(self, scope: Scope) -> ImageStore:
        """Images of the scope's namespace."""
        return ImageStore(self._backing, scope)

    def containers(self, scope: Scope) -> ContainerStore:
        """Containers of the scope's namespace."""
        return ContainerStore(self._backing, scope)

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

    def on_mutation(self, listener: Callable[[bool], None]) -> None:
        """Have ``listener`` told of each change, with whether it may have made garbage."""
        self._listeners.append(listener)

    def _mutated(self, garbage: bool) -> None:
        for listener in self._listeners:
            listener(garbage)

    def close(self) -> None:
        """Close the database; the backends are the caller's."""
        self._backing.database.close()
