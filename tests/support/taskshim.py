"""A shim forked from a real zygote, driven over its socket as a daemon drives it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kontti.linux import cgroups
from kontti.runtime.probe import RuntimeChoice
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.messages.types.mount import Mount
from kontti.wire.messages.types.runc.options.oci import Options
from tests.support import containers
from tests.support.shimpeers import SECONDS, Client, Events, Fifo

KINDS = ("pid", "ipc", "uts", "mount", "network")
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
MOUNTS = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
    },
)
Json = Mapping[str, object]


@functools.cache
def choice(runtime: str) -> RuntimeChoice:
    """How to run ``crun`` or ``runc`` here."""
    return containers.of(runtime)


@dataclass
class Pod:
    """A shim with an event socket, and the bundles of its containers."""

    folder: Path
    namespace: str
    runtime: str
    client: Client
    events: Events
    pid: int
    options: Options
    streams: list[Fifo] = field(default_factory=list)

    def fifo(self, name: str) -> Fifo:
        """A FIFO that is taken away at the end."""
        made = Fifo(self.folder / name)
        self.streams.append(made)
        return made

    def feed(self, fifo: Fifo, data: bytes) -> None:
        """Write to a stdin that the shim has opened, and hang up."""
        with open(fifo.path, "wb", buffering=0) as file:
            file.write(data)

    def cgroup(self, id: str) -> str:
        """A container's control group, right below the top."""
        return f"/{self.namespace}-{id}"

    def bundle(self, id: str, *args: str, linux: Json | None = None, **process: object) -> Path:
        """A bundle of busybox with ``args``."""
        path = self.folder / "b" / id
        (path / "rootfs").mkdir(parents=True)
        base: Json = {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
        }
        spec = {
            "ociVersion": "1.0.2",
            "process": {**base, **process},
            "root": {"path": "rootfs"},
            "mounts": MOUNTS,
            "linux": {
                "namespaces": [{"type": kind} for kind in KINDS],
                "cgroupsPath": self.cgroup(id),
                **(linux or {}),
            },
        }
        (path / "config.json").write_text(json.dumps(spec))
        return path

    def create_request(self, id: str, **streams: object) -> api.CreateTaskRequest:
        """To create the container of a bundle that is there."""
        rootfs = Mount(type="bind", source=str(self.folder.parent / "rootfs"), options=["rbind"])
        names = {k: str(v) for k, v in streams.items() if k != "terminal"}
        return api.CreateTaskRequest(
            id=id,
            bundle=str(self.folder / "b" / id),
            rootfs=[rootfs],
            terminal=bool(streams.get("terminal")),
            options=Any(type_url=Options.NAME, value=self.options.encode()),
            **names,
        )

    def create(self, id: str, *args: str, linux: Json | None = None, **streams: object) -> int:
        """Make a bundle and create its container; the pid."""
        process = {"terminal": True} if streams.get("terminal") else {}
        self.bundle(id, *args, linux=linux, **process)
        request = self.create_request(id, **streams)
        return self.client.call("Create", request, api.CreateTaskResponse).pid

    def start(self, id: str, exec_id: str = "") -> int:
        """Start a container or an exec'd process; the pid."""
        request = api.StartRequest(id=id, exec_id=exec_id)
        return self.client.call("Start", request, api.StartResponse).pid

    def run(self, id: str, *args: str, linux: Json | None = None, **streams: object) -> int:
        """Create and start."""
        self.create(id, *args, linux=linux, **streams)
        return self.start(id)

    def wait(self, id: str, exec_id: str = "") -> int:
        """Until a process has ended; its exit code."""
        request = api.WaitRequest(id=id, exec_id=exec_id)
        return self.client.call("Wait", request, api.WaitResponse).exit_status

    def state(self, id: str, exec_id: str = "") -> api.StateResponse:
        """What a process is doing."""
        request = api.StateRequest(id=id, exec_id=exec_id)
        return self.client.call("State", request, api.StateResponse)

    def kill(self, id: str, number: int = signal.SIGKILL, **more: object) -> None:
        """Send a signal."""
        request = api.KillRequest(id=id, signal=number, **more)  # type: ignore[arg-type]
        self.client.call("Kill", request, Empty)

    def delete(self, id: str, exec_id: str = "") -> api.DeleteResponse:
        """Forget a process that has ended."""
        request = api.DeleteRequest(id=id, exec_id=exec_id)
        return self.client.call("Delete", request, api.DeleteResponse)

    def end(self, id: str) -> int:
        """Kill, wait and delete; the exit code."""
        self.kill(id)
        status = self.wait(id)
        assert self.delete(id).exit_status == status
        return status

    def exec(self, id: str, exec_id: str, *args: str, **streams: object) -> None:
        """Add a process that is not started yet."""
        terminal = bool(streams.pop("terminal", False))
        process = {"args": args, "cwd": "/", "env": ["PATH=/bin"], "terminal": terminal}
        names = {k: str(v) for k, v in streams.items()}
        request = api.ExecProcessRequest(
            id=id,
            exec_id=exec_id,
            terminal=terminal,
            spec=Any(type_url=PROCESS_URL, value=json.dumps(process).encode()),
            **names,
        )
        self.client.call("Exec", request, Empty)

    def close_stdin(self, id: str, exec_id: str = "") -> None:
        """Say that no more input comes."""
        request = api.CloseIORequest(id=id, exec_id=exec_id, stdin=True)
        self.client.call("CloseIO", request, Empty)

    def shut_down(self) -> None:
        """Have the shim end, as it has to when no container is left."""
        handle = os.pidfd_open(self.pid)
        try:
            self.client.call("Shutdown", api.ShutdownRequest(), Empty)
            assert select.select([handle], [], [], SECONDS)[0], "the shim goes on"
        finally:
            os.close(handle)

    def traces(self) -> list[str]:
        """What there is of the shim and its containers."""
        found = [f"process {pid}: {line}" for pid, line in self.processes().items()]
        found += [str(p) for p in self.folder.glob("s/*")]
        found += [str(p) for p in self.folder.glob("oci/*/*")]
        found += [str(p) for p in Path(cgroups.ROOT).glob(f"*/{self.namespace}-*")]
        for pid in ("self", *self.processes()):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/mountinfo").read_text()
                found += [f"mount {line}" for line in text.splitlines() if str(self.folder) in line]
        return sorted(found)

    def processes(self) -> dict[int, str]:
        """Live processes that work in our folder or are in one of our groups, this one apart."""
        found = {}
        marks = (f"{self.folder}/".encode(), f"/{self.namespace}-".encode())
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                about = line + os.readlink(entry / "cwd").encode() + b"/"
                about += (entry / "cgroup").read_bytes()
                if any(mark in about for mark in marks):
                    found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace")
        return found

    def descriptors(self) -> list[str]:
        """What the shim has open."""
        found = []
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{self.pid}/fd/{name}"))
        return found

    def scrub(self) -> None:
        """Take away what a failed test left."""
        self.client.close()
        self.events.close()
        for stream in self.streams:
            stream.close()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if str(self.folder) in line.split()[4]:
                subprocess.run(["umount", "-l", line.split()[4]], check=False)
        for group in Path(cgroups.ROOT).glob(f"*/{self.namespace}-*"):
            cgroups.remove(str(group))


