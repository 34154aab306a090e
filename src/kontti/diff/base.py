"""Layers to trees and trees to layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from kontti.values import EMPTY, Descriptor, Mount


@dataclass(frozen=True, slots=True)
class DiffOptions:
    """``media_type`` of the layer to make, the ingest ref to use, labels to put on the blob."""

    media_type: str = "application/vnd.oci.image.layer.v1.tar+gzip"
    reference: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    source_date_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a layer may become; 0 is no limit.

    ``size``: bytes uncompressed; ``ratio``: how many times what it is compressed, where that is
    more than ``RATIO_FROM``; ``entries``: files, directories and all else.
    """

    size: int = 256 << 30
    ratio: int = 1500
    entries: int = 10_000_000

    def bytes_of(self, compressed: int) -> int:
        """The most bytes that a blob of ``compressed`` may become."""
        by_ratio = max(RATIO_FROM, compressed * self.ratio) if self.ratio else self.size
        return min(by_ratio, self.size) if self.size else by_ratio


RATIO_FROM = 1 << 30


class Applier(Protocol):
    """Puts a layer on a tree."""

    def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], sync_fs: bool = False
    ) -> Descriptor:
        """Extract the blob ``layer`` over ``mounts``; gives the uncompressed tar's descriptor.

        Raises Unimplemented for an unknown media type, InvalidArgument for a malformed or hostile
        layer, NotFound without the blob, FailedPrecondition when the bytes are not the digest's.
        """
        ...


class Incoming(Protocol):
    """A blob whose file is still being written."""

    @property
    def path(self) -> str:
        """The file, for as long as this is held."""
        ...

    def is_broken(self) -> bool:
        """Whether it will never be whole, or nobody wants it."""
        ...

    def arrivals(self) -> Iterator[bytes]:
        """One byte whenever there is more of it, until all is there; raises when none will come."""
        ...


@runtime_checkable
class IncomingApplier(Protocol):
    """An applier that need not wait for the whole blob."""

    def apply_incoming(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        incoming: Incoming,
        sync_fs: bool = False,
    ) -> Descriptor:
        """Applier.apply of what comes in. Whether the blob is the digest's its writer finds out."""
        ...


Root = tuple[int, ...]
"""How a tree's root looks: mode, uid, gid."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """A layer that was applied before its parents were there.

    ``applied`` is the uncompressed tar. What follows ``root`` hangs on the parents: directories
    that the layer implies but does not describe ("" is the root), ones it describes after what is
    in them, whiteouts that may hide nothing, directories that are to hide their parents'.
    """

    applied: Descriptor
    root: Root
    implied: tuple[str, ...] = ()
    described: tuple[str, ...] = ()
    whiteouts: tuple[str, ...] = ()
    opaques: tuple[str, ...] = ()


@runtime_checkable
class AheadApplier(Protocol):
    """An applier that need not wait for a layer's parents.

    Both calls raise kontti.diff.lowers.NeedsParents for a layer that must be applied over them.
    """

    def apply_ahead(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        sync_fs: bool = False,
        stopped: Callable[[], bool] | None = None,
        incoming: Incoming | None = None,
    ) -> Ahead:
        """Extract ``layer`` into a snapshot of no parent; raises Canceled once ``stopped()``.

        ``incoming`` as in IncomingApplier.
        """
        ...

    def settle(self, ahead: Ahead, mounts: Sequence[Mount], parents: Sequence[Mount]) -> Root:
        """Bring it in line with its parents, by the mounts of an active snapshot over them.

        Gives how the root looks then.
        """
        ...


class Comparer(Protocol):
    """Makes a layer of the difference of two trees."""

    def compare(
        self, lower: Sequence[Mount], upper: Sequence[Mount], options: DiffOptions
    ) -> Descriptor:
        """The new blob's descriptor; its label ``containerd.io/uncompressed`` holds the diff id."""
        ...
