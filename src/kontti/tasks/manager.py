"""The task manager: containers' records into running processes, through shims."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass

from kontti.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from kontti.events.base import Publisher
from kontti.filters import field_adaptor, parse_all
from kontti.metadata.base import Container, Containers
from kontti.namespaces import Scope
from kontti.runtime.bundle import Bundle
from kontti.runtime.manager import RuntimeSettings, ShimManager
from kontti.runtime.shim import Shim
from kontti.tasks.base import (
    CreateOptions,
    ExecOptions,
    Exit,
    Metric,
    Process,
    ProcessInfo,
    Status,
    Stdio,
)
from kontti.values import EMPTY, AnyValue, check_identifier
from kontti.wire.messages.events.task import TaskDelete, TaskExit
from kontti.wire.messages.google import Any, Empty, Timestamp
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.messages.types.mount import Mount

log = logging.getLogger(__name__)
STATE_SECONDS = 2.0
STATS_SECONDS = 2.0
GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
Key = tuple[str, str]


@dataclass(slots=True)
class Task:
    """A task and its shim; ``shim`` is None while it is being created or cleaned."""

    bundle: Bundle
    shim: Shim | None = None


class TaskManager:
    """tasks.base.Tasks. Lives on one event loop; ``containers`` gives a scope's records."""

    def __init__(
        self,
        settings: RuntimeSettings,
        containers: Callable[[Scope], Containers],
        publisher: Publisher,
    ) -> None:
        self._containers = containers
        self._publisher = publisher
        self.shims = ShimManager(settings)
        self.shims.on_lost = self._lost
        self._tasks: dict[Key, Task] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Take over the tasks of an earlier daemon, all at once; what is dead is cleaned up."""
        bundles = await asyncio.to_thread(lambda: list(self.shims.bundles.all()))
        for bundle in bundles:
            self._tasks[bundle.namespace, bundle.id] = Task(bundle)
            self._spawn(self._load(bundle))

    async def loaded(self) -> None:
        """Wait until every task of ``load`` is there or gone."""
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _load(self, bundle: Bundle) -> None:
        key = bundle.namespace, bundle.id
        try:
            shim = await self.shims.load(bundle)
            answer = await shim.call(
                "State", api.StateRequest(id=bundle.id), api.StateResponse, STATE_SECONDS
            )
            log.info("task %s in %s is there, pid %d", bundle.id, bundle.namespace, answer.pid)
            self._tasks[key].shim = shim
        except (Error, TimeoutError) as error:
            log.warning("task %s in %s: %s; cleaning up", bundle.id, bundle.namespace, error)
            await self._clean(key)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _lost(self, shim: Shim, namespace: str) -> None:
        for id in list(shim.tasks):
            log.warning("the shim of task %s in %s is gone; cleaning up", id, namespace)
            self._spawn(self._clean((namespace, id)))

    async def _clean(self, key: Key) -> None:
        """A shim died: end what it kept, and say so."""
        task = self._tasks.get(key)
        if task is None:
            return
        task.shim = None
        ended = await self.shims.clean(task.bundle)
        self._tasks.pop(key, None)
        namespace, id = key
        stamp = ended.exited_at or _timestamp(time.time_ns())
        exit = TaskExit(
            container_id=id, id=id, pid=ended.pid, exit_status=ended.exit_status, exited_at=stamp
        )
        self._publisher.publish(namespace, "/tasks/exit", exit)
        deleted = TaskDelete(
            container_id=id, pid=ended.pid, exit_status=ended.exit_status, exited_at=stamp
        )
        self._publisher.publish(namespace, "/tasks/delete", deleted)

    def _task(self, scope: Scope, id: str) -> tuple[Task, Shim]:
        task = self._tasks.get((scope.namespace, id))
        if task is None:
            raise NotFound(f"task {id} not found")
        if task.shim is None:
            raise Unavailable(f"task {id} has no shim now")
        return task, task.shim

    async def _container(self, scope: Scope, id: str) -> Container:
        return await asyncio.to_thread(self._containers(scope).get, id)

    async def create(self, scope: Scope, id: str, options: CreateOptions) -> int:
        """tasks.base.Tasks.create."""
        container = await self._container(scope, id)
        if container.spec is None:
            raise InvalidArgument(f"container {id} has no spec")
        key = scope.namespace, id
        if key in self._tasks:
            raise AlreadyExists(f"task {id}")
        bundle = self.shims.bundles.of(scope.namespace, id)
        task = self._tasks[key] = Task(bundle)
        try:
            return await self._create(task, container, options)
        except BaseException:
            self._tasks.pop(key, None)
            raise

    async def _create(self, task: Task, container: Container, options: CreateOptions) -> int:
        spec = container.spec.value if container.spec else b""
        bundle = await asyncio.to_thread(
            self.shims.bundles.create, task.bundle.namespace, task.bundle.id, spec
        )
        packed = options.options or container.runtime_options
        try:
            shim = await self.shims.start(
                bundle,
                container.runtime,
                options.runtime_path,
                _any(packed).encode() if packed else b"",
                _group(spec),
            )
        except BaseException:
            await asyncio.to_thread(bundle.delete)
            raise
        task.shim = shim
        try:
            answer = await shim.call(
                "Create", _create_request(bundle, options, packed), api.CreateTaskResponse
            )
        except BaseException as error:
            await self.shims.stop(shim, bundle)
            if isinstance(error, Error):
                raise type(error)(f"failed to create shim task: {error.message}") from None
            raise
        return answer.pid

    async def start(self, scope: Scope, id: str, exec_id: str = "") -> int:
        """Let a created process run; its pid."""
        _, shim = self._task(scope, id)
        request = api.StartRequest(id=id, exec_id=exec_id)
        return (await shim.call("Start", request, api.StartResponse)).pid

    async def delete(self, scope: Scope, id: str) -> Exit:
        """Delete a stopped task, with its shim if that has no other."""
        task, shim = self._task(scope, id)
        state = await self._state(shim, id, "")
        if state.status not in (Status.STOPPED, Status.CREATED):
            name = Status(state.status).name.lower()
            raise FailedPrecondition(f"task must be stopped before deletion: {name}")
        ended = await shim.call("Delete", api.DeleteRequest(id=id), api.DeleteResponse)
        self._tasks.pop((scope.namespace, id), None)
        await self.shims.stop(shim, task.bundle)
        return _exit(id, ended)

    async def delete_process(self, scope: Scope, id: str, exec_id: str) -> Exit:
        """Delete a stopped exec."""
        _, shim = self._task(scope, id)
        request = api.DeleteRequest(id=id, exec_id=exec_id)
        return _exit(exec_id, await shim.call("Delete", request, api.DeleteResponse))

    async def _state(self, shim: Shim, id: str, exec_id: str) -> api.StateResponse:
        request = api.StateRequest(id=id, exec_id=exec_id)
        return await shim.call("State", request, api.StateResponse, STATE_SECONDS)

    async def get(self, scope: Scope, id: str, exec_id: str = "") -> Process:
        """What a process is doing."""
        _, shim = self._task(scope, id)
        return _process(id, await self._state(shim, id, exec_id))

    async def list(self, scope: Scope) -> Sequence[Process]:
        """Every task of the namespace; one whose shim does not answer is UNKNOWN."""
        ids = [id for namespace, id in self._tasks if namespace == scope.namespace]
        return await asyncio.gather(*(self._brief(scope, id) for id in sorted(ids)))

    async def _brief(self, scope: Scope, id: str) -> Process:
        try:
            return await self.get(scope, id)
        except Error as error:
            log.warning("task %s: %s", id, error)
            return Process(id, "", 0, Status.UNKNOWN)

    async def kill(
        self, scope: Scope, id: str, signal: int, *, exec_id: str = "", all: bool = False
    ) -> None:
        """Send a signal."""
        _, shim = self._task(scope, id)
        request = api.KillRequest(id=id, exec_id=exec_id, signal=signal, all=all)
        await shim.call("Kill", request, Empty)

    async def exec(self, scope: Scope, id: str, options: ExecOptions) -> None:
        """Add a process, to be started."""
        check_identifier(options.exec_id, "exec id")
        _, shim = self._task(scope, id)
        stdio = options.stdio
        request = api.ExecProcessRequest(
            id=id,
            exec_id=options.exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=_any(options.spec),
        )
        await shim.call("Exec", request, Empty)

    async def resize_pty(
        self, scope: Scope, id: str, exec_id: str, width: int, height: int
    ) -> None:
        """Set the size of a process's terminal."""
        _, shim = self._task(scope, id)
        request = api.ResizePtyRequest(id=id, exec_id=exec_id, width=width, height=height)
        await shim.call("ResizePty", request, Empty)

    async def close_io(self, scope: Scope, id: str, exec_id: str, stdin: bool) -> None:
        """Nothing more comes on stdin."""
        _, shim = self._task(scope, id)
        await shim.call("CloseIO", api.CloseIORequest(id=id, exec_id=exec_id, stdin=stdin), Empty)

    async def pause(self, scope: Scope, id: str) -> None:
        """Freeze."""
        _, shim = self._task(scope, id)
        await shim.call("Pause", api.PauseRequest(id=id), Empty)

    async def resume(self, scope: Scope, id: str) -> None:
        """Thaw."""
        _, shim = self._task(scope, id)
        await shim.call("Resume", api.ResumeRequest(id=id), Empty)

    async def pids(self, scope: Scope, id: str) -> Sequence[ProcessInfo]:
        """Every process in the container."""
        _, shim = self._task(scope, id)
        found = await shim.call("Pids", api.PidsRequest(id=id), api.PidsResponse)
        return [
            ProcessInfo(p.pid, AnyValue(p.info.type_url, p.info.value) if p.info else None)
            for p in found.processes
        ]

    async def update(
        self, scope: Scope, id: str, resources: AnyValue, annotations: Mapping[str, str] = EMPTY
    ) -> None:
        """Change limits."""
        _, shim = self._task(scope, id)
        request = api.UpdateTaskRequest(id=id, resources=_any(resources), annotations=annotations)
        await shim.call("Update", request, Empty)

    async def metrics(self, scope: Scope, filters: Sequence[str] = ()) -> Sequence[Metric]:
        """cgroup figures of the tasks that match; one that has none is left out."""
        wanted = parse_all(filters)
        ids = [
            id
            for namespace, id in self._tasks
            if namespace == scope.namespace and wanted.match(field_adaptor({"id": id}))
        ]
        found = await asyncio.gather(*(self._metric(scope, id) for id in sorted(ids)))
        return [metric for metric in found if metric is not None]

    async def _metric(self, scope: Scope, id: str) -> Metric | None:
        try:
            _, shim = self._task(scope, id)
            request = api.StatsRequest(id=id)
            answer = await shim.call("Stats", request, api.StatsResponse, STATS_SECONDS)
        except Error as error:
            log.info("metrics of task %s: %s", id, error)
            return None
        if answer.stats is None:
            return None
        data = AnyValue(answer.stats.type_url, answer.stats.value)
        return Metric(id, time.time_ns(), data)

    async def wait(self, scope: Scope, id: str, exec_id: str = "") -> Exit:
        """Until the process has ended."""
        _, shim = self._task(scope, id)
        try:
            ended = await shim.wait(id, exec_id)
        except Unavailable:
            # the shim died with it: what its cleaning up says is how it ended
            return Exit(exec_id or id, 0, 137, time.time_ns())
        return Exit(exec_id or id, 0, ended.exit_status, _ns(ended.exited_at))

    async def close(self) -> None:
        """Let go of every shim; tasks go on."""
        for work in list(self._background):
            work.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.shims.on_lost = lambda _shim, _namespace: None
        await self.shims.close()


