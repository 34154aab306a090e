"""Lazy pulling: a snapshotter is told where layers are, and only what it has not got is fetched."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from kontti.diff.base import Incoming
from kontti.errors import InvalidArgument
from kontti.transfer.download import Downloads
from kontti.transfer.flights import IsStopped, never
from kontti.values import Descriptor, Digest, check_labels

# no matter who pulls: the names are from the first client that gave them
IMAGE_REF = "containerd.io/snapshot/cri.image-ref"
MANIFEST_DIGEST = "containerd.io/snapshot/cri.manifest-digest"
LAYER_DIGEST = "containerd.io/snapshot/cri.layer-digest"
IMAGE_LAYERS = "containerd.io/snapshot/cri.image-layers"


def hints(name: str, manifest: Digest, layers: Sequence[Digest]) -> dict[str, str]:
    """Labels for the first of ``layers``; the others are those above it, lowest first."""
    return {
        IMAGE_REF: name,
        MANIFEST_DIGEST: manifest,
        LAYER_DIGEST: layers[0],
        IMAGE_LAYERS: _joined(layers),
    }


def _joined(layers: Sequence[Digest]) -> str:
    """As many as a label holds: they are for fetching ahead, and may be left out."""
    texts = list(itertools.accumulate(layers, lambda text, digest: f"{text},{digest}"))
    return next(text for text in reversed(texts) if _fits(text))


def _fits(text: str) -> bool:
    try:
        check_labels({IMAGE_LAYERS: text})
    except InvalidArgument:
        return False
    return True


@dataclass(frozen=True, slots=True)
class OnDemand:
    """Blobs of one manifest: they are downloaded from the first one on that is asked for."""

    downloads: Downloads
    blobs: Sequence[Descriptor]

    def fetched(self, descriptor: Descriptor, is_stopped: IsStopped = never) -> None:
        """As transfer.incoming.Blobs."""
        self._begin(descriptor)
        self.downloads.fetched(descriptor, is_stopped)

    def incoming(
        self, descriptor: Descriptor, is_stopped: IsStopped = never
    ) -> AbstractContextManager[Incoming | None]:
        """As transfer.incoming.Blobs."""
        self._begin(descriptor)
        return self.downloads.incoming(descriptor, is_stopped)

    def _begin(self, descriptor: Descriptor) -> None:
        if descriptor in self.blobs:
            for blob in self.blobs[self.blobs.index(descriptor) :]:
                self.downloads.start(blob)
