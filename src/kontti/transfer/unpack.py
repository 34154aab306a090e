"""Layers to snapshots: one committed snapshot for each chain id, made once, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kontti.diff.media_types import claims_layer
from kontti.errors import InvalidArgument
from kontti.images.graph import is_attestation
from kontti.images.identity import chain_ids
from kontti.images.manifest import ImageConfig, Manifest
from kontti.images.media_types import kind_of
from kontti.transfer.base import Unpacking
from kontti.transfer.incoming import ALL_THERE, Blobs
from kontti.transfer.labels import SNAPSHOT_PREFIX, add_labels
from kontti.transfer.layer import Layer, LayerUnpacker
from kontti.transfer.lazy import hints
from kontti.transfer.together import Together, can_go_ahead
from kontti.values import Descriptor, Digest

__all__ = ["Layer", "Unpacker", "is_unpackable", "layers_of"]
MAX_LAYERS = 500
"""More the kernel does not stack (OVL_MAX_STACK)."""


@dataclass(frozen=True, slots=True)
class Unpacker(LayerUnpacker):
    """Unpacks the layers of whole images."""

    def unpack(self, layers: Sequence[Layer], config: Descriptor, blobs: Blobs = ALL_THERE) -> str:
        """The chain id of the whole; ``blobs`` has the layers', or will.

        A lazy snapshotter is asked for each layer first: nobody waits for blobs of those it has.

        Raises FailedPrecondition for a layer that is not what the config says. A layer that failed
        leaves nothing; those before it stay, they are right.
        """
        missing = layers[self._present(layers) :]
        if len(missing) > 1 and not self.options.lazy_name and can_go_ahead(self):
            Together(self, blobs).unpack(missing)
        else:
            for layer in missing:
                with self.flight(layer):
                    self.ensure(layer, blobs)
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
            if self.exists(layers[count - 1]):
                return count
        return 0


def layers_of(
    manifest: Manifest, config: ImageConfig, types: Sequence[str] = ()
) -> tuple[Layer, ...]:
    """The layers to apply, lowest first; raises InvalidArgument where the config differs.

    With ``types`` what is of none of these, and says of itself that it is no layer, is not one.
    """
    diff_ids, layers = config.diff_ids, manifest.layers
    if types:
        layers = tuple(d for d in layers if d.media_type in types or claims_layer(d.media_type))
    if len(layers) > MAX_LAYERS:
        raise InvalidArgument(f"image has {len(layers)} layers, more than {MAX_LAYERS}")
    if len(layers) != len(diff_ids):
        raise InvalidArgument(
            f"number of layers and diffIDs don't match: {len(layers)} != {len(diff_ids)}"
        )
    chain = chain_ids(diff_ids)
    parents = ("", *chain)
    return tuple(map(Layer, layers, diff_ids, chain, parents))


def hinted(layers: Sequence[Layer], name: str, manifest: Digest) -> tuple[Layer, ...]:
    """``layers`` with what tells a snapshotter where to get them."""
    digests = [layer.descriptor.digest for layer in layers]
    return tuple(
        replace(layer, hints=hints(name, manifest, digests[at:])) for at, layer in enumerate(layers)
    )


def is_unpackable(
    descriptor: Descriptor, manifest: Manifest, options: Unpacking | None = None
) -> bool:
    """Whether a manifest is an image's, and not an attestation's or another artifact's.

    An image with some layer of a type that nobody can apply is one all the same: it cannot be
    unpacked, and this must be said.
    """
    wanted, config = options or Unpacking(), manifest.config.media_type
    return (
        not is_attestation(descriptor)
        and (config == wanted.config_type if wanted.config_type else kind_of(config) == "config")
        and (
            not manifest.layers
            or any(claims_layer(d.media_type) for d in manifest.layers)
            or any(d.media_type in wanted.layer_types for d in manifest.layers)
        )
    )
