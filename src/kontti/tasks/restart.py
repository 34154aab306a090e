"""Starts again what ended and whose container asks for it by its labels (tasks.labels).

``plan`` decides, ``Monitor`` looks and performs: when a task exits, and each interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from kontti.errors import Error, NotFound
from kontti.events.base import Envelope, Exchange
from kontti.metadata.base import Container, Metadata
from kontti.namespaces import Scope
from kontti.tasks.base import CreateOptions, Process, Status, Stdio, Tasks
from kontti.tasks.labels import (
    COUNT,
    EXPLICITLY_STOPPED,
    LOG_URI,
    OLD_LOG_PATH,
    POLICY,
    STATUS,
)
from kontti.values import Mount
from kontti.wire.log_uri import LABEL as KEPT
from kontti.wire.log_uri import is_log

log = logging.getLogger(__name__)
FILTER = f'labels."{STATUS}"'
FIRST_DELAY = 0.1
STEADY_SECONDS = 10.0
_UNTIL_KILLED = 10.0
_SIGKILL = 9


class Action(Enum):
    """What is to be done about a container."""

    NOTHING = "nothing"
    START = "start"
    STOP = "stop"


def plan(labels: Mapping[str, str], process: Process | None) -> Action:
    """What the labels of a container want done, its task being ``process``."""
    wanted = labels.get(STATUS, "")
    status = process.status if process else Status.UNKNOWN
    up = status in (Status.RUNNING, Status.PAUSED, Status.PAUSING)
    if wanted == "stopped":
        return Action.STOP if up else Action.NOTHING
    if wanted != "running" or up or status == Status.CREATED:
        return Action.NOTHING
    return Action.START if again(labels, process) else Action.NOTHING


def again(labels: Mapping[str, str], process: Process | None) -> bool:
    """Whether the policy starts a task that is not there any more, or ended as ``process`` did."""
    policy, _, most = labels.get(POLICY, "always").partition(":")
    if policy == "unless-stopped":
        return labels.get(EXPLICITLY_STOPPED) != "true"
    if policy == "on-failure":
        failed = process is None or process.exit_status != 0
        return failed and (not most or count(labels) < _number(most))
    return policy in ("always", "")


def count(labels: Mapping[str, str]) -> int:
    """How often a container was started again."""
    return _number(labels.get(COUNT, "0"))


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def log_uri(labels: Mapping[str, str]) -> str:
    """Where output goes; the older label is a path."""
    path = labels.get(OLD_LOG_PATH, "")
    wanted = labels.get(LOG_URI, "") or (f"file://{path}" if path else "")
    before = labels.get(KEPT, "")
    return wanted or (before if is_log(before) else "")


@dataclass(slots=True)
class _Backoff:
    """How long to wait before a container is started once more."""

    delay: float = 0.0
    not_before: float = 0.0

    def started(self, now: float, longest: float) -> None:
        """It was started; one that ran a good while begins anew."""
        ran_well = self.not_before and now - self.not_before > STEADY_SECONDS
        self.delay = FIRST_DELAY if not self.delay or ran_well else min(self.delay * 2, longest)
        self.not_before = now + self.delay


class Monitor:
    """Restarts tasks of ``metadata``'s containers until closed. ``interval`` in seconds."""

    def __init__(
        self, metadata: Metadata, tasks: Tasks, exchange: Exchange, interval: float
    ) -> None:
        self._metadata, self._tasks, self._interval = metadata, tasks, interval
        self._loop = asyncio.get_running_loop()
        self._look = asyncio.Event()
        self._backoff: dict[tuple[str, str], _Backoff] = {}
        self._subscription = exchange.subscribe(['topic=="/tasks/exit"'], self._exited)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop looking."""
        self._subscription.close()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _exited(self, _event: Envelope) -> None:
        self._loop.call_soon_threadsafe(self._look.set)

    async def _run(self) -> None:
        while True:
            try:
                pause = await self._look_at_all()
            except Error as error:
                log.error("restart monitor: %s", error.message)
                pause = self._interval
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), pause)
            self._look.clear()

    async def _look_at_all(self) -> float:
        """Reconcile every container that asks for it; seconds until the next is due."""
        wanting = await asyncio.to_thread(self._wanting)
        known = {(scope.namespace, container.id) for scope, container in wanting}
        self._backoff = {k: v for k, v in self._backoff.items() if k in known}
        due = await asyncio.gather(*(self._reconcile(*each) for each in wanting))
        return min([self._interval, *due])

    def _wanting(self) -> list[tuple[Scope, Container]]:
        found = []
        for namespace in self._metadata.namespaces.list():
            scope = Scope.of(namespace.name)
            containers = self._metadata.containers(scope).list([FILTER])
            found += [(scope, container) for container in containers]
        return found

    async def _reconcile(self, scope: Scope, container: Container) -> float:
        try:
            process = await self._process(scope, container.id)
            action = plan(container.labels, process)
            if action is Action.STOP:
                await self._stop(scope, container.id)
            elif action is Action.START:
                return await self._start_in_time(scope, container, process)
        except Error as error:
            log.error("failed to reconcile %s/%s: %s", scope.namespace, container.id, error.message)
        return self._interval

    async def _process(self, scope: Scope, id: str) -> Process | None:
        try:
            return await self._tasks.get(scope, id)
        except NotFound:
            return None

    async def _stop(self, scope: Scope, id: str) -> None:
        with contextlib.suppress(NotFound):
            await self._tasks.kill(scope, id, _SIGKILL)
            await asyncio.wait_for(self._tasks.wait(scope, id), _UNTIL_KILLED)
            await self._tasks.delete(scope, id)

    async def _start_in_time(
        self, scope: Scope, container: Container, process: Process | None
    ) -> float:
        backoff = self._backoff.setdefault((scope.namespace, container.id), _Backoff())
        left = backoff.not_before - self._loop.time()
        if left > 0:
            return left
        backoff.started(self._loop.time(), self._interval)
        await self._start(scope, container, process)
        return backoff.delay

    async def _start(self, scope: Scope, container: Container, process: Process | None) -> None:
        if process is not None:
            await self._tasks.delete(scope, container.id)
        labels = container.labels
        stdio = process.stdio if process is not None else Stdio()
        uri = log_uri(labels)
        stdio = Stdio(stdout=uri, stderr=uri) if uri else replace(stdio, stdin="", terminal=False)
        prepare = asyncio.to_thread(self._prepare, scope, container)
        options = CreateOptions(rootfs=await prepare, stdio=stdio)
        await self._tasks.create(scope, container.id, options)
        await self._tasks.start(scope, container.id)
        log.info("started %s/%s again", scope.namespace, container.id)

    def _prepare(self, scope: Scope, container: Container) -> list[Mount]:
        """Count, and find the root file system's mounts."""
        counted = replace(container, labels={COUNT: str(count(container.labels) + 1)})
        self._metadata.containers(scope).update(counted, [f"labels.{COUNT}"])
        if not container.snapshot_key:
            return []
        snapshots = self._metadata.snapshots(scope, container.snapshotter)
        return list(snapshots.mounts(container.snapshot_key))
