"""The tasks that a manager knows, and how far each is in its life."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from kontti.errors import AlreadyExists, NotFound, Unavailable
from kontti.runtime.bundle import Bundle
from kontti.runtime.shim import Shim
from kontti.tasks.base import Exit
from kontti.tasks.brief import Brief


class Phase(enum.Enum):
    """CREATING is invisible; LOADING and ENDING are over soon, and callers wait for that."""

    CREATING = enum.auto()
    LOADING = enum.auto()
    READY = enum.auto()
    ENDING = enum.auto()
    GONE = enum.auto()


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.CREATING: frozenset({Phase.READY, Phase.GONE}),
    Phase.LOADING: frozenset({Phase.READY, Phase.ENDING, Phase.GONE}),
    Phase.READY: frozenset({Phase.ENDING}),
    Phase.ENDING: frozenset({Phase.GONE}),
    Phase.GONE: frozenset(),
}


@dataclass(slots=True, eq=False)
class Task:
    """One task. ``exit`` is how it ended, once it is GONE after it was there."""

    bundle: Bundle
    phase: Phase
    shim: Shim | None = None
    exit: Exit | None = None
    brief: Brief = field(default_factory=Brief)
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class TaskTable:
    """Tasks by namespace and id; one of each name at a time."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str], Task] = {}

    def __iter__(self) -> Iterator[Task]:
        return iter(list(self._tasks.values()))

    def claim(self, bundle: Bundle, phase: Phase) -> Task:
        """A new task in CREATING or LOADING; raises AlreadyExists."""
        key = bundle.namespace, bundle.id
        if key in self._tasks:
            raise AlreadyExists(f"task {bundle.id}")
        task = self._tasks[key] = Task(bundle, phase)
        return task

    def go(self, task: Task, phase: Phase) -> None:
        """Take ``task`` a phase on; raises ValueError for a way that there is not."""
        if phase not in TRANSITIONS[task.phase]:
            raise ValueError(f"task {task.bundle.id} goes from {task.phase} to {phase}")
        task.phase = phase
        task.brief.drop()
        if phase is Phase.GONE:
            del self._tasks[task.bundle.namespace, task.bundle.id]
        if phase is Phase.ENDING:
            task.settled.clear()
        else:
            task.settled.set()

    def visible(self, namespace: str) -> list[Task]:
        """A namespace's tasks, by id; one that is being created is not there yet."""
        return [
            task
            for (space, _), task in sorted(self._tasks.items())
            if space == namespace and task.phase is not Phase.CREATING
        ]

    async def ready(self, namespace: str, id: str, patience: float) -> tuple[Task, Shim]:
        """A task and its shim, waiting ``patience`` seconds for one that is not settled.

        Raises NotFound, Unavailable.
        """
        task = self._tasks.get((namespace, id))
        if task is None or task.phase is Phase.CREATING:
            raise NotFound(f"task {id} not found")
        if not task.settled.is_set():
            try:
                async with asyncio.timeout(patience):
                    await task.settled.wait()
            except TimeoutError:
                raise Unavailable(f"shim of task {id} does not answer") from None
        if task.phase is not Phase.READY or task.shim is None:
            raise NotFound(f"task {id} not found")
        return task, task.shim
