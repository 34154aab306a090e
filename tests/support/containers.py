"""A task manager over the real zygote, shims and OCI runtimes, and proof that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import select
import shutil
import signal
import tarfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from kontti.events.base import Envelope
from kontti.events.exchange import LocalExchange
from kontti.linux import cgroups
from kontti.metadata.base import Container
from kontti.namespaces import Scope
from kontti.runtime import events, probe
from kontti.runtime.manager import RuntimeSettings
from kontti.runtime.ttrpc import TtrpcServer
from kontti.tasks.base import CreateOptions, Stdio
from kontti.tasks.manager import TaskManager
from kontti.values import AnyValue, Mount
from kontti.wire.messages.types.runc.options.oci import Options
from tests.support import images
from tests.support.shims import Records

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
KINDS = ("pid", "ipc", "uts", "mount", "network")
SLEEP = ("sleep", "1000")


@dataclass
class Machine:
    """What a daemon has, without gRPC: records, an exchange, a manager and its event socket."""

    folder: Path
    scope: Scope
    settings: RuntimeSettings
    records: Records = field(default_factory=Records)
    heard: list[Envelope] = field(default_factory=list)
    _up: contextlib.AsyncExitStack | None = None

    async def boot(self) -> None:
        """Start what a daemon starts, and take over what is there."""
        self._up = contextlib.AsyncExitStack()
        exchange = LocalExchange()
        exchange.subscribe([], self._hear)
        server = TtrpcServer(events.handlers(exchange))
        await server.start(self.settings.ttrpc_address, os.getuid(), os.getgid())
        self._up.push_async_callback(server.stop)
        self.tasks = TaskManager(self.settings, self.records.of, exchange)
        self._up.push_async_callback(self.tasks.close)
        await self.tasks.load()

    async def halt(self) -> None:
        """Stop it all; tasks go on."""
        if self._up is not None:
            up, self._up = self._up, None
            await up.aclose()

    def _hear(self, envelope: Envelope) -> None:
        self.heard.append(envelope)

    def topics(self) -> list[str]:
        """What was heard, by topic."""
        return [e.topic.removeprefix("/tasks/") for e in self.heard]

    async def event(self, topic: str) -> bytes:
        """The first event of a topic, when it has come."""
        while f"/tasks/{topic}" not in [e.topic for e in self.heard]:  # noqa: ASYNC110 it is a list
            await asyncio.sleep(0.002)
        return next(e.event.value for e in self.heard if e.topic == f"/tasks/{topic}")

    def add(
        self,
        id: str,
        *args: str,
        runtime: str = "io.containerd.runc.v2",
        annotations: dict[str, str] | None = None,
    ) -> None:
        """A container's record: busybox with ``args``."""
        spec = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "annotations": annotations or {},
            "linux": {"namespaces": [{"type": k} for k in KINDS], "cgroupsPath": self.cgroup(id)},
        }
        options = Options(root=str(self.folder / "oci"))
        self.records.by_id[id] = Container(
            id=id,
            runtime=runtime,
            runtime_options=AnyValue(Options.NAME, options.encode()),
            spec=AnyValue(SPEC_TYPE, json.dumps(spec).encode()),
        )

    def cgroup(self, id: str) -> str:
        """Its control group: right below the top, as a runtime leaves the ones above its own."""
        return f"/{self.scope.namespace}-{id}"

    def output(self, id: str) -> str:
        """What a container of ``options`` has written."""
        return (self.folder / f"{id}.out").read_text()

    def options(self, id: str) -> CreateOptions:
        """Its root file system, bound, and its output to a file."""
        rootfs = Mount("bind", str(self.folder / "rootfs"), ("rbind", "rw"))
        path = f"file://{self.folder}/{id}.out"
        return CreateOptions(rootfs=[rootfs], stdio=Stdio(stdout=path, stderr=path))

    async def run(self, id: str) -> int:
        """Create and start; the pid."""
        await self.tasks.create(self.scope, id, self.options(id))
        return await self.tasks.start(self.scope, id)

    async def kill_and_delete(self, id: str) -> None:
        """End a running task."""
        waiting = asyncio.create_task(self.tasks.wait(self.scope, id))
        await self.tasks.kill(self.scope, id, signal.SIGKILL)
        await waiting
        await self.tasks.delete(self.scope, id)

    def leftovers(self) -> list[str]:
        """Bundles, sockets, the runtime's state, control groups, mounts and processes."""
        found = [str(p) for p in self.folder.glob("*/io.containerd.runtime.v2.task/*/*")]
        found += [str(p) for p in self.folder.glob("s/*")]
        found += [str(p) for p in self.folder.glob("oci/*/*")]
        for id in self.records.by_id:
            found += [str(p) for p in Path(cgroups.ROOT).glob(f"*{self.cgroup(id)}")]
        with open("/proc/self/mountinfo") as file:
            found += [line.split()[4] for line in file if str(self.folder) in line.split()[4]]
        return found + [f"shim {pid}" for pid in self.shims()]

    def shims(self) -> list[int]:
        """Live processes that work in our bundles."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "cwd").startswith(
                    str(self.folder / "state")
                ):
                    found.append(int(entry.name))
        return found

    async def empty(self) -> None:
        """Until there is no task, not even one that is being ended."""
        while list(self.tasks._table):  # noqa: ASYNC110 the table has nobody to tell of its end
            await asyncio.sleep(0.002)

    async def nothing_left(self) -> None:
        """Until there is nothing: a shim ends after it has answered."""
        for pid in self.shims():
            await gone(pid)
        assert self.leftovers() == []


async def gone(pid: int) -> None:
    """Until a process has ended, whoever is to reap it."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            ended = await asyncio.to_thread(_ends, handle)
            assert ended, f"process {pid} goes on"
        finally:
            os.close(handle)


