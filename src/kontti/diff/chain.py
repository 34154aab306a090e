"""Several differs in an order: the first that knows a media type does the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from kontti.diff.base import Applier, Comparer, DiffOptions
from kontti.errors import Unimplemented
from kontti.values import Descriptor, Mount

D = TypeVar("D")
T = TypeVar("T")


class Differ(Applier, Comparer, Protocol):
    """Both ways."""


@dataclass(frozen=True, slots=True)
class FirstApplier:
    """diff.base.Applier: the first of ``appliers`` that does not raise Unimplemented."""

    appliers: Sequence[Applier]

    def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], sync_fs: bool = False
    ) -> Descriptor:
        """As diff.base.Applier.apply."""
        return _first(self.appliers, lambda applier: applier.apply(layer, mounts, sync_fs))


@dataclass(frozen=True, slots=True)
class FirstComparer:
    """diff.base.Comparer: the first of ``comparers`` that does not raise Unimplemented."""

    comparers: Sequence[Comparer]

    def compare(
        self, lower: Sequence[Mount], upper: Sequence[Mount], options: DiffOptions
    ) -> Descriptor:
        """As diff.base.Comparer.compare."""
        return _first(self.comparers, lambda comparer: comparer.compare(lower, upper, options))


def _first(differs: Sequence[D], ask: Callable[[D], T]) -> T:
    for differ in differs[:-1]:
        try:
            return ask(differ)
        except Unimplemented:
            continue
    return ask(differs[-1])
