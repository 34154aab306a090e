"""What a transfer works on, and what a caller can ask of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kontti.content.base import Store as ContentStore
from kontti.metadata.base import Image, Images, Leases
from kontti.namespaces import Scope
from kontti.snapshots.base import Snapshotter
from kontti.values import EMPTY, Descriptor, Platform

DEFAULT_SNAPSHOTTER = "overlayfs"
DAY = 24 * 3600


class Stores(Protocol):
    """The stores of a daemon or of an embedded engine; a client over the wire has them too."""

    def images(self, scope: Scope) -> Images: ...
    def content(self, scope: Scope) -> ContentStore: ...
    def snapshots(self, scope: Scope, snapshotter: str) -> Snapshotter: ...
    def leases(self, scope: Scope) -> Leases: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Which manifests of an index are meant: all, those of these platforms, or this host's.

    ``limit`` > 0 takes so many of each index, the best ones.
    """

    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Unpacking:
    """Where layers are unpacked to. ``labels`` are put on the snapshots.

    ``platform``: manifests that say they are of one that it cannot run stay packed.
    ``lazy_name``: the name that the image has at its registry, for a snapshotter that may get
    layers from there by itself. It is asked before they are fetched. ``differ`` names what applies
    the layers, "" for who is asked usually. ``config_type``: only what has a config of this type
    is unpacked, "" for images; ``layer_types`` are layers beside the usual.
    """

    snapshotter: str = DEFAULT_SNAPSHOTTER
    sync_fs: bool = False
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    platform: Platform | None = None
    lazy_name: str = ""
    differ: str = ""
    config_type: str = ""
    layer_types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PullOptions:
    """``unpack`` None leaves the layers packed; ``labels`` are the image record's.

    ``skip_metadata`` leaves out manifests and configs of platforms that were not asked for.
    ``metadata_only`` fetches no layer at all.
    A blob larger than ``concurrent_layer_fetch_buffer`` is fetched by several requests at once.
    ``unpack_also``: further snapshotters. ``images`` makes the records, where it is not one of the
    name that is pulled.
    """

    select: Selection = field(default_factory=Selection)
    unpack: Unpacking | None = field(default_factory=Unpacking)
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    skip_metadata: bool = False
    metadata_only: bool = False
    max_concurrent_downloads: int = 3
    concurrent_layer_fetch_buffer: int = 0
    lease_seconds: int = DAY
    unpack_also: tuple[Unpacking, ...] = ()
    images: Callable[[Descriptor], Sequence[Image]] | None = None

    @property
    def unpackings(self) -> tuple[Unpacking, ...]:
        """All that the image is unpacked to."""
        return () if self.unpack is None else (self.unpack, *self.unpack_also)

    @property
    def is_lazy(self) -> bool:
        """Whether layers may be left where they are."""
        return bool(self.unpackings) and all(unpack.lazy_name for unpack in self.unpackings)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A manifest whose layers are a snapshot named ``chain_id``; "" for one without layers."""

    manifest: Descriptor
    chain_id: str


@dataclass(frozen=True, slots=True)
class Pulled:
    """The image record, and what was unpacked of it."""

    image: Image
    unpacked: tuple[Unpacked, ...] = ()
