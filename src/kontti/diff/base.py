"""Layers to trees and trees to layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kontti.values import EMPTY, Descriptor, Mount


@dataclass(frozen=True, slots=True)
class DiffOptions:
    """``media_type`` of the layer to make, the ingest ref to use, labels to put on the blob."""

    media_type: str = "application/vnd.oci.image.layer.v1.tar+gzip"
    reference: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    source_date_epoch: int | None = None


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


class Comparer(Protocol):
    """Makes a layer of the difference of two trees."""

    def compare(
        self, lower: Sequence[Mount], upper: Sequence[Mount], options: DiffOptions
    ) -> Descriptor:
        """The new blob's descriptor; its label ``containerd.io/uncompressed`` holds the diff id."""
        ...
