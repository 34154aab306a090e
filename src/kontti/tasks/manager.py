"""The task manager: containers' records into running processes, through shims."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from kontti.errors import Error, InvalidArgument, NotFound, Unavailable
from kontti.events.base import Publisher
from kontti.filters import field_adaptor, parse_all
from kontti.metadata.base import Container, Containers
from kontti.mounts.base import Mounts
from kontti.namespaces import Scope
from kontti.runtime.bundle import BUILTIN
from kontti.runtime.manager import RuntimeSettings, ShimManager
from kontti.runtime.shim import Shim
from kontti.tasks import convert, streams
from kontti.tasks.base import (
    CreateOptions,
    ExecOptions,
    Exit,
    Metric,
    Process,
    ProcessInfo,
    Status,
)
from kontti.tasks.checkpoints import Checkpoints
from kontti.tasks.life import Lifecycle
from kontti.tasks.table import Phase, Task, TaskTable
from kontti.values import EMPTY, AnyValue, Descriptor, check_identifier, shown
from kontti.wire.messages.google import Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.protobuf import Message

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
CHANGES = frozenset(("Start", "Pause", "Resume", "Checkpoint"))
"""Calls after which a running task may be in another state."""


class TaskManager:
    """tasks.base.Tasks. Lives on one event loop; ``containers`` gives a scope's records.

    Without ``checkpoints`` a task's state can be written to a directory alone.
    ``mounts`` makes what the system cannot of root file systems.
    """

    def __init__(
        self,
        settings: RuntimeSettings,
        containers: Callable[[Scope], Containers],
        publisher: Publisher,
        checkpoints: Checkpoints | None = None,
        *,
        mounts: Mounts | None = None,
    ) -> None:
        self._settings = settings
        self._containers = containers
        self._table = TaskTable()
        self._life = Lifecycle(settings, self._table, publisher, checkpoints, mounts=mounts)

    @property
    def shims(self) -> ShimManager:
        """What starts shims."""
        return self._life.shims

    async def load(self) -> None:
        """Take over the tasks of an earlier daemon; does not wait for their shims.

        What is dead is cleaned up, and said to have ended.
        """
        await self._life.load()

    async def loaded(self) -> None:
        """Wait until every task of ``load`` is there or gone."""
        await self._life.loaded()

    async def _call(
        self, scope: Scope, id: str, method: str, request: Message, response: type[M]
    ) -> M:
        """One call of the shim of a task; raises NotFound, Unavailable, what the shim answers."""
        task, shim = await self._ready(scope, id)
        changing = task.brief.changing() if method in CHANGES else contextlib.nullcontext()
        try:
            with changing:
                return await shim.call(method, request, response)
        except Unavailable:
            if task.phase is Phase.GONE:
                raise NotFound(f"task {id} not found") from None
            raise

    async def _ready(self, scope: Scope, id: str) -> tuple[Task, Shim]:
        """A task and its shim; raises NotFound for the container where there is none either."""
        try:
            return await self._table.ready(scope.namespace, id, self._settings.state_seconds)
        except NotFound:
            await self._container(scope, id)
            raise

    async def _container(self, scope: Scope, id: str) -> Container:
        return await asyncio.to_thread(self._containers(scope).get, id)

    async def create(self, scope: Scope, id: str, options: CreateOptions) -> int:
        """tasks.base.Tasks.create."""
        container = await self._container(scope, id)
        if container.spec is None:
            raise InvalidArgument(f"container {id} has no spec")
        bundle = self.shims.bundles.of(scope.namespace, id)
        return await self._life.create(bundle, container, options)

    async def start(self, scope: Scope, id: str, exec_id: str = "") -> int:
        """Let a created process run; its pid."""
        request = api.StartRequest(id=id, exec_id=exec_id)
        return (await self._call(scope, id, "Start", request, api.StartResponse)).pid

    async def delete(self, scope: Scope, id: str) -> Exit:
        """Delete a stopped task, with its shim if that has no other."""
        task, shim = await self._ready(scope, id)
        return await self._life.delete(task, shim)

    async def delete_process(self, scope: Scope, id: str, exec_id: str) -> Exit:
        """Delete a stopped exec."""
        if not exec_id:
            raise InvalidArgument("exec id cannot be empty")
        request = api.DeleteRequest(id=id, exec_id=exec_id)
        ended = await self._call(scope, id, "Delete", request, api.DeleteResponse)
        return convert.exit_of(exec_id, ended)

    async def get(self, scope: Scope, id: str, exec_id: str = "") -> Process:
        """What a process is doing."""
        task, shim = await self._ready(scope, id)
        turn = task.brief.turn
        try:
            state = await shim.state(id, exec_id, self._settings.state_seconds)
            process = convert.process(id, state)
            if not exec_id:
                task.brief.note(turn, process, shim.pid)
            return process
        except Unavailable:
            if task.phase is Phase.GONE:
                raise NotFound(f"task {id} not found") from None
            raise

    async def list(self, scope: Scope) -> Sequence[Process]:
        """Every task of the namespace; one whose shim does not answer is UNKNOWN."""
        tasks = self._table.visible(scope.namespace)
        known = {task.bundle.id: task.brief.known() for task in tasks}
        asked = [id for id, process in known.items() if process is None]
        answers = await asyncio.gather(*(self._ask(scope, id) for id in asked))
        known.update(zip(asked, answers, strict=True))
        return [process for process in known.values() if process is not None]

    async def _ask(self, scope: Scope, id: str) -> Process | None:
        try:
            task, _ = await self._ready(scope, id)
            # one that was being taken over has just been asked
            return task.brief.known() or await self.get(scope, id)
        except NotFound:
            return None
        except Error as error:
            log.warning("task %s: %s", id, error)
            return Process(id, "", 0, Status.UNKNOWN)

    async def kill(
        self, scope: Scope, id: str, signal: int, *, exec_id: str = "", all: bool = False
    ) -> None:
        """Send a signal."""
        request = api.KillRequest(id=id, exec_id=exec_id, signal=signal, all=all)
        await self._call(scope, id, "Kill", request, Empty)

    async def exec(self, scope: Scope, id: str, options: ExecOptions) -> None:
        """Add a process, to be started."""
        _check_exec_id(options.exec_id)
        task, _ = await self._ready(scope, id)
        own = task.bundle.binary() == BUILTIN
        stdio = streams.for_task(options.stdio, dict(self._settings.log_options), own=own)
        request = convert.exec_request(id, replace(options, stdio=stdio))
        await self._call(scope, id, "Exec", request, Empty)

    async def resize_pty(
        self, scope: Scope, id: str, exec_id: str, width: int, height: int
    ) -> None:
        """Set the size of a process's terminal."""
        request = api.ResizePtyRequest(id=id, exec_id=exec_id, width=width, height=height)
        await self._call(scope, id, "ResizePty", request, Empty)

    async def close_io(self, scope: Scope, id: str, exec_id: str, stdin: bool) -> None:
        """Nothing more comes on stdin."""
        request = api.CloseIORequest(id=id, exec_id=exec_id, stdin=stdin)
        await self._call(scope, id, "CloseIO", request, Empty)

    async def pause(self, scope: Scope, id: str) -> None:
        """Freeze."""
        await self._call(scope, id, "Pause", api.PauseRequest(id=id), Empty)

    async def resume(self, scope: Scope, id: str) -> None:
        """Thaw."""
        await self._call(scope, id, "Resume", api.ResumeRequest(id=id), Empty)

    async def pids(self, scope: Scope, id: str) -> Sequence[ProcessInfo]:
        """Every process in the container."""
        request = api.PidsRequest(id=id)
        return convert.process_infos(await self._call(scope, id, "Pids", request, api.PidsResponse))

    async def checkpoint(
        self, scope: Scope, id: str, options: AnyValue | None = None
    ) -> Sequence[Descriptor]:
        """tasks.base.Tasks.checkpoint."""
        container = await self._container(scope, id)
        task, _ = await self._table.ready(scope.namespace, id, self._settings.state_seconds)
        if container.spec is None:
            raise InvalidArgument(f"container {id} has no spec")
        return await self._life.checkpoint(scope, task, container.spec, options)

    async def update(
        self, scope: Scope, id: str, resources: AnyValue, annotations: Mapping[str, str] = EMPTY
    ) -> None:
        """Change limits."""
        request = api.UpdateTaskRequest(
            id=id, resources=convert.to_any(resources), annotations=annotations
        )
        await self._call(scope, id, "Update", request, Empty)

    async def metrics(self, scope: Scope, filters: Sequence[str] = ()) -> Sequence[Metric]:
        """cgroup figures of the tasks that match; one that has none is left out."""
        wanted = parse_all(filters)
        ids = [
            id
            for id in (task.bundle.id for task in self._table.visible(scope.namespace))
            if wanted.match(field_adaptor({"id": id, "namespace": scope.namespace}))
        ]
        found = await asyncio.gather(*(self._metric(scope, id) for id in ids))
        return [metric for metric in found if metric is not None]

    async def _metric(self, scope: Scope, id: str) -> Metric | None:
        patience = self._settings.stats_seconds
        try:
            _, shim = await self._table.ready(scope.namespace, id, patience)
            request = api.StatsRequest(id=id)
            answer = await shim.call("Stats", request, api.StatsResponse, patience)
        except Error as error:
            log.info("metrics of task %s: %s", id, error)
            return None
        data = convert.from_any(answer.stats)
        return Metric(id, time.time_ns(), data) if data is not None else None

    async def wait(self, scope: Scope, id: str, exec_id: str = "") -> Exit:
        """Until the process has ended."""
        task, shim = await self._ready(scope, id)
        try:
            ended = await shim.wait(id, exec_id)
        except Unavailable:
            if task.phase is Phase.READY:
                raise
            # the shim died with it: what its cleaning up says is how it ended
            await task.settled.wait()
            if task.exit is None:
                raise NotFound(f"task {id} not found") from None
            return replace(task.exit, id=exec_id or id)
        return Exit(exec_id or id, 0, ended.exit_status, convert.to_ns(ended.exited_at))

    async def close(self) -> None:
        """Let go of every shim; tasks go on."""
        await self._life.close()


def _check_exec_id(exec_id: str) -> None:
    if not exec_id:
        raise InvalidArgument("exec id cannot be empty")
    check_identifier(exec_id, f"invalid exec id {shown(exec_id)}")
