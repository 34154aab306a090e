"""The Sandbox service of a shim: what its containers share, with no process of its own.

The shim is the sandbox: it is up from StartSandbox to StopSandbox, which ends every container in
it, and stays until ShutdownSandbox, containers or none.
"""

from __future__ import annotations

import json
import os
import signal
import time

from kontti.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from kontti.linux import cgroups, mounts
from kontti.shim import stats
from kontti.shim.process import STOPPED
from kontti.wire.messages.cgroups.v1 import metrics as v1
from kontti.wire.messages.cgroups.v2 import metrics as v2
from kontti.wire.messages.google import Any, Timestamp
from kontti.wire.messages.runtime.sandbox.v1 import sandbox as api
from kontti.wire.messages.runtime.task.v2 import shim as tasks_api
from kontti.wire.messages.types.metrics import Metric
from kontti.wire.messages.types.platform import Platform
from kontti.wire.protobuf import Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kontti.shim.container import Container
    from kontti.shim.loop import Loop
    from kontti.shim.server import Answer
    from kontti.shim.service import TaskService

READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"
DIE_SECONDS = 10.0
MAX_SECONDS = 24 * 3600
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "i686": ("386", ""),
}


class Sandbox:
    """The one sandbox that a shim can be."""

    def __init__(self, request: api.CreateSandboxRequest) -> None:
        self.id = request.sandbox_id
        self.netns_path = request.netns_path
        self.annotations = request.annotations
        self.rootfs = os.path.join(request.bundle_path, "rootfs") if request.rootfs else ""
        self.created_at: Timestamp | None = None
        self.exited_at: Timestamp | None = None
        self.waiting: list[Callable[[], None]] = []

    def mount(self, request: api.CreateSandboxRequest) -> None:
        """Make what it was given as a root file system. Raises Error."""
        if not self.rootfs:
            return
        try:
            os.makedirs(self.rootfs, mode=0o711, exist_ok=True)
            mounts.mount_all(request.rootfs, self.rootfs)
        except OSError as error:
            raise Error(f"failed to mount sandbox rootfs: {error}") from None

    def ended(self) -> None:
        """It is over: answer everybody who waits."""
        if self.exited_at is None:
            self.exited_at = _now()
        waiting, self.waiting = self.waiting, []
        for tell in waiting:
            tell()


