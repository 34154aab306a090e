"""Containers and tasks by the API alone, without snapshots: many, quickly, on any daemon."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kontti.client.client import Client
from kontti.errors import NotFound
from kontti.wire.messages.google import Any, Empty, Timestamp
from kontti.wire.messages.services.containers.v1 import containers as records
from kontti.wire.messages.services.tasks.v1 import tasks as api
from kontti.wire.messages.types.mount import Mount
from kontti.wire.messages.types.task.task import Process
from kontti.wire.protobuf import Message
from tests.support import containers
from tests.support.taskshim import MOUNTS

CONTAINERS = "containerd.services.containers.v1.Containers/"
TASKS = "containerd.services.tasks.v1.Tasks/"
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
KINDS = ("pid", "ipc", "uts", "mount", "network")
CALL_SECONDS = 100.0
Json = Mapping[str, object]
M = TypeVar("M", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True)
class Exited:
    """How a process ended; ``at`` in seconds since the epoch."""

    code: int
    at: float


class Api:
    """One connection; for any number of threads. ``rootfs`` is every container's root.

    ``timeout`` is for all calls together, in seconds.
    """

    def __init__(
        self, address: str, namespace: str, rootfs: Path, *, timeout: float | None = None
    ) -> None:
        self.client = Client(address, namespace=namespace, timeout=timeout)
        self.namespace = namespace
        self.rootfs = rootfs

    def spec(self, id: str, *args: str, **changes: object) -> dict[str, object]:
        """A container of busybox that runs ``args``; ``changes`` replace top-level parts."""
        return {
            "ociVersion": "1.0.2",
            "process": self.process(*args),
            "root": {"path": "rootfs"},
            "mounts": list(MOUNTS),
            "linux": self.linux(id),
            **changes,
        }

    def linux(self, id: str, **changes: object) -> dict[str, object]:
        """Its part of that name."""
        kinds = [{"type": kind} for kind in KINDS]
        return {"namespaces": kinds, "cgroupsPath": f"/{self.namespace}/{id}", **changes}

    @staticmethod
    def process(*args: str, **changes: object) -> dict[str, object]:
        """What is run, by root unless ``changes`` say otherwise."""
        user = {"uid": 0, "gid": 0}
        return {"user": user, "args": args, "env": ["PATH=/bin"], "cwd": "/", **changes}

    def record(self, id: str, spec: Json | bytes) -> None:
        """Make a container's record."""
        data = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
        container = records.Container(
            id=id,
            runtime=records.ContainerRuntime(name="io.containerd.runc.v2"),
            spec=Any(type_url=SPEC, value=data),
        )
        request = records.CreateContainerRequest(container=container)
        self.client.unary(CONTAINERS + "Create", request, records.CreateContainerResponse)

    def forget(self, id: str) -> None:
        """Remove a container's record."""
        self.client.unary(CONTAINERS + "Delete", records.DeleteContainerRequest(id=id), Empty)

    def create(self, id: str, **streams: object) -> int:
        """Create the task of a record; its pid."""
        rootfs = Mount(type="bind", source=str(self.rootfs), options=["rbind", "rw"])
        request = api.CreateTaskRequest(container_id=id, rootfs=[rootfs], **streams)  # type: ignore[arg-type]
        return self._call("Create", request, api.CreateTaskResponse).pid

    def start(self, id: str, exec_id: str = "") -> int:
        """Start a task or an exec; its pid."""
        request = api.StartRequest(container_id=id, exec_id=exec_id)
        return self._call("Start", request, api.StartResponse).pid

    def run(self, id: str, *args: str, **streams: str) -> int:
        """Record, create and start."""
        self.record(id, self.spec(id, *args))
        self.create(id, **streams)
        return self.start(id)

    def exec(self, id: str, exec_id: str, *args: str, **streams: str) -> None:
        """Add a process, to be started."""
        self.exec_spec(id, exec_id, json.dumps(self.process(*args)).encode(), **streams)

    def exec_spec(self, id: str, exec_id: str, spec: bytes, **streams: str) -> None:
        """The same with any specification."""
        packed = Any(type_url=PROCESS, value=spec)
        request = api.ExecProcessRequest(container_id=id, exec_id=exec_id, spec=packed, **streams)  # type: ignore[arg-type]
        self._call("Exec", request, Empty)

    def run_exec(self, id: str, exec_id: str, *args: str, **streams: str) -> int:
        """Add, start, wait for and delete a process; its exit code."""
        self.exec(id, exec_id, *args, **streams)
        self.start(id, exec_id)
        code = self.wait(id, exec_id).code
        assert self.delete_exec(id, exec_id).code == code
        return code

    def kill(self, id: str, number: int = signal.SIGKILL, exec_id: str = "") -> None:
        """Send a signal."""
        self._call("Kill", api.KillRequest(container_id=id, exec_id=exec_id, signal=number), Empty)

    def wait(self, id: str, exec_id: str = "") -> Exited:
        """Until a process has ended."""
        request = api.WaitRequest(container_id=id, exec_id=exec_id)
        answer = self._call("Wait", request, api.WaitResponse)
        return Exited(answer.exit_status, _seconds(answer.exited_at))

    def delete(self, id: str) -> Exited:
        """Delete a task that has ended; its record stays."""
        answer = self._call("Delete", api.DeleteTaskRequest(container_id=id), api.DeleteResponse)
        return Exited(answer.exit_status, _seconds(answer.exited_at))

    def delete_exec(self, id: str, exec_id: str) -> Exited:
        """Delete an exec that has ended."""
        request = api.DeleteProcessRequest(container_id=id, exec_id=exec_id)
        answer = self._call("DeleteProcess", request, api.DeleteResponse)
        return Exited(answer.exit_status, _seconds(answer.exited_at))

    def get(self, id: str, exec_id: str = "") -> Process:
        """What a process is doing."""
        request = api.GetRequest(container_id=id, exec_id=exec_id)
        found = self._call("Get", request, api.GetResponse).process
        assert found is not None
        return found

    def list(self) -> dict[str, Process]:
        """Every task by id."""
        found = self._call("List", api.ListTasksRequest(), api.ListTasksResponse)
        return {process.id: process for process in found.tasks}

    def close_stdin(self, id: str, exec_id: str = "") -> None:
        """Nothing more comes."""
        request = api.CloseIORequest(container_id=id, exec_id=exec_id, stdin=True)
        self._call("CloseIO", request, Empty)

    def end(self, id: str) -> Exited:
        """Kill, wait and delete, and forget the record."""
        self.kill(id)
        ended = self.wait(id)
        assert self.delete(id) == ended
        self.forget(id)
        return ended

    def close(self) -> None:
        """Hang up."""
        self.client.close()

    def clear(self) -> None:
        """End all there is: for what a failed test left."""
        for id in self.list():
            with contextlib.suppress(NotFound):
                self.kill(id)
            self.wait(id)
            self.delete(id)
        request = records.ListContainersRequest()
        found = self.client.unary(CONTAINERS + "List", request, records.ListContainersResponse)
        for container in found.containers:
            self.forget(container.id)

    def _call(self, method: str, request: Message, response: type[M]) -> M:
        return self.client.unary(TASKS + method, request, response, timeout=CALL_SECONDS)


def _seconds(stamp: Timestamp | None) -> float:
    return stamp.seconds + stamp.nanos / 1e9 if stamp else 0.0


@contextlib.contextmanager
def connected(address: str, namespace: str, folder: Path) -> Iterator[Api]:
    """An Api with a root file system in ``folder``; whatever it left is ended."""
    containers.unpack(folder / "busybox")
    # a runtime makes what is to be mounted on
    (folder / "busybox" / "mnt").mkdir()
    made = Api(address, namespace, folder / "busybox")
    try:
        yield made
        made.clear()
    finally:
        made.client.close()


def at_once(count: int, act: Callable[[int], T]) -> list[T]:
    """``act(number)`` for each number below ``count``, all begun at the same time."""
    begin = threading.Barrier(count)

    def one(number: int) -> T:
        begin.wait()
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
