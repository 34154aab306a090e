"""A shim that lives in the test, behind a real socket, and the binary that says where it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kontti.errors import AlreadyExists, Error, FailedPrecondition, NotFound
from kontti.metadata.base import Container, Containers
from kontti.namespaces import Scope
from kontti.runtime.manager import RuntimeSettings
from kontti.runtime.ttrpc import Handler, TtrpcServer
from kontti.tasks.base import Status
from kontti.tasks.manager import TaskManager
from kontti.values import AnyValue
from kontti.wire.messages.google import Any, Empty, Timestamp
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.protobuf import Message

RUNTIME = "io.containerd.fake.v1"
SCOPE = Scope("default")
SPEC = AnyValue("types.containerd.io/opencontainers/runtime-spec/1/Spec", b'{"ociVersion":"1.0.2"}')
_BINARY = """#!/bin/sh
for action; do :; done
pwd > "$FAKE/$action.cwd"
echo "$*" > "$FAKE/$action.args"
env > "$FAKE/$action.env"
cat > "$FAKE/$action.stdin"
cat "$FAKE/$action.out"
exit "$(cat "$FAKE/$action.code" 2>/dev/null || echo 0)"
"""


class Records:
    """metadata.base.Containers of one kind: by id, for reading."""

    def __init__(self, *containers: Container) -> None:
        self.by_id = {c.id: c for c in containers}

    def get(self, id: str) -> Container:
        """The container, or NotFound."""
        if id not in self.by_id:
            raise NotFound(f'container "{id}" in namespace "default"')
        return self.by_id[id]

    def of(self, _scope: Scope) -> Containers:
        """The same ones for every scope."""
        return self  # type: ignore[return-value]


@dataclass
class Published:
    """events.base.Publisher that remembers."""

    events: list[tuple[str, str, Message]] = field(default_factory=list)

    def publish(self, namespace: str, topic: str, event: Message) -> None:
        """Note it."""
        self.events.append((namespace, topic, event))

    def topics(self) -> list[str]:
        """What was published, by topic."""
        return [topic for _, topic, _ in self.events]


@dataclass
class FakeShim:
    """Serves the Task service.

    ``silent`` methods are never answered, ``held`` ones when their event is set, ``failing`` ones
    fail, ``garbage`` is answered with what is no message.
    """

    folder: Path
    states: dict[str, Status] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    failing: dict[str, Error] = field(default_factory=dict)
    garbage: set[str] = field(default_factory=set)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    shut_down: asyncio.Event = field(default_factory=asyncio.Event)
    server: TtrpcServer | None = None
    version: int = 2
    _called: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"unix://{self.folder}/shim.sock"

    async def serve(self) -> None:
        """Listen."""
        self.server = TtrpcServer(self._handlers())
        await self.server.start(f"{self.folder}/shim.sock", os.getuid(), os.getgid())

    async def die(self) -> None:
        """Go away without a word."""
        if self.server is not None:
            await self.server.stop()
            self.server = None

    async def called(self, method: str) -> None:
        """Until it has been asked for something."""
        async with self._called:
            await self._called.wait_for(lambda: method in self.calls)

    def _handlers(self) -> dict[str, Handler]:
        methods: dict[str, Callable[[bytes], Awaitable[Message]]] = {
            "Create": self._create,
            "Start": self._start,
            "State": self._state,
            "Kill": self._kill,
            "Wait": self._wait,
            "Delete": self._delete,
            "Stats": self._stats,
            "Shutdown": self._shutdown,
        }
        service = f"containerd.task.v{self.version}.Task"
        return {f"{service}/{name}": self._handler(name, do) for name, do in methods.items()}

    def _handler(self, name: str, do: Callable[[bytes], Awaitable[Message]]) -> Handler:
        async def handle(_namespace: str, payload: bytes) -> bytes:
            self.calls.append(name)
            async with self._called:
                self._called.notify_all()
            if name in self.silent:
                await asyncio.Event().wait()
            if name in self.held:
                await self.held[name].wait()
            if name in self.failing:
                raise self.failing[name]
            answer = (await do(payload)).encode()
            return b"\xff\xff\xff" if name in self.garbage else answer

        return handle

    def _known(self, id: str) -> str:
        if id not in self.states:
            raise NotFound("container not created")
        return id

    async def _create(self, payload: bytes) -> Message:
        id = api.CreateTaskRequest.decode(payload).id
        if id in self.states:
            raise AlreadyExists(f"container {id}")
        self.states[id] = Status.CREATED
        return api.CreateTaskResponse(pid=4242)

    async def _start(self, payload: bytes) -> Message:
        self.states[self._known(api.StartRequest.decode(payload).id)] = Status.RUNNING
        return api.StartResponse(pid=4242)

    async def _state(self, payload: bytes) -> Message:
        id = self._known(api.StateRequest.decode(payload).id)
        return api.StateResponse(id=id, pid=4242, status=self.states[id])

    async def _kill(self, payload: bytes) -> Message:
        id = self._known(api.KillRequest.decode(payload).id)
        self.states[id] = Status.STOPPED
        self.ended.set()
        return Empty()

    async def _wait(self, payload: bytes) -> Message:
        self._known(api.WaitRequest.decode(payload).id)
        await self.ended.wait()
        return api.WaitResponse(exit_status=137, exited_at=Timestamp(seconds=5))

    async def _delete(self, payload: bytes) -> Message:
        id = self._known(api.DeleteRequest.decode(payload).id)
        if self.states[id] is Status.RUNNING:
            raise FailedPrecondition("cannot delete a running process")
        del self.states[id]
        return api.DeleteResponse(pid=4242, exit_status=137, exited_at=Timestamp(seconds=5))

    async def _stats(self, payload: bytes) -> Message:
        id = self._known(api.StatsRequest.decode(payload).id)
        return api.StatsResponse(stats=Any(type_url="figures", value=id.encode()))

    async def _shutdown(self, _payload: bytes) -> Message:
        if not self.states:
            self.shut_down.set()
        return Empty()


@dataclass
class World:
    """A manager over a fake shim, and everything to look at afterwards."""

    folder: Path
    shim: FakeShim
    records: Records
    published: Published
    settings: RuntimeSettings
    tasks: TaskManager

    def bundles(self) -> list[str]:
        """Names of the bundles on disk, and of their work directories."""
        found = self.folder.glob("*/io.containerd.runtime.v2.task/default/*")
        return sorted(p.name for p in found)

    async def empty(self) -> None:
        """Until there is no task, not even one that is being ended."""
        while list(self.tasks._table):  # noqa: ASYNC110 the table has nobody to tell of its end
            await asyncio.sleep(0)

    async def again(self) -> TaskManager:
        """A new manager in the place of the one that is there, as after a restart."""
        await self.tasks.close()
        self.tasks = TaskManager(self.settings, self.records.of, self.published)
        await self.tasks.load()
        return self.tasks


def container(id: str, runtime: str = RUNTIME) -> Container:
    """A record to make a task from."""
    return Container(id=id, runtime=runtime, spec=SPEC)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="kt-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def install_binary(folder: Path, name: str = "containerd-shim-fake-v1") -> Path:
    """A shim's binary that notes how it was called and prints ``<action>.out``."""
    binary = folder / name
    binary.write_text(_BINARY)
    binary.chmod(0o755)
    for action in ("start", "delete"):
        (folder / f"{action}.out").write_bytes(b"")
    return binary


@contextlib.asynccontextmanager
async def world(folder: Path, *ids: str, patience: float = 10.0) -> AsyncIterator[World]:
    """A manager with containers ``ids`` whose runtime is a fake shim.

    ``patience`` in seconds is what the manager has with it.
    """
    binary = install_binary(folder)
    shim = FakeShim(folder)
    (folder / "start.out").write_text(shim.address)
    ended = api.DeleteResponse(pid=4242, exit_status=137, exited_at=Timestamp(seconds=7))
    (folder / "delete.out").write_bytes(ended.encode())
    settings = RuntimeSettings(
        root=str(folder / "root"),
        state=str(folder / "state"),
        socket_dir=str(folder / "s"),
        environment=(f"FAKE={folder}",),
        load_seconds=patience,
        state_seconds=patience,
        stats_seconds=patience,
        shutdown_seconds=patience,
    )
    records = Records(*(container(id, str(binary)) for id in ids))
    published = Published()
    tasks = TaskManager(settings, records.of, published)
    here = World(folder, shim, records, published, settings, tasks)
    await shim.serve()
    try:
        yield here
    finally:
        await here.tasks.close()
        await shim.die()
