"""Which manifests of an index a transfer means."""

from __future__ import annotations

from kontti.images.platforms import Everything, Matcher, any_of, default, only
from kontti.transfer.base import Selection


def matcher_of(select: Selection) -> Matcher:
    """The platforms asked for; what this machine can run where none is."""
    if select.all_platforms:
        return Everything()
    return any_of(select.platforms) if select.platforms else only(default())


def limit_of(select: Selection) -> int:
    """How many manifests of an index: the best one for this machine, else all that match (0)."""
    return 0 if select.all_platforms or select.platforms else 1
