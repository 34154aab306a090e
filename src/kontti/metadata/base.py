"""The records kontti keeps, and the stores that keep them.

Every store but ``Namespaces`` is a view of one scope (namespace and, for new things, a lease).
Acknowledged is durable: a method that returns has its transaction synced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kontti.content.base import Store as ContentStore
from kontti.namespaces import Scope
from kontti.snapshots.base import Snapshotter
from kontti.values import EMPTY, AnyValue, Descriptor, Held, Resource

EMPTY_ANY: Mapping[str, AnyValue] = {}


@dataclass(frozen=True, slots=True)
class Namespace:
    """A name space and its labels."""

    name: str
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Image:
    """A name for a descriptor."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    created_at: int = 0
    updated_at: int = 0


@dataclass(frozen=True, slots=True)
class Container:
    """What a task is made from. ``spec`` is an OCI runtime spec as JSON in an AnyValue."""

    id: str
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    image: str = ""
    runtime: str = ""
    runtime_options: AnyValue | None = None
    spec: AnyValue | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    created_at: int = 0
    updated_at: int = 0
    extensions: Mapping[str, AnyValue] = field(default_factory=lambda: EMPTY_ANY)
    sandbox: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What containers of a group share. ``sandboxer`` names the controller that runs it."""

    id: str
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    runtime: str = ""
    runtime_options: AnyValue | None = None
    spec: AnyValue | None = None
    sandboxer: str = ""
    created_at: int = 0
    updated_at: int = 0
    extensions: Mapping[str, AnyValue] = field(default_factory=lambda: EMPTY_ANY)


@dataclass(frozen=True, slots=True)
class Lease:
    """Keeps resources from collection. Expiry is the label containerd.io/gc.expire (RFC 3339)."""

    id: str
    created_at: int = 0
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)


class Namespaces(Protocol):
    """Namespaces by name."""

    def get(self, name: str) -> Namespace: ...
    def list(self) -> Sequence[Namespace]: ...
    def create(self, namespace: Namespace) -> Namespace: ...
    def update(self, namespace: Namespace, paths: Sequence[str] = ()) -> Namespace: ...
    def delete(self, name: str) -> None:
        """Raises FailedPrecondition where it still holds anything, naming what."""
        ...


class Images(Protocol):
    """Images by name."""

    def get(self, name: str) -> Image: ...
    def list(self, filters: Sequence[str] = ()) -> Sequence[Image]: ...
    def create(self, image: Image) -> Image: ...
    def update(self, image: Image, paths: Sequence[str] = ()) -> Image: ...
    def delete(self, name: str, target: Descriptor | None = None) -> None: ...


class Containers(Protocol):
    """Containers by id."""

    def get(self, id: str) -> Container: ...
    def list(self, filters: Sequence[str] = ()) -> Sequence[Container]: ...
    def create(self, container: Container) -> Container: ...
    def update(self, container: Container, paths: Sequence[str] = ()) -> Container: ...
    def delete(self, id: str) -> None: ...


class Sandboxes(Protocol):
    """Sandboxes by id."""

    def get(self, id: str) -> Sandbox: ...
    def list(self, filters: Sequence[str] = ()) -> Sequence[Sandbox]: ...
    def create(self, sandbox: Sandbox) -> Sandbox: ...
    def update(self, sandbox: Sandbox, paths: Sequence[str] = ()) -> Sandbox: ...
    def delete(self, id: str) -> None: ...


class Leases(Protocol):
    """Leases by id."""

    def create(self, id: str, labels: Mapping[str, str] = EMPTY) -> Lease: ...
    def delete(self, id: str) -> None: ...
    def list(self, filters: Sequence[str] = ()) -> Sequence[Lease]: ...
    def add_resource(self, id: str, resource: Resource) -> None: ...
    def delete_resource(self, id: str, resource: Resource) -> None: ...
    def list_resources(self, id: str) -> Sequence[Resource]: ...


@dataclass(frozen=True, slots=True)
class Collected:
    """What one collection removed, and how long it took in seconds."""

    blobs: int = 0
    snapshots: int = 0
    leases: int = 0
    images: int = 0
    seconds: float = 0.0


class Collector(Protocol):
    """Keeps what is collected together with the records that refer to it; from any thread."""

    def held(self) -> Sequence[Held]:
        """All there is; what is not finished yet is left out."""
        ...

    def collect(self, garbage: Iterable[Held]) -> None:
        """Take away what nothing refers to; a failure is left to the next collection."""
        ...


class Metadata(Protocol):
    """The database and the stores behind it."""

    @property
    def namespaces(self) -> Namespaces: ...
    @property
    def snapshotters(self) -> Mapping[str, Snapshotter]:
        """The backends by name, without namespaces."""
        ...

    def is_here(self, backend: str) -> bool:
        """Whether ``content`` or ``snapshots/<name>`` answers at once: others are to be waited for
        in a thread."""
        ...

    def images(self, scope: Scope) -> Images: ...
    def containers(self, scope: Scope) -> Containers: ...
    def sandboxes(self, scope: Scope) -> Sandboxes: ...
    def content(self, scope: Scope) -> ContentStore: ...
    def snapshots(self, scope: Scope, snapshotter: str) -> Snapshotter:
        """Raises InvalidArgument for a snapshotter that is not loaded."""
        ...

    def leases(self, scope: Scope) -> Leases: ...
    def collect(self) -> Collected:
        """Mark and sweep now; returns when what was unreferenced is gone."""
        ...

    def close(self) -> None: ...