@dataclass(frozen=True)
class Zygote:
    """What shims are forked from, and the folder for everything."""

    path: Path
    folder: Path

    def fork(self, request: Json) -> dict[str, object]:
        """Ask for a shim; the answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(SECONDS)
            client.connect(str(self.path))
            client.sendall(json.dumps(request).encode() + b"\n")
            with client.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        assert isinstance(answer, dict)
        return answer

    @contextlib.contextmanager
    def pod(self, runtime: str, cgroup: str = "") -> Iterator[Pod]:
        """A shim in ``cgroup`` that uses ``runtime``; whatever is left at the end is taken away."""
        namespace = f"t{uuid.uuid4().hex[:10]}"
        folder = self.folder / namespace
        (folder / "b").mkdir(parents=True)
        chosen = choice(runtime)
        events = Events(folder / "events.sock")
        request = {
            "namespace": namespace,
            "socket": str(folder / "s" / "shim"),
            "ttrpc_address": str(events.path),
            "runtime": chosen.binary,
            "hide_unified": chosen.hide_unified,
            "bundle": str(folder / "b"),
            "cgroup": cgroup,
        }
        answer = self.fork(request)
        client = Client(str(answer["address"]))
        options = Options(root=str(folder / "oci"))
        pid = int(str(answer["pid"]))
        made = Pod(folder, namespace, runtime, client, events, pid, options)
        try:
            yield made
        finally:
            made.scrub()


@contextlib.contextmanager
def zygote(folder: Path) -> Iterator[Zygote]:
    """A zygote that ends with the block, and a root file system for the containers."""
    containers.unpack(folder / "rootfs")
    path = folder / "zygote.sock"
    read, write = os.pipe()
    argv = [sys.executable, "-m", "kontti.shim.zygote", str(path), str(read)]
    with subprocess.Popen(argv, pass_fds=[read], start_new_session=True) as process:
        os.close(read)
        try:
            _listening(path, process)
            yield Zygote(path, folder)
        finally:
            os.close(write)
            process.wait(SECONDS)
    shutil.rmtree(folder / "rootfs")


def _listening(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            try:
                client.connect(str(path))
            except OSError:
                assert process.poll() is None, "the zygote ended"
                assert time.monotonic() < deadline, "the zygote did not start"
                time.sleep(0.005)
            else:
                return


@contextlib.contextmanager
def leftovers(pod: Pod) -> Iterator[None]:
    """Nothing of the block is left: not in the shim, and not when it has ended."""
    # it answers its zygote before it is all set up
    pod.client.call("Connect", api.ConnectRequest(id=""), api.ConnectResponse)
    before, streams = pod.traces(), _streams(pod)
    yield
    assert pod.traces() == before, set(pod.traces()) ^ set(before)
    assert _streams(pod) == streams, (_streams(pod), streams)
    pod.shut_down()
    assert pod.traces() == [], pod.traces()


def _streams(pod: Pod) -> list[str]:
    # its connection to the event socket comes and goes
    return sorted(name for name in pod.descriptors() if not name.startswith("socket:"))
