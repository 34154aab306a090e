"""The sandboxes that a controller knows, and how far each is in its life."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from kontti.errors import AlreadyExists, NotFound, Unavailable
from kontti.runtime.bundle import Bundle
from kontti.runtime.shim import Shim
from kontti.sandboxes.base import Ended


class Phase(enum.Enum):
    """CREATING is invisible; LOADING and ENDING are over soon. DEAD is without its shim."""

    CREATING = enum.auto()
    LOADING = enum.auto()
    READY = enum.auto()
    ENDING = enum.auto()
    DEAD = enum.auto()
    GONE = enum.auto()


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.CREATING: frozenset({Phase.READY, Phase.GONE}),
    Phase.LOADING: frozenset({Phase.READY, Phase.ENDING}),
    Phase.READY: frozenset({Phase.ENDING}),
    Phase.ENDING: frozenset({Phase.DEAD, Phase.GONE}),
    Phase.DEAD: frozenset({Phase.GONE}),
    Phase.GONE: frozenset(),
}


@dataclass(slots=True, eq=False)
class Entry:
    """One sandbox. ``ended`` is how it ended, once it has; ``watch`` waits for that."""

    bundle: Bundle
    phase: Phase
    shim: Shim | None = None
    ended: Ended | None = None
    watch: asyncio.Task[Ended] | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class SandboxTable:
    """Sandboxes by namespace and id; one of each name at a time."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def claim(self, bundle: Bundle, phase: Phase) -> Entry:
        """A new one in CREATING or LOADING, in place of a dead one; raises AlreadyExists."""
        key = bundle.namespace, bundle.id
        old = self._entries.get(key)
        if old is not None and old.phase is not Phase.DEAD:
            raise AlreadyExists(f"sandbox {bundle.id} already running")
        if old is not None:
            self.go(old, Phase.GONE)
        entry = self._entries[key] = Entry(bundle, phase)
        return entry

    def go(self, entry: Entry, phase: Phase) -> None:
        """Take ``entry`` a phase on; raises ValueError for a way that there is not."""
        if phase not in TRANSITIONS[entry.phase]:
            raise ValueError(f"sandbox {entry.bundle.id} goes from {entry.phase} to {phase}")
        entry.phase = phase
        if phase is Phase.GONE:
            del self._entries[entry.bundle.namespace, entry.bundle.id]
        if phase is Phase.ENDING:
            entry.settled.clear()
        else:
            entry.settled.set()

    async def find(self, namespace: str, id: str, patience: float) -> Entry:
        """One that is there or dead, waiting ``patience`` seconds for one that is not settled.

        Raises NotFound, Unavailable.
        """
        entry = self._entries.get((namespace, id))
        if entry is None or entry.phase is Phase.CREATING:
            raise NotFound(f"sandbox {id}")
        if not entry.settled.is_set():
            try:
                async with asyncio.timeout(patience):
                    await entry.settled.wait()
            except TimeoutError:
                raise Unavailable(f"shim of sandbox {id} does not answer") from None
        if entry.phase is Phase.GONE:
            raise NotFound(f"sandbox {id}")
        return entry

    def dead(self, namespace: str, id: str) -> Ended | None:
        """How one ended whose shim is gone; None where there is no such."""
        entry = self._entries.get((namespace, id))
        return entry.ended if entry is not None and entry.phase is Phase.DEAD else None
