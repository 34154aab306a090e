"""Which manifests of an index a transfer means, and which are unpacked."""

from __future__ import annotations

from kontti.images.platforms import Everything, Matcher, any_of, default, only
from kontti.transfer.base import Selection, Unpacking
from kontti.values import Descriptor


def matcher_of(select: Selection) -> Matcher:
    """The platforms asked for; what this machine can run where none is."""
    if select.all_platforms:
        return Everything()
    return any_of(select.platforms) if select.platforms else only(default())


def limit_of(select: Selection) -> int:
    """How many manifests of an index: the best one for this machine, else all that match (0)."""
    if select.limit:
        return select.limit
    return 0 if select.all_platforms or select.platforms else 1


def is_wanted(manifest: Descriptor, unpack: Unpacking) -> bool:
    """Whether ``unpack`` is for a manifest, as far as its index says what it is of."""
    if unpack.platform is None or manifest.platform is None:
        return True
    return only(unpack.platform).match(manifest.platform)
