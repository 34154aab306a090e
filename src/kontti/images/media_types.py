"""Media types of manifests, indexes and configs (OCI and Docker image specs)."""

from __future__ import annotations

from kontti.diff.media_types import is_layer

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_SCHEMA1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)

MANIFESTS = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))
INDEXES = frozenset((OCI_INDEX, DOCKER_LIST))
CONFIGS = frozenset((OCI_CONFIG, DOCKER_CONFIG))


def kind_of(media_type: str) -> str:
    """``manifest``, ``index``, ``config``, ``layer``, or "" for anything else."""
    if media_type in MANIFESTS:
        return "manifest"
    if media_type in INDEXES:
        return "index"
    if media_type in CONFIGS:
        return "config"
    return "layer" if is_layer(media_type) else ""
