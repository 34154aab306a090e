"""Layers to snapshots: one committed snapshot for each chain id, made once, or not at all."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kontti.content.base import Store
from kontti.diff.base import Applier
from kontti.diff.media_types import claims_layer
from kontti.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from kontti.images.graph import is_attestation
from kontti.images.identity import chain_ids
from kontti.images.manifest import ImageConfig, Manifest
from kontti.images.media_types import kind_of
from kontti.snapshots.base import INHERITED_PREFIX, TARGET_LABEL, Snapshotter
from kontti.transfer.base import Unpacking
from kontti.transfer.flights import Flights
from kontti.transfer.labels import SNAPSHOT_PREFIX, UNCOMPRESSED, add_labels
from kontti.transfer.progress import Reporter
from kontti.values import Descriptor, Digest, Mount

ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to apply: its blob, its tree's digest uncompressed, the chain that ends with it."""

    descriptor: Descriptor
    diff_id: Digest
    chain_id: Digest
    parent: str


Ready = Callable[[Descriptor], None]


def ready(descriptor: Descriptor) -> None:
    """For blobs that are all there already."""


@dataclass(frozen=True, slots=True)
class Unpacker:
    """Unpacks into one snapshotter of one namespace."""

    content: Store
    snapshots: Snapshotter
    applier: Applier
    options: Unpacking
    reporter: Reporter
    flights: Flights
    namespace: str

    def unpack(self, layers: Sequence[Layer], config: Descriptor, wait: Ready = ready) -> str:
        """The chain id of the whole; ``wait`` returns when a layer's blob is there.

        Raises FailedPrecondition for a layer that is not what the config says. A layer that failed
        leaves nothing; those before it stay, they are right.
        """
        for layer in layers[self._present(layers) :]:
            wait(layer.descriptor)
            with self.flights.hold((self.namespace, self.options.snapshotter, layer.chain_id)):
                self._ensure(layer)
        if not layers:
            return ""
        chain_id = layers[-1].chain_id
        add_labels(self.content, config.digest, self._reference(chain_id))
        return chain_id

    def _reference(self, chain_id: str) -> Mapping[str, str]:
        return {SNAPSHOT_PREFIX + self.options.snapshotter: chain_id}

    def _present(self, layers: Sequence[Layer]) -> int:
        """How many of ``layers`` are snapshots already, looked for from the top."""
        for count in range(len(layers), 0, -1):
            if self._exists(layers[count - 1]):
                return count
        return 0

    def _exists(self, layer: Layer) -> bool:
        try:
            self.snapshots.stat(layer.chain_id)
        except NotFound:
            return False
        return True

    def _ensure(self, layer: Layer) -> None:
        labels = self._labels(layer)
        for _ in range(ATTEMPTS):
            if self._exists(layer):
                return
            nanoseconds = time.time_ns() % 1_000_000_000
            key = f"extract-{nanoseconds}-{secrets.token_hex(3)} {layer.chain_id}"
            try:
                mounts = self.snapshots.prepare(key, layer.parent, labels)
            except AlreadyExists:
                # a remote snapshotter has the target now, or the key is taken
                continue
            self._extract(layer, key, mounts, labels)
            return
        raise Unavailable(f"unable to prepare a snapshot for {layer.chain_id}")

    def _labels(self, layer: Layer) -> Mapping[str, str]:
        hints = layer.descriptor.annotations.items()
        inherited = {k: v for k, v in hints if k.startswith(INHERITED_PREFIX)}
        return {**inherited, **self.options.labels, TARGET_LABEL: layer.chain_id}

    def _extract(
        self, layer: Layer, key: str, mounts: Sequence[Mount], labels: Mapping[str, str]
    ) -> None:
        self.reporter.blob("extracting", layer.descriptor)
        try:
            self._apply(layer, mounts)
            self._commit(layer, key, labels)
        except Error as error:
            self._drop(key)
            raise type(error)(
                f"failed to extract layer {layer.diff_id}: {error.message}"
            ) from error
        except BaseException:
            self._drop(key)
            raise
        self.reporter.blob("extracted", layer.descriptor, layer.descriptor.size)

    def _commit(self, layer: Layer, key: str, labels: Mapping[str, str]) -> None:
        try:
            self.snapshots.commit(layer.chain_id, key, labels)
        except AlreadyExists:
            # another process was quicker
            self._drop(key)

    def _apply(self, layer: Layer, mounts: Sequence[Mount]) -> None:
        applied = self.applier.apply(layer.descriptor, mounts, self.options.sync_fs)
        if applied.digest != layer.diff_id:
            raise FailedPrecondition(f'wrong diff id calculated on extraction "{applied.digest}"')
        add_labels(self.content, layer.descriptor.digest, {UNCOMPRESSED: layer.diff_id})

    def _drop(self, key: str) -> None:
        """The caller must hear of the first failure: what cannot be removed now is collected."""
        with contextlib.suppress(Error):
            self.snapshots.remove(key)


def layers_of(manifest: Manifest, config: ImageConfig) -> tuple[Layer, ...]:
    """The layers to apply, lowest first; raises InvalidArgument where the config differs."""
    diff_ids = config.diff_ids
    if len(manifest.layers) != len(diff_ids):
        raise InvalidArgument(
            f"number of layers and diffIDs don't match: {len(manifest.layers)} != {len(diff_ids)}"
        )
    chain = chain_ids(diff_ids)
    parents = ("", *chain)
    return tuple(map(Layer, manifest.layers, diff_ids, chain, parents))


def is_unpackable(descriptor: Descriptor, manifest: Manifest) -> bool:
    """Whether a manifest is an image's, and not an attestation's or another artifact's.

    An image with some layer of a type that nobody can apply is one all the same: it cannot be
    unpacked, and this must be said.
    """
    return (
        not is_attestation(descriptor)
        and kind_of(manifest.config.media_type) == "config"
        and (not manifest.layers or any(claims_layer(d.media_type) for d in manifest.layers))
    )
