"""Names in archives: what docker and the OCI layout call an image, and what containerd does."""

from __future__ import annotations

from collections.abc import Mapping

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

_HUB = "docker.io/"
_OFFICIAL = _HUB + "library/"


def image_name(annotations: Mapping[str, str]) -> str:
    """The whole name an archive gives an image, or the bare reference it has, or ""."""
    return annotations.get(IMAGE_NAME) or annotations.get(REF_NAME, "")


def normalized(tag: str) -> str:
    """Docker's short names in full: ``alpine`` is ``docker.io/library/alpine:latest``."""
    first, slash, _ = tag.partition("/")
    if not slash:
        tag = _OFFICIAL + tag
    elif not ("." in first or ":" in first or first == "localhost"):
        tag = _HUB + tag
    return tag if has_tag(tag) or "@" in tag else f"{tag}:latest"


def familiar(name: str) -> str:
    """The short form that docker shows, with its tag; "" for a name by digest."""
    if "@" in name:
        return ""
    short = name.removeprefix(_OFFICIAL).removeprefix(_HUB)
    return short if has_tag(short) else f"{short}:latest"


def reference_name(name: str) -> str:
    """What an OCI layout calls it: the tag, or the whole name where it has none."""
    return name.rpartition(":")[2] if has_tag(name) and "@" not in name else name


def has_tag(name: str) -> bool:
    """Whether ``name`` ends in a tag rather than in a port."""
    return ":" in name.rpartition("/")[2].partition("@")[0]
