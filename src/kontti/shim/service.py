"""The Task service of a shim: containerd.task.v2 and v3, which differ by name alone."""

from __future__ import annotations

import os
import signal
import time

from kontti.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    NotFound,
    Unavailable,
    Unimplemented,
)
from kontti.linux.process import wait as wait_for
from kontti.shim import checkpoint, stats
from kontti.shim.container import Container
from kontti.shim.process import CHECKPOINT, CREATED, PAUSE, PAUSED, RESUME, STOPPED
from kontti.wire.messages.events import task as events
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.messages.types.runc.options.oci import ProcessDetails
from kontti.wire.messages.types.task.task import ProcessInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kontti.shim.container import Host
    from kontti.shim.process import Process
    from kontti.shim.publisher import Publisher
    from kontti.shim.server import Answer
    from kontti.wire.protobuf import Message


DIE_SECONDS = 5.0


class TaskService:
    """Does the calls. ``on_shutdown`` is called when a Shutdown finds no container left."""

    def __init__(self, host: Host, publisher: Publisher, on_shutdown: Callable[[], None]) -> None:
        self._host = host
        self._publisher = publisher
        self._on_shutdown = on_shutdown
        self.containers: dict[str, Container] = {}
        # a sandbox keeps the shim, containers or none; one that ends takes no more of them
        self.sandboxed = self.stopping = False
        self._methods: dict[str, tuple[type[Message], Callable[..., Message | None]]] = {
            "Create": (api.CreateTaskRequest, self.create),
            "Start": (api.StartRequest, self.start),
            "State": (api.StateRequest, self.state),
            "Delete": (api.DeleteRequest, self.delete),
            "Pids": (api.PidsRequest, self.pids),
            "Pause": (api.PauseRequest, self.pause),
            "Resume": (api.ResumeRequest, self.resume),
            "Checkpoint": (api.CheckpointTaskRequest, self.checkpoint),
            "Kill": (api.KillRequest, self.kill),
            "Exec": (api.ExecProcessRequest, self.exec),
            "ResizePty": (api.ResizePtyRequest, self.resize_pty),
            "CloseIO": (api.CloseIORequest, self.close_io),
            "Update": (api.UpdateTaskRequest, self.update),
            "Wait": (api.WaitRequest, self.wait),
            "Stats": (api.StatsRequest, self.stats),
            "Connect": (api.ConnectRequest, self.connect),
            "Shutdown": (api.ShutdownRequest, self.shutdown),
        }

    def handle(self, method: str, payload: bytes, answer: Answer) -> None:
        """Do one call; ``Wait`` answers when the process ends. Raises Error."""
        if method not in self._methods:
            raise Unimplemented(f"method {method}")
        cls, function = self._methods[method]
        result = function(cls.decode(payload), answer)
        if result is not None:
            answer(result)

    def _container(self, id: str) -> Container:
        try:
            return self.containers[id]
        except KeyError:
            raise NotFound(f"container {id}" if id else "container not created") from None

    def create(self, request: api.CreateTaskRequest, _answer: Answer) -> Message:
        if request.id in self.containers:
            raise AlreadyExists(f"container {request.id}")
        if self.stopping:
            raise FailedPrecondition("the sandbox is stopped")
        container = Container(self._host, request)
        container.create(request)
        if container.init.pid:
            container.watch_oom(lambda: self._out_of_memory(container))
        self.containers[request.id] = container
        io = events.TaskIO(
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            terminal=request.terminal,
        )
        event = events.TaskCreate(
            container_id=request.id,
            bundle=request.bundle,
            rootfs=request.rootfs,
            io=io,
            checkpoint=request.checkpoint,
            pid=container.init.pid,
        )
        self._publisher.publish("/tasks/create", event)
        return api.CreateTaskResponse(pid=container.init.pid)

    def start(self, request: api.StartRequest, _answer: Answer) -> Message:
        container = self._container(request.id)
        process = container.process(request.exec_id)
        if request.exec_id:
            container.start_exec(process)
            started = events.TaskExecStarted(
                container_id=request.id, exec_id=request.exec_id, pid=process.pid
            )
            self._publisher.publish("/tasks/exec-started", started)
        else:
            restored = not process.pid
            container.start()
            if restored:
                container.watch_oom(lambda: self._out_of_memory(container))
            event = events.TaskStart(container_id=request.id, pid=process.pid)
            self._publisher.publish("/tasks/start", event)
        return api.StartResponse(pid=process.pid)

    def state(self, request: api.StateRequest, _answer: Answer) -> Message:
        container = self._container(request.id)
        process = container.process(request.exec_id)
        names = process.stdio.names
        return api.StateResponse(
            id=request.id,
            bundle=container.bundle,
            pid=process.pid,
            status=process.status,
            stdin=names.stdin,
            stdout=names.stdout,
            stderr=names.stderr,
            terminal=names.terminal,
            exit_status=process.exit_status,
            exited_at=process.exited_at,
            exec_id=process.exec_id,
        )

    def delete(self, request: api.DeleteRequest, _answer: Answer) -> Message:
        container = self._container(request.id)
        process = container.process(request.exec_id)
        if request.exec_id:
            never = process.status == CREATED
            container.delete_exec(process)
            if never:
                process.abandon()
        else:
            if process.status == CREATED and process.pid:
                self._end_created(container)
            elif process.status == CREATED:
                process.abandon()
            container.delete()
            del self.containers[request.id]
            event = events.TaskDelete(
                container_id=request.id,
                pid=process.pid,
                exit_status=process.exit_status,
                exited_at=process.exited_at,
            )
            self._publisher.publish("/tasks/delete", event)
        return api.DeleteResponse(
            pid=process.pid, exit_status=process.exit_status, exited_at=process.exited_at
        )

    def _end_created(self, container: Container) -> None:
        """End the process of a container that was never started: it still waits to be."""
        self._signal(container.init.pid, signal.SIGKILL, single=False)
        try:
            code = wait_for(container.init.pid, DIE_SECONDS)
        except TimeoutError as error:
            raise Unavailable(str(error)) from None
        except ChildProcessError:
            code = -signal.SIGKILL  # it was killed, and another's child
        container.init.exited(code)
        self._tell(container, container.init)

    def pids(self, request: api.PidsRequest, _answer: Answer) -> Message:
        container = self._container(request.id)
        execs = {p.pid: p.exec_id for p in container.execs.values() if p.pid}
        found = []
        for pid in container.pids():
            info = None
            if pid in execs:
                details = ProcessDetails(exec_id=execs[pid])
                info = Any(type_url=ProcessDetails.NAME, value=details.encode())
            found.append(ProcessInfo(pid=pid, info=info))
        return api.PidsResponse(processes=found)

    def pause(self, request: api.PauseRequest, _answer: Answer) -> Message:
        container = self._container(request.id)
        container.init.check(PAUSE)
        container.runtime.run("pause", container.id)
        container.init.go(PAUSE)
        self._publisher.publish("/tasks/paused", events.TaskPaused(container_id=container.id))
        return Empty()

    def resume(self, request: api.ResumeRequest, _answer: Answer) -> Message:
        container = self._container(request.id)
        container.init.check(RESUME)
        container.runtime.run("resume", container.id)
        container.init.go(RESUME)
        self._publisher.publish("/tasks/resumed", events.TaskResumed(container_id=container.id))
        return Empty()

    def checkpoint(self, request: api.CheckpointTaskRequest, _answer: Answer) -> Message:
        container = self._container(request.id)
        container.init.check(CHECKPOINT)
        container.checkpoints.write(request.path, checkpoint.read_options(request.options))
        event = events.TaskCheckpointed(container_id=container.id, checkpoint=request.path)
        self._publisher.publish("/tasks/checkpointed", event)
        return Empty()

    def kill(self, request: api.KillRequest, _answer: Answer) -> Message:
        container = self._container(request.id)
        process = container.process(request.exec_id)
        if process.ended:
            raise NotFound("process already finished")
        if not process.pid:
            raise FailedPrecondition("process not created")
        pids = container.pids() if request.all else [process.pid]
        for pid in pids:
            self._signal(pid, request.signal, single=not request.all)
        if process.status == PAUSED and request.signal == signal.SIGKILL:
            # a frozen process dies when it thaws
            container.runtime.run("resume", container.id)
        return Empty()

    @staticmethod
    def _signal(pid: int, number: int, *, single: bool) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            if single:
                raise NotFound("process already finished") from None
        except OSError as error:
            raise Error(f"unable to signal {pid}: {error.strerror}") from None

    def exec(self, request: api.ExecProcessRequest, _answer: Answer) -> Message:
        container = self._container(request.id)
        container.check_exec()
        container.add_exec(request)
        event = events.TaskExecAdded(container_id=request.id, exec_id=request.exec_id)
        self._publisher.publish("/tasks/exec-added", event)
        return Empty()

    def resize_pty(self, request: api.ResizePtyRequest, _answer: Answer) -> Message:
        process = self._container(request.id).process(request.exec_id)
        process.stdio.resize(request.width, request.height)
        return Empty()

    def close_io(self, request: api.CloseIORequest, _answer: Answer) -> Message:
        process = self._container(request.id).process(request.exec_id)
        if request.stdin:
            process.stdio.close_stdin()
        return Empty()

    def update(self, request: api.UpdateTaskRequest, _answer: Answer) -> Message:
        container = self._container(request.id)
        if request.resources is None or not request.resources.value:
            return Empty()
        path = os.path.join(container.bundle, f"resources-{time.monotonic_ns()}.json")
        try:
            with open(path, "wb") as file:
                file.write(request.resources.value)
            container.runtime.forget_log()
            container.runtime.run("update", "--resources", path, container.id)
        finally:
            os.unlink(path)
        return Empty()

    def wait(self, request: api.WaitRequest, answer: Answer) -> None:
        process = self._container(request.id).process(request.exec_id)

        def ended() -> None:
            answer(api.WaitResponse(exit_status=process.exit_status, exited_at=process.exited_at))

        process.wait(ended)

    def stats(self, request: api.StatsRequest, _answer: Answer) -> Message:
        container = self._container(request.id)
        if container.init.status == STOPPED or not container.groups:
            raise NotFound("cgroup does not exist")
        figures = stats.collect(container.groups)
        return api.StatsResponse(stats=Any(type_url=figures.NAME, value=figures.encode()))

    def connect(self, request: api.ConnectRequest, _answer: Answer) -> Message:
        container = self.containers.get(request.id)
        pid = container.init.pid if container is not None else 0
        return api.ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version="v2")

    def shutdown(self, request: api.ShutdownRequest, _answer: Answer) -> Message:
        if request.now or not (self.containers or self.sandboxed):
            self._on_shutdown()
        return Empty()

    def reaped(self, pid: int, status: int) -> None:
        """A child has ended; one that is no container's process was an orphan of one."""
        for container in self.containers.values():
            if container.reaped(pid, status):
                return
            for process in (container.init, *container.execs.values()):
                if process.pid == pid and not process.ended:
                    self._exited(container, process, os.waitstatus_to_exitcode(status))
                    return

    def _exited(self, container: Container, process: Process, code: int) -> None:
        if process is container.init and not container.owns_pid_namespace():
            for pid in container.pids():
                self._signal(pid, signal.SIGKILL, single=False)
        if process is container.init:
            container.forget_oom()
            container.begin_delete()
        process.exited(code)
        process.stdio.drain(lambda: self._tell(container, process))

    def _out_of_memory(self, container: Container) -> None:
        self._publisher.publish("/tasks/oom", events.TaskOOM(container_id=container.id))

    def _tell(self, container: Container, process: Process) -> None:
        process.stdio.ended()
        event = events.TaskExit(
            container_id=container.id,
            id=process.exec_id or container.id,
            pid=process.pid,
            exit_status=process.exit_status,
            exited_at=process.exited_at,
        )
        self._publisher.publish("/tasks/exit", event)
        process.tell()
