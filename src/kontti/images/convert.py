"""Images made from images: layers uncompressed or in zstd, Docker's media types turned into OCI's.

A document that changes keeps what is not known here of it; fields are in the order of containerd's
documents, so that the same conversion has the same digest.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kontti.content.base import Store
from kontti.content.stream import BlobStream
from kontti.diff.compression import NONE, ZSTD, compressor, decompressed, detect
from kontti.diff.media_types import (
    DOCKER_FOREIGN,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_NONDISTRIBUTABLE,
)
from kontti.errors import FailedPrecondition, InvalidArgument, NotFound
from kontti.images import documents as json
from kontti.images.documents import Json
from kontti.images.graph import MAX_DEPTH
from kontti.images.ingest import ingest, put
from kontti.images.manifest import check_known, parse_index, parse_manifest, read_document
from kontti.images.media_types import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    kind_of,
)
from kontti.images.platforms import Everything, Matcher
from kontti.values import Descriptor

_TO_OCI = {
    DOCKER_LIST: OCI_INDEX,
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_CONFIG: OCI_CONFIG,
    DOCKER_LAYER: OCI_LAYER,
    DOCKER_LAYER_GZIP: OCI_LAYER_GZIP,
    DOCKER_LAYER_ZSTD: OCI_LAYER_ZSTD,
    DOCKER_FOREIGN: OCI_NONDISTRIBUTABLE,
    DOCKER_FOREIGN + ".gzip": OCI_NONDISTRIBUTABLE + "+gzip",
}
_PLAIN = {
    OCI_LAYER_GZIP: OCI_LAYER,
    OCI_LAYER_ZSTD: OCI_LAYER,
    OCI_NONDISTRIBUTABLE + "+gzip": OCI_NONDISTRIBUTABLE,
    OCI_NONDISTRIBUTABLE + "+zstd": OCI_NONDISTRIBUTABLE,
    DOCKER_LAYER_GZIP: DOCKER_LAYER,
    DOCKER_LAYER_ZSTD: DOCKER_LAYER,
    DOCKER_FOREIGN + ".gzip": DOCKER_FOREIGN,
}
_ZSTD = {
    OCI_LAYER: OCI_LAYER_ZSTD,
    OCI_LAYER_GZIP: OCI_LAYER_ZSTD,
    OCI_NONDISTRIBUTABLE: OCI_NONDISTRIBUTABLE + "+zstd",
    OCI_NONDISTRIBUTABLE + "+gzip": OCI_NONDISTRIBUTABLE + "+zstd",
    DOCKER_LAYER: DOCKER_LAYER_ZSTD,
    DOCKER_LAYER_GZIP: DOCKER_LAYER_ZSTD,
}
_ORDER = (
    "schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject",
    "annotations",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is to change. Of an index only the manifests of ``platforms`` stay."""

    uncompress: bool = False
    oci: bool = False
    platforms: Matcher | None = None
    zstd: bool = False

    def __post_init__(self) -> None:
        if self.uncompress and self.zstd:
            raise InvalidArgument("layers cannot be both uncompressed and in zstd")


def convert(store: Store, target: Descriptor, wanted: Conversion) -> Descriptor:
    """The converted image; ``target`` itself where nothing changes. Its blobs are in ``store``.

    Raises NotFound where a blob of it is not here, or no manifest of the platforms.
    """
    return _document(store, target, wanted, 0)


def _document(store: Store, target: Descriptor, wanted: Conversion, depth: int) -> Descriptor:
    check_known(target.media_type)
    kind = kind_of(target.media_type)
    if depth > MAX_DEPTH:
        raise FailedPrecondition(f"image {target.digest} refers to too many blobs")
    if kind == "index":
        return _index(store, target, wanted, depth)
    return _manifest(store, target, wanted) if kind == "manifest" else target


