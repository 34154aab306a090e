"""The graph of blobs that an image is: walking it, labelling it, choosing from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kontti.content.base import Provider
from kontti.errors import FailedPrecondition, NotFound
from kontti.images.manifest import (
    Manifest,
    check_known,
    children,
    read_config,
    read_index,
    read_manifest,
)
from kontti.images.media_types import kind_of
from kontti.images.platforms import Everything, Matcher, select
from kontti.values import Descriptor, Digest, Platform

GC_REF = "containerd.io/gc.ref.content"
# images are an index of manifests; indexes within indexes exist, but not without end
MAX_DEPTH = 8
MAX_BLOBS = 100_000

_LABELS = {"config": "config", "manifest": "m.", "layer": "l."}


@dataclass(frozen=True, slots=True)
class Node:
    """A blob, what it refers to (of the platforms asked for), and whether it could be read."""

    descriptor: Descriptor
    children: tuple[Descriptor, ...]
    missing: bool = False


def walk(
    provider: Provider, root: Descriptor, matcher: Matcher | None = None, *, limit: int = 0
) -> Iterator[Node]:
    """Every blob below ``root``, itself first, each once, of the platforms that match.

    ``limit`` > 0 keeps so many manifests of each index. A document that is absent has no children
    and is ``missing``. Raises InvalidArgument for malformed documents, FailedPrecondition for a
    graph without end.
    """
    wanted = matcher or Everything()
    seen = {root.digest}
    pending = [(root, 0)]
    while pending:
        descriptor, depth = pending.pop()
        node = _visit(provider, descriptor, wanted, limit)
        yield node
        fresh = _unseen(node.children, seen)
        if fresh and (depth >= MAX_DEPTH or len(seen) > MAX_BLOBS):
            raise FailedPrecondition(f"image {root.digest} refers to too many blobs")
        pending.extend((child, depth + 1) for child in reversed(fresh))


def _unseen(found: Sequence[Descriptor], seen: set[Digest]) -> list[Descriptor]:
    fresh = []
    for child in found:
        if child.digest not in seen:
            seen.add(child.digest)
            fresh.append(child)
    return fresh


def _visit(provider: Provider, descriptor: Descriptor, matcher: Matcher, limit: int) -> Node:
    try:
        found = children(provider, descriptor)
    except NotFound:
        return Node(descriptor, (), missing=True)
    if kind_of(descriptor.media_type) == "index":
        found = select(found, matcher, limit)
    return Node(descriptor, found)


def child_labels(children: Sequence[Descriptor]) -> dict[str, str]:
    """Labels that make the collector keep ``children`` with the blob that refers to them."""
    labels: dict[str, str] = {}
    counts: dict[str, int] = {}
    for child in children:
        key = _LABELS.get(kind_of(child.media_type), "")
        if key.endswith(".") or not key:
            count = counts.get(key, 0)
            counts[key] = count + 1
            key = f"{key}{count}"
        labels[f"{GC_REF}.{key}"] = child.digest
    return labels


def find_manifest(
    provider: Provider, target: Descriptor, matcher: Matcher, depth: int = 0
) -> tuple[Descriptor, Manifest]:
    """The best manifest for the platforms that match; raises NotFound where there is none."""
    check_known(target.media_type)
    kind = kind_of(target.media_type)
    if kind == "manifest":
        return target, read_manifest(provider, target)
    if kind != "index" or depth >= MAX_DEPTH:
        raise NotFound(f"unexpected media type {target.media_type} for {target.digest}")
    for child in select(read_index(provider, target).manifests, matcher):
        if kind_of(child.media_type) and not is_attestation(child):
            found = _try_manifest(provider, child, matcher, depth)
            if found is not None:
                return found
    raise NotFound(f"no match for platform in manifest {target.digest}")


def _try_manifest(
    provider: Provider, child: Descriptor, matcher: Matcher, depth: int
) -> tuple[Descriptor, Manifest] | None:
    if kind_of(child.media_type) == "index":
        try:
            return find_manifest(provider, child, matcher, depth + 1)
        except NotFound:
            return None
    manifest = read_manifest(provider, child)
    if child.platform is None and not matcher.match(
        read_config(provider, manifest.config).platform
    ):
        return None
    return child, manifest


def is_attestation(descriptor: Descriptor) -> bool:
    """Whether an index entry describes another entry rather than an image."""
    kind = descriptor.annotations.get("vnd.docker.reference.type", "")
    return kind == "attestation-manifest"


def platforms(provider: Provider, target: Descriptor) -> tuple[Platform, ...]:
    """The platforms an image has here, each once; those whose documents are absent are left out."""
    found: dict[Platform, None] = {}
    for node in walk(provider, target):
        if kind_of(node.descriptor.media_type) == "manifest" and not node.missing:
            platform = node.descriptor.platform or _config_platform(provider, node)
            if platform is not None and platform.os not in ("", "unknown"):
                found[platform] = None
    return tuple(found)


def _config_platform(provider: Provider, node: Node) -> Platform | None:
    if not node.children or kind_of(node.children[0].media_type) != "config":
        return None
    try:
        return read_config(provider, node.children[0]).platform
    except NotFound:
        return None
