"""A daemon's tasks over the wire: tasks.base.Tasks.

What it awaits are calls, and ``drive`` makes them: a quick command needs no event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from kontti.client.convert import (
    any_from_wire,
    any_to_wire,
    descriptor_from_wire,
    descriptor_to_wire,
    mounts_to_wire,
    nanoseconds,
)
from kontti.namespaces import Scope
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
from kontti.values import EMPTY, AnyValue, Descriptor
from kontti.wire.messages.google import Empty
from kontti.wire.messages.services.tasks.v1 import tasks as api
from kontti.wire.messages.types.descriptor import Descriptor as WireDescriptor
from kontti.wire.messages.types.task.task import Process as WireProcess
from kontti.wire.protobuf import Message

SERVICE = "containerd.services.tasks.v1.Tasks/"
RESTORE_PATH = "RestoreFromPath"
"""The annotation of a checkpoint that is a directory (the CRI's)."""
T = TypeVar("T")
M = TypeVar("M", bound=Message)


class Call(Generic[M]):
    """One call of the daemon in ``scope``; ``await`` has whoever drives the coroutine make it."""

    __slots__ = ("method", "request", "response", "scope")

    def __init__(self, scope: Scope, method: str, request: Message, response: type[M]) -> None:
        self.scope = scope
        self.method = SERVICE + method
        self.request = request
        self.response = response

    def __await__(self) -> Generator[Call[M], M, M]:
        answer = yield self
        return answer


def drive(work: Coroutine[Any, Any, T], perform: Callable[[Call[Any]], Message]) -> T:
    """Run ``work`` to its end, each call it awaits made by ``perform``."""
    try:
        call = work.send(None)
        while True:
            try:
                answer = perform(call)
            except BaseException as error:  # noqa: BLE001 it is the coroutine's to deal with
                call = work.throw(error)
            else:
                call = work.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        work.close()


class RemoteTasks:
    """tasks.base.Tasks, for ``drive``."""

    async def create(self, scope: Scope, id: str, options: CreateOptions) -> int:
        """The pid of the waiting process."""
        request = api.CreateTaskRequest(
            container_id=id,
            rootfs=mounts_to_wire(options.rootfs),
            stdin=options.stdio.stdin,
            stdout=options.stdio.stdout,
            stderr=options.stdio.stderr,
            terminal=options.stdio.terminal,
            checkpoint=_checkpoint(options),
            options=any_to_wire(options.options),
            runtime_path=options.runtime_path,
            task_api_address=options.task_api_address,
            task_api_version=options.task_api_version,
        )
        return (await Call(scope, "Create", request, api.CreateTaskResponse)).pid

    async def start(self, scope: Scope, id: str, exec_id: str = "") -> int:
        """Let a created process run; its pid."""
        request = api.StartRequest(container_id=id, exec_id=exec_id)
        return (await Call(scope, "Start", request, api.StartResponse)).pid

    async def delete(self, scope: Scope, id: str) -> Exit:
        """Delete a stopped task."""
        request = api.DeleteTaskRequest(container_id=id)
        return _exit(id, await Call(scope, "Delete", request, api.DeleteResponse))

    async def delete_process(self, scope: Scope, id: str, exec_id: str) -> Exit:
        """Delete a stopped exec."""
        request = api.DeleteProcessRequest(container_id=id, exec_id=exec_id)
        return _exit(exec_id, await Call(scope, "DeleteProcess", request, api.DeleteResponse))

    async def get(self, scope: Scope, id: str, exec_id: str = "") -> Process:
        """What a process is doing."""
        request = api.GetRequest(container_id=id, exec_id=exec_id)
        answer = await Call(scope, "Get", request, api.GetResponse)
        return _process(answer.process or WireProcess(), id, exec_id)

    async def list(self, scope: Scope) -> Sequence[Process]:
        """Every task of the namespace."""
        answer = await Call(scope, "List", api.ListTasksRequest(), api.ListTasksResponse)
        # the id of a task is its container's, which older daemons leave out
        return [_process(found, found.container_id or found.id, "") for found in answer.tasks]

    async def kill(
        self, scope: Scope, id: str, signal: int, *, exec_id: str = "", all: bool = False
    ) -> None:
        """Send a signal."""
        request = api.KillRequest(container_id=id, exec_id=exec_id, signal=signal, all=all)
        await Call(scope, "Kill", request, Empty)

    async def exec(self, scope: Scope, id: str, options: ExecOptions) -> None:
        """Add a process, to be started."""
        request = api.ExecProcessRequest(
            container_id=id,
            exec_id=options.exec_id,
            stdin=options.stdio.stdin,
            stdout=options.stdio.stdout,
            stderr=options.stdio.stderr,
            terminal=options.stdio.terminal,
            spec=any_to_wire(options.spec),
        )
        await Call(scope, "Exec", request, Empty)

    async def resize_pty(
        self, scope: Scope, id: str, exec_id: str, width: int, height: int
    ) -> None:
        """Set the size of a process's terminal."""
        request = api.ResizePtyRequest(container_id=id, exec_id=exec_id, width=width, height=height)
        await Call(scope, "ResizePty", request, Empty)

    async def close_io(self, scope: Scope, id: str, exec_id: str, stdin: bool) -> None:
        """Nothing more comes on stdin."""
        request = api.CloseIORequest(container_id=id, exec_id=exec_id, stdin=stdin)
        await Call(scope, "CloseIO", request, Empty)

    async def pause(self, scope: Scope, id: str) -> None:
        """Freeze."""
        await Call(scope, "Pause", api.PauseTaskRequest(container_id=id), Empty)

    async def resume(self, scope: Scope, id: str) -> None:
        """Thaw."""
        await Call(scope, "Resume", api.ResumeTaskRequest(container_id=id), Empty)

    async def pids(self, scope: Scope, id: str) -> Sequence[ProcessInfo]:
        """Every process in the container."""
        request = api.ListPidsRequest(container_id=id)
        answer = await Call(scope, "ListPids", request, api.ListPidsResponse)
        return [ProcessInfo(found.pid, any_from_wire(found.info)) for found in answer.processes]

    async def checkpoint(
        self, scope: Scope, id: str, options: AnyValue | None = None
    ) -> Sequence[Descriptor]:
        """Have the task's state written."""
        request = api.CheckpointTaskRequest(container_id=id, options=any_to_wire(options))
        answer = await Call(scope, "Checkpoint", request, api.CheckpointTaskResponse)
        return [descriptor_from_wire(found) for found in answer.descriptors]

    async def update(
        self, scope: Scope, id: str, resources: AnyValue, annotations: Mapping[str, str] = EMPTY
    ) -> None:
        """Change limits."""
        request = api.UpdateTaskRequest(
            container_id=id, resources=any_to_wire(resources), annotations=annotations
        )
        await Call(scope, "Update", request, Empty)

    async def metrics(self, scope: Scope, filters: Sequence[str] = ()) -> Sequence[Metric]:
        """cgroup figures of the tasks that match."""
        request = api.MetricsRequest(filters=filters)
        answer = await Call(scope, "Metrics", request, api.MetricsResponse)
        return [
            Metric(found.id, nanoseconds(found.timestamp), data)
            for found in answer.metrics
            if (data := any_from_wire(found.data)) is not None
        ]

    async def wait(self, scope: Scope, id: str, exec_id: str = "") -> Exit:
        """Until the process has ended."""
        request = api.WaitRequest(container_id=id, exec_id=exec_id)
        ended = await Call(scope, "Wait", request, api.WaitResponse)
        return Exit(exec_id or id, 0, ended.exit_status, nanoseconds(ended.exited_at))


def _checkpoint(options: CreateOptions) -> WireDescriptor | None:
    if options.restore_path:
        return WireDescriptor(annotations={RESTORE_PATH: options.restore_path})
    return descriptor_to_wire(options.checkpoint) if options.checkpoint else None


def _exit(id: str, message: api.DeleteResponse) -> Exit:
    return Exit(id, message.pid, message.exit_status, nanoseconds(message.exited_at))


def _process(message: WireProcess, id: str, exec_id: str) -> Process:
    known = message.status in Status._value2member_map_
    return Process(
        id,
        exec_id,
        message.pid,
        Status(message.status) if known else Status.UNKNOWN,
        Stdio(message.stdin, message.stdout, message.stderr, message.terminal),
        message.exit_status,
        nanoseconds(message.exited_at),
    )