def _index(store: Store, target: Descriptor, wanted: Conversion, depth: int) -> Descriptor:
    data = read_document(store, target)
    old = parse_index(data, target.media_type).manifests
    matcher = wanted.platforms or Everything()
    kept = [d for d in old if d.platform is None or matcher.match(d.platform)]
    if not kept:
        raise NotFound(f"no match for platform in manifest {target.digest}")
    new = [_document(store, d, wanted, depth + 1) for d in kept]
    return _written(store, target, data, {"manifests": (old, new)}, wanted)


def _manifest(store: Store, target: Descriptor, wanted: Conversion) -> Descriptor:
    data = read_document(store, target)
    manifest = parse_manifest(data, target.media_type)
    layers = [_layer(store, layer, wanted) for layer in manifest.layers]
    store.info(manifest.config.digest)
    config = _renamed(manifest.config, wanted)
    changes = {"config": ((manifest.config,), [config]), "layers": (manifest.layers, layers)}
    return _written(store, target, data, changes, wanted)


def _layer(store: Store, layer: Descriptor, wanted: Conversion) -> Descriptor:
    store.info(layer.digest)
    if wanted.uncompress and layer.media_type in _PLAIN:
        layer = _repacked(store, layer, _PLAIN[layer.media_type], NONE)
    elif wanted.zstd and layer.media_type in _ZSTD:
        layer = _repacked(store, layer, _ZSTD[layer.media_type], ZSTD)
    return _renamed(layer, wanted)


def _repacked(store: Store, layer: Descriptor, media_type: str, compression: str) -> Descriptor:
    with store.reader(layer.digest) as reader:
        # Docker's clients call gzipped and plain layers alike
        if detect(reader.read_at(0, 8)) == compression:
            return replace(layer, media_type=media_type)
        ref = f"convert-{secrets.token_hex(8)}"
        made = ingest(store, ref, _packed(decompressed(BlobStream(reader).read), compression), 0)
    return replace(layer, media_type=media_type, digest=made.digest, size=made.size)


def _packed(chunks: Iterator[bytes], compression: str) -> Iterator[bytes]:
    packer = compressor(compression)
    yield from filter(None, map(packer.compress, chunks))
    yield packer.flush()


def _renamed(descriptor: Descriptor, wanted: Conversion) -> Descriptor:
    if not wanted.oci:
        return descriptor
    return replace(descriptor, media_type=_TO_OCI.get(descriptor.media_type, descriptor.media_type))


Changes = Mapping[str, tuple[Sequence[Descriptor], list[Descriptor]]]


def _written(
    store: Store, target: Descriptor, data: bytes, changes: Changes, wanted: Conversion
) -> Descriptor:
    renamed = _renamed(target, wanted)
    if renamed == target and all(list(old) == new for old, new in changes.values()):
        return target
    document = dict(json.loads(data, "document"))
    document["mediaType"] = renamed.media_type
    for key, (old, new) in changes.items():
        said = [document[key]] if key == "config" else json.items(document, key)
        items = list(_edited(said, old, new))
        document[key] = items[0] if key == "config" else items
    ordered = {key: document.pop(key) for key in _ORDER if key in document}
    ref = f"convert-{secrets.token_hex(8)}"
    made = put(store, ref, json.dumps({**ordered, **document}), renamed.media_type)
    return replace(renamed, digest=made.digest, size=made.size)


def _edited(
    said: Sequence[object], old: Sequence[Descriptor], new: Sequence[Descriptor]
) -> Iterator[Json]:
    """Each new descriptor; one that stays as it was is kept with all that was said of it."""
    told = (json.as_object(value, "descriptor") for value in said)
    said_of = dict(zip((d.digest for d in old), told, strict=True))
    place = {d.digest: d for d in old}
    for descriptor in new:
        same = place.get(descriptor.digest)
        if same == descriptor:
            yield {**json.dump_descriptor(descriptor), **said_of[descriptor.digest]}
        else:
            yield json.dump_descriptor(descriptor)
