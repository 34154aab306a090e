"""What a task manager is: the running side of containers. Asynchronous: its waits are long."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kontti.namespaces import Scope
from kontti.values import EMPTY, AnyValue, Descriptor, Mount


class Status(enum.IntEnum):
    """As in containerd.v1.types.Status."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True)
class Stdio:
    """Where a process's streams go: a FIFO, or a URI (file, binary, kontti-log); "" for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. ``exited_at`` in ns since the epoch."""

    id: str
    pid: int
    status: int
    exited_at: int


@dataclass(frozen=True, slots=True)
class Process:
    """A task's first process or one exec'd into it."""

    container_id: str
    exec_id: str
    pid: int
    status: Status
    stdio: Stdio = field(default_factory=Stdio)
    exit_status: int = 0
    exited_at: int = 0


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A pid in the container, and what the runtime knows of it."""

    pid: int
    info: AnyValue | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """cgroup figures: ``data`` is io.containerd.cgroups.v1.Metrics or v2."""

    id: str
    timestamp: int
    data: AnyValue


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """What ``create`` takes beside the container's own record.

    ``checkpoint`` is one of ``Tasks.checkpoint``, to go on from, ``restore_path`` the
    directory of one.
    """

    rootfs: Sequence[Mount] = ()
    stdio: Stdio = field(default_factory=Stdio)
    checkpoint: Descriptor | None = None
    restore_path: str = ""
    options: AnyValue | None = None
    runtime_path: str = ""
    task_api_address: str = ""
    task_api_version: int = 0


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """``spec`` is an OCI process as JSON."""

    exec_id: str
    spec: AnyValue
    stdio: Stdio = field(default_factory=Stdio)


class Tasks(Protocol):
    """Tasks of containers by container id; raises NotFound where there is no such task or exec.

    ``exec_id`` "" means the task's first process.
    """

    async def create(self, scope: Scope, id: str, options: CreateOptions) -> int:
        """Start a shim (or join the group's) and create; the pid of the waiting process."""
        ...

    async def start(self, scope: Scope, id: str, exec_id: str = "") -> int: ...
    async def delete(self, scope: Scope, id: str) -> Exit: ...
    async def delete_process(self, scope: Scope, id: str, exec_id: str) -> Exit: ...
    async def get(self, scope: Scope, id: str, exec_id: str = "") -> Process: ...
    async def list(self, scope: Scope) -> Sequence[Process]: ...
    async def kill(
        self, scope: Scope, id: str, signal: int, *, exec_id: str = "", all: bool = False
    ) -> None: ...
    async def exec(self, scope: Scope, id: str, options: ExecOptions) -> None: ...
    async def resize_pty(
        self, scope: Scope, id: str, exec_id: str, width: int, height: int
    ) -> None: ...
    async def close_io(self, scope: Scope, id: str, exec_id: str, stdin: bool) -> None: ...
    async def pause(self, scope: Scope, id: str) -> None: ...
    async def resume(self, scope: Scope, id: str) -> None: ...
    async def pids(self, scope: Scope, id: str) -> Sequence[ProcessInfo]: ...
    async def checkpoint(
        self, scope: Scope, id: str, options: AnyValue | None = None
    ) -> Sequence[Descriptor]:
        """Write the task's state, as runc's CheckpointOptions say.

        It and the spec become blobs, whose descriptors this gives; or it is left in the directory
        that ``options`` name, and nothing is given. The task goes on where it fails.
        """
        ...

    async def update(
        self, scope: Scope, id: str, resources: AnyValue, annotations: Mapping[str, str] = EMPTY
    ) -> None: ...
    async def metrics(self, scope: Scope, filters: Sequence[str] = ()) -> Sequence[Metric]: ...
    async def wait(self, scope: Scope, id: str, exec_id: str = "") -> Exit: ...
