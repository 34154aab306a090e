"""Removing what is not used: what that would be, then doing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kontti.engine.base import Core
from kontti.engine.disk import look
from kontti.engine.image_filters import dangling
from kontti.engine.values import ContainerInfo
from kontti.errors import FailedPrecondition, NotFound
from kontti.namespaces import Scope

ENDED = ("stopped", "none")


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """Ids of containers and names of images that are to go."""

    containers: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went, and the bytes of the namespace that went with it."""

    containers: tuple[str, ...]
    images: tuple[str, ...]
    freed: int


def plan(
    core: Core, scope: Scope, containers: Sequence[ContainerInfo], *, all: bool = False
) -> PrunePlan:
    """Images that only a digest names; with ``all`` containers that ended, and every image too.

    An image of a container that stays is never in it.
    """
    images = list(core.stores.images(scope).list())
    ended = tuple(c.id for c in containers if all and c.status in ENDED)
    used = {c.image for c in containers if c.id not in ended}
    names = [image.name for image in images] if all else sorted(dangling(images))
    return PrunePlan(ended, tuple(name for name in names if name not in used))


def perform(core: Core, scope: Scope, planned: PrunePlan, remove: Callable[[str], None]) -> Pruned:
    """Do as planned, but for what is used or gone by now; ``remove`` removes a container."""
    before = look(core, scope).sizes
    removed = tuple(id for id in planned.containers if _removed(remove, id))
    used = {container.image for container in core.stores.containers(scope).list()}
    images = core.stores.images(scope)
    gone = tuple(n for n in planned.images if n not in used and _removed(images.delete, n))
    core.collect(scope)
    after = look(core, scope).sizes
    return Pruned(removed, gone, sum(size for item, size in before.items() if item not in after))


def _removed(remove: Callable[[str], None], name: str) -> bool:
    try:
        remove(name)
    except (NotFound, FailedPrecondition):
        # removed, or started again, since the plan was made
        return False
    return True