class SandboxService:
    """Does the calls, over the containers of ``tasks``; ``on_shutdown`` ends the shim."""

    def __init__(self, loop: Loop, tasks: TaskService, on_shutdown: Callable[[], None]) -> None:
        self._loop = loop
        self._tasks = tasks
        self._on_shutdown = on_shutdown
        self._sandbox: Sandbox | None = None
        self._methods: dict[str, tuple[type[Message], Callable[..., Message | None]]] = {
            "CreateSandbox": (api.CreateSandboxRequest, self.create),
            "StartSandbox": (api.StartSandboxRequest, self.start),
            "Platform": (api.PlatformRequest, self.platform),
            "StopSandbox": (api.StopSandboxRequest, self.stop),
            "WaitSandbox": (api.WaitSandboxRequest, self.wait),
            "SandboxStatus": (api.SandboxStatusRequest, self.status),
            "PingSandbox": (api.PingRequest, self.ping),
            "ShutdownSandbox": (api.ShutdownSandboxRequest, self.shutdown),
            "SandboxMetrics": (api.SandboxMetricsRequest, self.metrics),
        }

    def handle(self, method: str, payload: bytes, answer: Answer) -> None:
        """Do one call; those that wait answer later. Raises Error."""
        if method not in self._methods:
            raise Unimplemented(f"method {method}")
        cls, function = self._methods[method]
        result = function(cls.decode(payload), answer)
        if result is not None:
            answer(result)

    def _of(self, id: str) -> Sandbox:
        if self._sandbox is None or self._sandbox.id != id:
            raise NotFound(f"sandbox {id}")
        return self._sandbox

    def create(self, request: api.CreateSandboxRequest, _answer: Answer) -> Message:
        if not request.sandbox_id:
            raise InvalidArgument("sandbox id must not be empty")
        if self._sandbox is not None:
            raise AlreadyExists(f"sandbox {self._sandbox.id}")
        if request.netns_path and not os.path.exists(request.netns_path):
            raise NotFound(f"network namespace {request.netns_path}")
        made = Sandbox(request)
        made.mount(request)
        self._sandbox = made
        self._tasks.sandboxed = True
        return api.CreateSandboxResponse()

    def start(self, request: api.StartSandboxRequest, _answer: Answer) -> Message:
        sandbox = self._of(request.sandbox_id)
        if sandbox.exited_at is not None:
            raise FailedPrecondition(f"sandbox {sandbox.id} is stopped")
        if sandbox.created_at is None:
            sandbox.created_at = _now()
        return api.StartSandboxResponse(pid=os.getpid(), created_at=sandbox.created_at)

    def platform(self, request: api.PlatformRequest, _answer: Answer) -> Message:
        self._of(request.sandbox_id)
        machine = os.uname().machine
        architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
        platform = Platform(os="linux", architecture=architecture, variant=variant)
        return api.PlatformResponse(platform=platform)

    def stop(self, request: api.StopSandboxRequest, answer: Answer) -> None:
        sandbox = self._of(request.sandbox_id)

        def stopped() -> None:
            sandbox.ended()
            answer(api.StopSandboxResponse())

        self._end_containers(min(request.timeout_secs, MAX_SECONDS), stopped, answer)

    def _end_containers(self, seconds: int, ended: Callable[[], None], answer: Answer) -> None:
        """Call ``ended`` when every container is, asked to for ``seconds`` and then made to.

        One that cannot be ended is told to ``answer``.
        """
        self._tasks.stopping = True
        left = [c for c in self._tasks.containers.values() if c.init.status != STOPPED]
        count = len(left)
        if not count:
            ended()
            return

        def one_less() -> None:
            nonlocal count
            count -= 1
            if not count:
                ended()

        for container in left:
            container.init.wait(one_less)
            if seconds:
                self._signal(container, signal.SIGTERM)
        if seconds:
            self._loop.later(seconds, lambda: self._kill(left))
        else:
            self._kill(left)
        late = DeadlineExceeded("the sandbox's containers do not end")
        self._loop.later(seconds + DIE_SECONDS, lambda: answer(late))

    def _kill(self, containers: list[Container]) -> None:
        for container in containers:
            if not container.init.ended:
                self._signal(container, signal.SIGKILL)

    def _signal(self, container: Container, number: int) -> None:
        hard = number == signal.SIGKILL
        request = tasks_api.KillRequest(id=container.id, signal=number, all=hard)
        try:
            self._tasks.kill(request, _nobody)
        except Error:
            return  # it has ended meanwhile; who waits is told so, or that it does not end

    def wait(self, request: api.WaitSandboxRequest, answer: Answer) -> None:
        sandbox = self._of(request.sandbox_id)

        def tell() -> None:
            answer(api.WaitSandboxResponse(exit_status=0, exited_at=sandbox.exited_at))

        if sandbox.exited_at is not None:
            tell()
        else:
            sandbox.waiting.append(tell)

    def status(self, request: api.SandboxStatusRequest, _answer: Answer) -> Message:
        sandbox = self._of(request.sandbox_id)
        up = sandbox.created_at is not None and sandbox.exited_at is None
        return api.SandboxStatusResponse(
            sandbox_id=sandbox.id,
            pid=os.getpid(),
            state=READY if up else NOT_READY,
            info=self._info(sandbox) if request.verbose else None,
            created_at=sandbox.created_at,
            exited_at=sandbox.exited_at,
        )

    def _info(self, sandbox: Sandbox) -> dict[str, str]:
        return {
            "annotations": json.dumps(sandbox.annotations, sort_keys=True),
            "containers": json.dumps(sorted(self._tasks.containers)),
            "netns_path": sandbox.netns_path,
        }

    def ping(self, request: api.PingRequest, _answer: Answer) -> Message:
        self._of(request.sandbox_id)
        return api.PingResponse()

    def metrics(self, request: api.SandboxMetricsRequest, _answer: Answer) -> Message:
        sandbox = self._of(request.sandbox_id)
        total: Message = v1.Metrics()
        if "" in cgroups.paths_of(os.getpid()):
            total = v2.Metrics()
        for container in self._tasks.containers.values():
            if container.init.status != STOPPED and container.groups:
                figures = stats.collect(container.groups)
                total = add(total, figures) if isinstance(figures, type(total)) else figures
        data = Any(type_url=total.NAME, value=total.encode())
        return api.SandboxMetricsResponse(
            metrics=Metric(timestamp=_now(), id=sandbox.id, data=data)
        )

    def shutdown(self, request: api.ShutdownSandboxRequest, answer: Answer) -> None:
        sandbox = self._of(request.sandbox_id)

        def ended() -> None:
            for id in list(self._tasks.containers):
                try:
                    self._tasks.delete(tasks_api.DeleteRequest(id=id), _nobody)
                except Error:
                    continue  # the daemon cleans up what a shim that is gone has left
            if sandbox.rootfs:
                mounts.unmount_all(sandbox.rootfs)
            sandbox.ended()
            self._sandbox = None
            answer(api.ShutdownSandboxResponse())
            self._on_shutdown()

        self._end_containers(0, ended, answer)


def add(total: Message, more: Message) -> Message:
    """The sums of two messages' numbers, field by field; what is no number is the first's."""
    for _, name, _ in total.FIELDS:
        one, other = getattr(total, name), getattr(more, name)
        if isinstance(one, int) and isinstance(other, int) and not isinstance(one, bool):
            setattr(total, name, one + other)
        elif isinstance(one, Message) and isinstance(other, Message):
            add(one, other)
        elif one is None:
            setattr(total, name, other)
    return total


def _nobody(_result: Message | Error) -> None:
    """Waits for an answer that nobody wants."""


def _now() -> Timestamp:
    now = time.time_ns()
    return Timestamp(seconds=now // 10**9, nanos=now % 10**9)
