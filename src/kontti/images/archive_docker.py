"""What ``docker save`` writes, as an index of manifests (Docker image spec v1.2)."""

from __future__ import annotations

import json as stdlib_json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace

from kontti.content.base import Reader, Store
from kontti.diff.compression import GZIP, NONE, ZSTD, compressor, detect
from kontti.diff.media_types import DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_LAYER_ZSTD
from kontti.errors import InvalidArgument
from kontti.images import documents as json
from kontti.images.archive_names import IMAGE_NAME, REF_NAME, normalized, reference_name
from kontti.images.documents import Json
from kontti.images.ingest import ingest, put
from kontti.images.manifest import read_config
from kontti.images.media_types import DOCKER_CONFIG, DOCKER_MANIFEST, OCI_INDEX
from kontti.images.platforms import normalize
from kontti.values import Descriptor

_CHUNK = 1 << 20
_LAYER_TYPES = {NONE: DOCKER_LAYER, GZIP: DOCKER_LAYER_GZIP, ZSTD: DOCKER_LAYER_ZSTD}

FindBlob = Callable[[str], Descriptor]


def convert(document: bytes, find: FindBlob, store: Store, compress: bool) -> bytes:
    """The index for a ``manifest.json``; the manifests it lists are written to ``store``."""
    manifests: list[dict[str, object]] = []
    for image in _images(document):
        described = _manifest(image, find, store, compress)
        tags = [normalized(tag) for tag in json.texts(image, "RepoTags")]
        named = [{IMAGE_NAME: tag, REF_NAME: reference_name(tag)} for tag in tags]
        manifests += [
            json.dump_descriptor(replace(described, annotations=names)) for names in named or [{}]
        ]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


def _images(document: bytes) -> list[Json]:
    try:
        images = stdlib_json.loads(document.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"manifest.json is not JSON: {error!s:.200}") from error
    if not isinstance(images, list):
        raise InvalidArgument("manifest.json is not a list")
    return [json.as_object(image, "manifest.json entry") for image in images]


def _manifest(image: Json, find: FindBlob, store: Store, compress: bool) -> Descriptor:
    config = replace(find(json.text(image, "Config")), media_type=DOCKER_CONFIG)
    layers = [_layer(find(path), store, compress) for path in json.texts(image, "Layers")]
    data = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": json.dump_descriptor(config),
            "layers": [json.dump_descriptor(layer) for layer in layers],
        }
    )
    made = put(store, f"import-{secrets.token_hex(8)}-manifest", data, DOCKER_MANIFEST)
    return replace(made, platform=normalize(read_config(store, config).platform))


def _layer(blob: Descriptor, store: Store, compress: bool) -> Descriptor:
    with store.reader(blob.digest) as reader:
        compression = detect(reader.read_at(0, 8))
        if compression == NONE and compress:
            ref = f"import-{secrets.token_hex(8)}-layer"
            made = ingest(store, ref, _gzipped(reader), 0)
            return replace(made, media_type=DOCKER_LAYER_GZIP)
    return replace(blob, media_type=_LAYER_TYPES[compression])


def _gzipped(reader: Reader) -> Iterator[bytes]:
    gzip = compressor(GZIP)
    for offset in range(0, reader.size, _CHUNK):
        yield gzip.compress(reader.read_at(offset, _CHUNK))
    yield gzip.flush()
