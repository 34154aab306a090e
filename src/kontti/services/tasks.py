"""containerd.services.tasks.v1.Tasks."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from kontti.api.services.tasks.v1 import tasks_pb2 as pb
from kontti.api.types.metrics_pb2 import Metric as ProtoMetric
from kontti.api.types.task.task_pb2 import Process as ProtoProcess
from kontti.api.types.task.task_pb2 import ProcessInfo as ProtoProcessInfo
from kontti.services import convert
from kontti.services.rpc import Context, scope_of
from kontti.tasks.base import CreateOptions, ExecOptions, Exit, Process, Stdio, Tasks
from kontti.values import AnyValue, Descriptor

RESTORE_PATH = "RestoreFromPath"
"""The annotation of a checkpoint that is a directory already (the CRI's)."""


class TasksService:
    """Adapts a task manager."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def create(
        self, request: pb.CreateTaskRequest, context: Context
    ) -> pb.CreateTaskResponse:
        options = CreateOptions(
            rootfs=convert.mounts_from_proto(request.rootfs),
            stdio=_stdio(request),
            checkpoint=_checkpoint(request),
            restore_path=request.checkpoint.annotations.get(RESTORE_PATH, ""),
            options=convert.any_from_proto(request.options),
            runtime_path=request.runtime_path,
            task_api_address=request.task_api_address,
            task_api_version=request.task_api_version,
        )
        pid = await self._tasks.create(scope_of(context), request.container_id, options)
        return pb.CreateTaskResponse(container_id=request.container_id, pid=pid)

    async def start(self, request: pb.StartRequest, context: Context) -> pb.StartResponse:
        pid = await self._tasks.start(scope_of(context), request.container_id, request.exec_id)
        return pb.StartResponse(pid=pid)

    async def delete(self, request: pb.DeleteTaskRequest, context: Context) -> pb.DeleteResponse:
        return _exit_to_proto(await self._tasks.delete(scope_of(context), request.container_id))

    async def delete_process(
        self, request: pb.DeleteProcessRequest, context: Context
    ) -> pb.DeleteResponse:
        ended = await self._tasks.delete_process(
            scope_of(context), request.container_id, request.exec_id
        )
        return _exit_to_proto(ended)

    async def get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        process = await self._tasks.get(scope_of(context), request.container_id, request.exec_id)
        return pb.GetResponse(process=_process_to_proto(process))

    async def list(self, _request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        found = await self._tasks.list(scope_of(context))
        return pb.ListTasksResponse(tasks=[_process_to_proto(p) for p in found])

    async def kill(self, request: pb.KillRequest, context: Context) -> Empty:
        await self._tasks.kill(
            scope_of(context),
            request.container_id,
            request.signal,
            exec_id=request.exec_id,
            all=request.all,
        )
        return Empty()

    async def exec(self, request: pb.ExecProcessRequest, context: Context) -> Empty:
        spec = AnyValue(request.spec.type_url, request.spec.value)
        options = ExecOptions(request.exec_id, spec, _stdio(request))
        await self._tasks.exec(scope_of(context), request.container_id, options)
        return Empty()

    async def resize_pty(self, request: pb.ResizePtyRequest, context: Context) -> Empty:
        await self._tasks.resize_pty(
            scope_of(context),
            request.container_id,
            request.exec_id,
            request.width,
            request.height,
        )
        return Empty()

    async def close_io(self, request: pb.CloseIORequest, context: Context) -> Empty:
        await self._tasks.close_io(
            scope_of(context), request.container_id, request.exec_id, request.stdin
        )
        return Empty()

    async def pause(self, request: pb.PauseTaskRequest, context: Context) -> Empty:
        await self._tasks.pause(scope_of(context), request.container_id)
        return Empty()

    async def resume(self, request: pb.ResumeTaskRequest, context: Context) -> Empty:
        await self._tasks.resume(scope_of(context), request.container_id)
        return Empty()

    async def list_pids(self, request: pb.ListPidsRequest, context: Context) -> pb.ListPidsResponse:
        found = await self._tasks.pids(scope_of(context), request.container_id)
        return pb.ListPidsResponse(
            processes=[
                ProtoProcessInfo(pid=p.pid, info=convert.any_to_proto(p.info)) for p in found
            ]
        )

    async def checkpoint(
        self, request: pb.CheckpointTaskRequest, context: Context
    ) -> pb.CheckpointTaskResponse:
        made = await self._tasks.checkpoint(
            scope_of(context), request.container_id, convert.any_from_proto(request.options)
        )
        return pb.CheckpointTaskResponse(
            descriptors=[convert.descriptor_to_proto(descriptor) for descriptor in made]
        )

    async def update(self, request: pb.UpdateTaskRequest, context: Context) -> Empty:
        resources = AnyValue(request.resources.type_url, request.resources.value)
        await self._tasks.update(
            scope_of(context), request.container_id, resources, dict(request.annotations)
        )
        return Empty()

    async def metrics(self, request: pb.MetricsRequest, context: Context) -> pb.MetricsResponse:
        found = await self._tasks.metrics(scope_of(context), list(request.filters))
        return pb.MetricsResponse(
            metrics=[
                ProtoMetric(
                    timestamp=convert.timestamp(m.timestamp),
                    id=m.id,
                    data=convert.any_to_proto(m.data),
                )
                for m in found
            ]
        )

    async def wait(self, request: pb.WaitRequest, context: Context) -> pb.WaitResponse:
        ended = await self._tasks.wait(scope_of(context), request.container_id, request.exec_id)
        return pb.WaitResponse(
            exit_status=ended.status, exited_at=convert.timestamp(ended.exited_at)
        )


def _checkpoint(request: pb.CreateTaskRequest) -> Descriptor | None:
    given = request.checkpoint
    return convert.descriptor_from_proto(given) if given.digest else None


def _stdio(request: pb.CreateTaskRequest | pb.ExecProcessRequest) -> Stdio:
    return Stdio(request.stdin, request.stdout, request.stderr, request.terminal)


def _exit_to_proto(ended: Exit) -> pb.DeleteResponse:
    return pb.DeleteResponse(
        id=ended.id,
        pid=ended.pid,
        exit_status=ended.status,
        exited_at=convert.timestamp(ended.exited_at),
    )


def _process_to_proto(process: Process) -> ProtoProcess:
    return ProtoProcess(
        container_id=process.container_id,
        id=process.exec_id or process.container_id,
        pid=process.pid,
        status=int(process.status),  # type: ignore[arg-type]
        stdin=process.stdio.stdin,
        stdout=process.stdio.stdout,
        stderr=process.stdio.stderr,
        terminal=process.stdio.terminal,
        exit_status=process.exit_status,
        exited_at=convert.timestamp(process.exited_at),
    )
