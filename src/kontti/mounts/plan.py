"""Which of a list's mounts the manager makes, and what is done to each before. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kontti.errors import InvalidArgument, Unimplemented
from kontti.mounts.base import ActivateOptions
from kontti.values import Mount

MAX_MOUNTS = 255


@dataclass(frozen=True, slots=True)
class Step:
    """A mount, the names of its transforms in their order, and of its handler, "" for none."""

    mount: Mount
    transforms: tuple[str, ...] = ()
    handler: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """``active`` are made by the manager, ``system`` by who asked."""

    active: tuple[Step, ...]
    system: tuple[Step, ...]


def plan(
    mounts: Sequence[Mount],
    transforms: Collection[str],
    handlers: Collection[str],
    options: ActivateOptions,
) -> Plan:
    """Raises Unimplemented where nothing is left to the manager, InvalidArgument."""
    if len(mounts) > MAX_MOUNTS:
        raise InvalidArgument(f"too many mounts ({len(mounts)}): maximum {MAX_MOUNTS}")
    steps = [_step(mount, transforms, handlers) for mount in mounts]
    first = -1
    for index, step in enumerate(steps):
        if options.temporary or (step.handler and step.mount.type not in options.allowed):
            first = index + 1
        elif any(not _allowed(name, mounts[index].type, options) for name in step.transforms):
            # all that it is made from is mounted, and it is left to the system
            first = max(first, index)
    if first < 0:
        raise Unimplemented("mounts that the system can make")
    return Plan(
        tuple(steps[:first]),
        tuple(_left(step, mounts[first + n], options) for n, step in enumerate(steps[first:])),
    )


def _step(mount: Mount, transforms: Collection[str], handlers: Collection[str]) -> Step:
    """A mount's type without the prefixes that say what is to be done first."""
    names = []
    kind = mount.type
    while "/" in kind and kind.partition("/")[0] in transforms:
        name, _, kind = kind.partition("/")
        names.append(name)
    made = Mount(kind, mount.source, mount.options, mount.target)
    return Step(made, tuple(names), kind if kind in handlers else "")


def _allowed(name: str, kind: str, options: ActivateOptions) -> bool:
    return f"{name}/*" in options.allowed or kind in options.allowed


def _left(step: Step, mount: Mount, options: ActivateOptions) -> Step:
    """One for the system: as it was given, where who asked prepares it himself."""
    if step.transforms and all(_allowed(name, mount.type, options) for name in step.transforms):
        return Step(mount)
    return Step(step.mount, step.transforms)