def _create_request(
    bundle: Bundle, options: CreateOptions, packed: AnyValue | None
) -> api.CreateTaskRequest:
    stdio = options.stdio
    return api.CreateTaskRequest(
        id=bundle.id,
        bundle=bundle.path,
        rootfs=[
            Mount(type=m.type, source=m.source, target=m.target, options=m.options)
            for m in options.rootfs
        ],
        terminal=stdio.terminal,
        stdin=stdio.stdin,
        stdout=stdio.stdout,
        stderr=stdio.stderr,
        checkpoint=options.checkpoint,
        options=_any(packed) if packed else None,
    )


def _group(spec: bytes) -> str:
    """The group whose shim the task shares, by the spec's annotations; "" for none."""
    if not any(name.encode() in spec for name in GROUP_ANNOTATIONS):
        return ""
    try:
        annotations = json.loads(spec).get("annotations") or {}
    except (ValueError, AttributeError):
        return ""
    return next((str(annotations[n]) for n in GROUP_ANNOTATIONS if n in annotations), "")


def _any(value: AnyValue) -> Any:
    return Any(type_url=value.type_url, value=value.value)


def _ns(stamp: Timestamp | None) -> int:
    return stamp.seconds * 10**9 + stamp.nanos if stamp else 0


def _timestamp(ns: int) -> Timestamp:
    return Timestamp(seconds=ns // 10**9, nanos=ns % 10**9)


def _exit(id: str, ended: api.DeleteResponse) -> Exit:
    return Exit(id, ended.pid, ended.exit_status, _ns(ended.exited_at))


def _process(id: str, state: api.StateResponse) -> Process:
    return Process(
        container_id=id,
        exec_id=state.exec_id,
        pid=state.pid,
        status=Status(state.status),
        stdio=Stdio(state.stdin, state.stdout, state.stderr, state.terminal),
        exit_status=state.exit_status,
        exited_at=_ns(state.exited_at),
    )
