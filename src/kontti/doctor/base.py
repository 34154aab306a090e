"""What a check finds, what is looked through, and how fast."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from kontti.diff.base import Applier
from kontti.errors import Error
from kontti.images.graph import walk
from kontti.images.manifest import read_config, read_manifest
from kontti.images.media_types import kind_of
from kontti.metadata.base import Image
from kontti.metadata.store import MetadataStore
from kontti.namespaces import Scope
from kontti.transfer.parts import Parts
from kontti.transfer.unpack import Layer, layers_of
from kontti.values import Descriptor


class Remedy(enum.Enum):
    """What mends a finding."""

    NONE = "none"
    FETCH = "fetch"
    UNPACK = "unpack"
    COLLECT = "collect"
    FORGET = "forget"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be. ``mended`` once a repair has made it so."""

    kind: str
    namespace: str
    name: str
    problem: str
    remedy: Remedy = Remedy.NONE
    mended: bool = False


class Pace:
    """Holds readers to ``rate`` bytes in a second; 0 for as fast as they can."""

    def __init__(self, rate: int = 0) -> None:
        self._rate = rate
        self._began = time.monotonic()
        self._bytes = 0

    def spend(self, count: int) -> None:
        """Note ``count`` bytes, and wait where they came too soon."""
        self._bytes += count
        if self._rate > 0:
            ahead = self._bytes / self._rate - (time.monotonic() - self._began)
            if ahead > 0:
                time.sleep(ahead)


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked through. ``deep`` reads every byte; ``parts`` and ``applier`` mend."""

    metadata: MetadataStore
    parts: Parts
    applier: Callable[[Scope], Applier]
    quarantine: str
    pace: Pace = field(default_factory=Pace)
    deep: bool = True

    def scopes(self) -> Iterator[Scope]:
        """Every namespace."""
        return (Scope.of(n.name) for n in self.metadata.namespaces.list())

    def images(self, scope: Scope) -> Iterator[tuple[Image, tuple[Descriptor, ...]]]:
        """The namespace's images, each with every blob below it that can be found."""
        content = self.metadata.content(scope)
        for image in self.metadata.images(scope).list():
            yield image, tuple(node.descriptor for node in walk(content, image.target))

    def layers(self, scope: Scope) -> Mapping[str, Layer]:
        """The layers of the namespace's images by their chain ids."""
        content = self.metadata.content(scope)
        found: dict[str, Layer] = {}
        for _, blobs in self.images(scope):
            for blob in blobs:
                if kind_of(blob.media_type) != "manifest":
                    continue
                try:
                    manifest = read_manifest(content, blob)
                    layers = layers_of(manifest, read_config(content, manifest.config))
                except Error:
                    continue  # incomplete, or no image: the blobs' own check tells
                found |= {layer.chain_id: layer for layer in layers}
        return found
