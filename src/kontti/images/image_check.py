"""Whether an image is whole: what it needs, what is here, what is unpacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kontti.content.base import Provider
from kontti.errors import NotFound
from kontti.images.graph import find_manifest, walk
from kontti.images.identity import chain_id
from kontti.images.manifest import read_config
from kontti.images.platforms import Matcher
from kontti.values import Descriptor, Digest


@dataclass(frozen=True, slots=True)
class Status:
    """Of one image and one platform. ``available`` is false where not even the manifest is here."""

    available: bool
    required: tuple[Descriptor, ...]
    present: tuple[Descriptor, ...]
    missing: tuple[Descriptor, ...]

    @property
    def complete(self) -> bool:
        """Whether all that is required is here."""
        return self.available and not self.missing

    @property
    def word(self) -> str:
        """As ``ctr images check`` says it."""
        if not self.available:
            return "unavailable"
        return "incomplete" if self.missing else "complete"

    @property
    def size(self) -> int:
        """Bytes of all that is required."""
        return sum(d.size for d in self.required)

    @property
    def present_size(self) -> int:
        """Bytes of it that are here."""
        return sum(d.size for d in self.present)


def check(provider: Provider, target: Descriptor, matcher: Matcher) -> Status:
    """What the best manifest of ``target`` needs and has; raises for malformed documents."""
    try:
        _, manifest = find_manifest(provider, target, matcher)
    except NotFound:
        return Status(available=False, required=(), present=(), missing=())
    here = tuple(d for d in manifest.children if is_present(provider, d.digest))
    missing = tuple(d for d in manifest.children if d not in here)
    return Status(True, manifest.children, here, missing)


def is_present(provider: Provider, digest: Digest) -> bool:
    """Whether a blob is here."""
    try:
        provider.info(digest)
    except NotFound:
        return False
    return True


def is_unpacked(
    provider: Provider, target: Descriptor, matcher: Matcher, stat: Callable[[str], object]
) -> bool:
    """Whether the snapshot of the top layer is there; ``stat`` is a snapshotter's."""
    try:
        _, manifest = find_manifest(provider, target, matcher)
        stat(chain_id(read_config(provider, manifest.config).diff_ids))
    except NotFound:
        return False
    return True


def size(provider: Provider, target: Descriptor, matcher: Matcher) -> int:
    """Bytes of the blobs that ``matcher`` selects and that are here, each counted once."""
    total = 0
    for node in walk(provider, target, matcher):
        try:
            total += provider.info(node.descriptor.digest).size
        except NotFound:
            continue
    return total