def _ends(handle: int) -> bool:
    return bool(select.select([handle], [], [], 20)[0])


@contextlib.asynccontextmanager
async def machine(folder: Path, runtime: str = "") -> AsyncIterator[Machine]:
    """A booted machine that uses ``runtime`` ("" for what the probe chooses)."""
    choice = probe.probe() if not runtime else of(runtime)
    settings = RuntimeSettings(
        root=str(folder / "root"),
        state=str(folder / "state"),
        socket_dir=str(folder / "s"),
        ttrpc_address=str(folder / "t.sock"),
        grpc_address=str(folder / "g.sock"),
        publish_binary="/bin/true",
        runtime=choice.binary,
        hide_unified=choice.hide_unified,
    )
    unpack(folder / "rootfs")
    here = Machine(folder, Scope(f"kt{uuid.uuid4().hex[:8]}"), settings)
    await here.boot()
    try:
        yield here
    finally:
        await here.halt()
        scrub(here)


def of(runtime: str) -> probe.RuntimeChoice:
    """What the probe would find for one runtime alone."""
    binary = probe.locate(runtime)
    assert binary, f"{runtime} is not installed"
    return probe.RuntimeChoice(binary, bool(probe.attempt(binary, False)))


def unpack(path: Path) -> None:
    """A root file system."""
    path.mkdir()
    with tarfile.open(fileobj=io.BytesIO(images.base_layer())) as tar:
        tar.extractall(path, filter="fully_trusted")


def scrub(here: Machine) -> None:
    """Take away what a failed test left."""
    for id in here.records.by_id:
        for group in Path(cgroups.ROOT).glob(f"*{here.cgroup(id)}"):
            for pid in cgroups.pids(str(group)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    for pid in here.shims():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for bundle in here.tasks.shims.bundles.all():
        bundle.delete()
    for id in here.records.by_id:
        for group in Path(cgroups.ROOT).glob(f"*{here.cgroup(id)}"):
            cgroups.remove(str(group))
    shutil.rmtree("/run/containerd/runc/" + here.scope.namespace, ignore_errors=True)
