"""Media types of layers, and how each is compressed (OCI and Docker image specs)."""

from __future__ import annotations

from kontti.errors import Unimplemented

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD = OCI_LAYER + "+zstd"
OCI_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = DOCKER_LAYER + ".gzip"
DOCKER_LAYER_ZSTD = DOCKER_LAYER + ".zstd"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"

# "" where the bytes decide: Docker's clients label gzipped and plain layers alike
_COMPRESSION = {
    OCI_LAYER: "none",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    OCI_NONDISTRIBUTABLE: "none",
    OCI_NONDISTRIBUTABLE + "+gzip": "gzip",
    OCI_NONDISTRIBUTABLE + "+zstd": "zstd",
    DOCKER_LAYER: "",
    DOCKER_LAYER_GZIP: "",
    DOCKER_LAYER_ZSTD: "zstd",
    DOCKER_FOREIGN: "",
    DOCKER_FOREIGN + ".gzip": "",
}
_WRITABLE = {OCI_LAYER: "none", OCI_LAYER_GZIP: "gzip", OCI_LAYER_ZSTD: "zstd"}


def is_layer(media_type: str) -> bool:
    """Whether a blob of ``media_type`` is a file system layer that can be applied."""
    return media_type in _COMPRESSION


def claims_layer(media_type: str) -> bool:
    """Whether a blob says it is a layer, of a kind that can be applied or not."""
    return is_layer(media_type) or media_type.startswith("application/vnd.oci.image.layer.")


def is_nondistributable(media_type: str) -> bool:
    """Whether a layer of ``media_type`` may be absent from registries and archives."""
    return media_type.startswith((OCI_NONDISTRIBUTABLE, DOCKER_FOREIGN))


def layer_compression(media_type: str) -> str:
    """``gzip``, ``zstd``, ``none``, or "" when the bytes decide; raises Unimplemented."""
    found = _COMPRESSION.get(media_type)
    if found is None:
        raise Unimplemented(f"currently unsupported media type {media_type!r:.200}")
    return found


def diff_compression(media_type: str) -> str:
    """How to compress a layer to be made as ``media_type``; raises Unimplemented."""
    found = _WRITABLE.get(media_type)
    if found is None:
        raise Unimplemented(f"unsupported diff media type: {media_type:.200}")
    return found
