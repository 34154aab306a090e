"""Sandboxes through the daemon: their whole life, what joins them, and sudden deaths."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from kontti.client.client import FOREVER, Client
from kontti.errors import (
    AlreadyExists,
    Error,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from kontti.wire.messages.google import Any
from kontti.wire.messages.services.sandbox.v1 import sandbox as api
from kontti.wire.messages.types.sandbox import Sandbox, SandboxRuntime
from kontti.wire.protobuf import Message
from tests.root.test_events import watch
from tests.support import daemons
from tests.support.api import connected
from tests.support.host import IMAGE, Host, gone, host

pytestmark = pytest.mark.root
CONTROLLER = "containerd.services.sandbox.v1.Controller/"
STORE = "containerd.services.sandbox.v1.Store/"
RUNC = "io.containerd.runc.v2"
OWN_BINARY = str(daemons.VENV_BIN / "containerd-shim-kontti-v1")
DEBIAN_SHIM = "/usr/bin/containerd-shim-runc-v2"
SECONDS = 15.0
SLEEP = ("sleep", "1000")
M = TypeVar("M", bound=Message)


class Sandboxes:
    """A client of the sandbox services of a host."""

    def __init__(self, here: Host) -> None:
        self._here = here

    def call(self, name: str, request: Message, response: type[M], timeout: float = SECONDS) -> M:
        """One call."""
        with contextlib.closing(Client(self._here.address, namespace=self._here.namespace)) as to:
            return to.unary(name, request, response, timeout=timeout)

    def create(self, id: str, runtime: str = RUNC, sandboxer: str = "shim") -> None:
        """Record and create one."""
        made = Sandbox(
            sandbox_id=id,
            runtime=SandboxRuntime(name=runtime),
            spec=Any(type_url="spec", value=b'{"ociVersion":"1.0.2"}'),
            sandboxer=sandboxer,
        )
        store = api.StoreCreateRequest(sandbox=made)
        self.call(STORE + "Create", store, api.StoreCreateResponse)
        request = api.ControllerCreateRequest(sandbox_id=id, sandbox=made, sandboxer=sandboxer)
        self.call(CONTROLLER + "Create", request, api.ControllerCreateResponse)

    def start(self, id: str) -> api.ControllerStartResponse:
        request = api.ControllerStartRequest(sandbox_id=id, sandboxer="shim")
        return self.call(CONTROLLER + "Start", request, api.ControllerStartResponse)

    def up(self, id: str, runtime: str = RUNC) -> int:
        """One that is started; its shim's pid."""
        self.create(id, runtime)
        return self.start(id).pid

    def status(self, id: str, *, verbose: bool = False) -> api.ControllerStatusResponse:
        request = api.ControllerStatusRequest(sandbox_id=id, verbose=verbose, sandboxer="shim")
        return self.call(CONTROLLER + "Status", request, api.ControllerStatusResponse)

    def stop(self, id: str) -> None:
        request = api.ControllerStopRequest(sandbox_id=id, sandboxer="shim")
        self.call(CONTROLLER + "Stop", request, api.ControllerStopResponse)

    def wait(self, id: str) -> api.ControllerWaitResponse:
        request = api.ControllerWaitRequest(sandbox_id=id, sandboxer="shim")
        return self.call(CONTROLLER + "Wait", request, api.ControllerWaitResponse, FOREVER)

    def shutdown(self, id: str) -> None:
        request = api.ControllerShutdownRequest(sandbox_id=id, sandboxer="shim")
        self.call(CONTROLLER + "Shutdown", request, api.ControllerShutdownResponse)

    def forget(self, id: str) -> None:
        request = api.StoreDeleteRequest(sandbox_id=id)
        self.call(STORE + "Delete", request, api.StoreDeleteResponse)

    def remove(self, id: str) -> None:
        """Shut down and forget."""
        self.shutdown(id)
        self.forget(id)


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    with host() as made:
        yield made


@pytest.fixture
def sandboxes(here: Host) -> Iterator[Sandboxes]:
    """With nothing left of any at the end."""
    made = Sandboxes(here)
    yield made
    assert made.call(STORE + "List", api.StoreListRequest(), api.StoreListResponse).list == []
    assert here.nothing() == {}
    assert bundles(here) == []
    assert shims(here) == []


def bundles(here: Host) -> list[str]:
    found = (here.base / "state").glob("io.containerd.sandbox.controller.v1.shim/*/*")
    return sorted(p.name for p in found)


def shims(here: Host) -> list[int]:
    """Shims that keep sandboxes or tasks of this host."""
    return [pid for pid in daemons.shims(here.base) if "/state/io.containerd" in _cwd(pid)]


def _cwd(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def run(here: Host, id: str, sandbox: str) -> int:
    here.out("run", "-d", "--null-io", "--sandbox", sandbox, IMAGE, id, *SLEEP)
    return here.tasks()[id][0]


def parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("runtime", [RUNC, OWN_BINARY])
def test_a_whole_life(here: Host, sandboxes: Sandboxes, runtime: str) -> None:
    with watch(here, 'topic~="^/sandboxes/"') as watcher:
        sandboxes.create("pod", runtime)
        watcher.until("/sandboxes/create", sandbox_id="pod")
        assert bundles(here) == ["pod"]
        assert sandboxes.status("pod").state == "SANDBOX_NOTREADY"
        started = sandboxes.start("pod")
        watcher.until("/sandboxes/start", sandbox_id="pod")
        assert started.address.startswith("ttrpc+unix:///")
        assert started.version == 3
        found = sandboxes.status("pod", verbose=True)
        assert (found.sandbox_id, found.state) == ("pod", "SANDBOX_READY")
        assert (found.pid, found.created_at) == (started.pid, started.created_at)
        assert json.loads(found.info["containers"]) == []
        sandboxes.stop("pod")
        ended = sandboxes.wait("pod")
        assert ended.exit_status == 0
        watcher.until("/sandboxes/exit", sandbox_id="pod")
        assert sandboxes.wait("pod") == ended
        assert sandboxes.status("pod").state == "SANDBOX_NOTREADY"
        sandboxes.remove("pod")
        assert gone(started.pid)
        exits = [e for e in watcher.seen if e.topic == "/sandboxes/exit"]
        assert len(exits) == 1, watcher.topics()


def test_containers_share_the_sandboxs_shim(here: Host, sandboxes: Sandboxes) -> None:
    shim = sandboxes.up("pod")
    first, second = run(here, "one", "pod"), run(here, "two", "pod")
    assert parent(first) == parent(second) == shim
    noted = here.base / "state" / "io.containerd.runtime.v2.task" / here.namespace / "one"
    assert (noted / "sandbox").read_text() == "pod"
    here.out("tasks", "kill", "-s", "SIGKILL", "one")
    here.until("one", "STOPPED")
    here.out("tasks", "rm", "one")
    here.out("tasks", "rm", "-f", "two")
    assert sandboxes.status("pod").state == "SANDBOX_READY"
    assert parent(run(here, "three", "pod")) == shim
    sandboxes.remove("pod")
    assert here.tasks() == {}
    here.out("containers", "rm", "one", "two", "three")


@pytest.mark.parametrize("prefix", ["", "ttrpc+"])
def test_a_task_in_a_shim_that_the_caller_names(
    here: Host, sandboxes: Sandboxes, tmp_path: Path, prefix: str
) -> None:
    sandboxes.create("pod")
    started = sandboxes.start("pod")
    with connected(here.address, here.namespace, tmp_path) as tasks:
        tasks.record("named", tasks.spec("named", *SLEEP))
        where = prefix + started.address.removeprefix("ttrpc+")
        pid = tasks.create("named", task_api_address=where, task_api_version=started.version)
        assert parent(pid) == started.pid
        tasks.start("named")
        tasks.kill("named")
        assert tasks.wait("named").code == 137
        tasks.delete("named")
        # the shim is not the task's to end
        assert sandboxes.status("pod").state == "SANDBOX_READY"
        with pytest.raises(InvalidArgument, match="task API address"):
            tasks.create("named", task_api_address="/etc/passwd")
        with pytest.raises(InvalidArgument, match="task API version 9"):
            tasks.create("named", task_api_address=where, task_api_version=9)
        with pytest.raises(Unavailable):
            tasks.create("named", task_api_address="unix:///no/such.sock")
        tasks.forget("named")
    sandboxes.remove("pod")
    # the next that listens there is nobody's but ours
    here.out("run", "--rm", IMAGE, "pod", "true")
    assert shims(here) == []


def test_a_shim_that_is_a_binary(here: Host, sandboxes: Sandboxes) -> None:
    shim = sandboxes.up("pod", OWN_BINARY)
    assert parent(run(here, "one", "pod")) == shim
    sandboxes.stop("pod")
    here.until("one", "STOPPED")
    sandboxes.remove("pod")
    here.out("containers", "rm", "one")


def test_platform_metrics_and_update(sandboxes: Sandboxes) -> None:
    sandboxes.up("pod")
    request = api.ControllerPlatformRequest(sandbox_id="pod", sandboxer="shim")
    answer = sandboxes.call(CONTROLLER + "Platform", request, api.ControllerPlatformResponse)
    assert answer.platform is not None
    wanted = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    assert (answer.platform.os, answer.platform.architecture) == ("linux", wanted)
    asked = api.ControllerMetricsRequest(sandbox_id="pod", sandboxer="shim")
    found = sandboxes.call(CONTROLLER + "Metrics", asked, api.ControllerMetricsResponse).metrics
    assert found is not None
    assert found.id == "pod"
    update = api.ControllerUpdateRequest(
        sandbox_id="pod", sandboxer="shim", sandbox=Sandbox(sandbox_id="pod"), fields=["labels"]
    )
    sandboxes.call(CONTROLLER + "Update", update, api.ControllerUpdateResponse)
    sandboxes.remove("pod")


def test_what_is_refused(here: Host, sandboxes: Sandboxes) -> None:
    with pytest.raises(NotFound, match="failed to get sandbox controller by other"):
        sandboxes.create("pod", sandboxer="other")
    sandboxes.forget("pod")
    with pytest.raises(InvalidArgument, match="sandbox controller name can not be empty"):
        sandboxes.create("pod", sandboxer="")
    sandboxes.forget("pod")
    with pytest.raises(NotFound):
        sandboxes.start("none")
    with pytest.raises(NotFound):
        sandboxes.shutdown("none")
    with pytest.raises(NotFound):
        sandboxes.wait("none")
    sandboxes.stop("none")
    assert sandboxes.status("none").state == ""
    sandboxes.create("pod")
    request = api.ControllerCreateRequest(sandbox_id="pod", sandboxer="shim")
    with pytest.raises(AlreadyExists, match="sandbox pod already running"):
        sandboxes.call(CONTROLLER + "Create", request, api.ControllerCreateResponse)
    failed = here.ctr("run", "-d", "--null-io", "--sandbox", "pod", IMAGE, "pod", *SLEEP)
    assert b"sandbox pod: already exists" in failed.stderr
    here.out("containers", "rm", "pod")
    sandboxes.remove("pod")


@pytest.mark.parametrize("runtime", ["", "no.such.v9", "/nowhere", DEBIAN_SHIM])
def test_a_create_that_fails_leaves_nothing(here: Host, sandboxes: Sandboxes, runtime: str) -> None:
    # Debian's shim is a real one of before there were sandboxes
    wanted = Unimplemented if runtime == DEBIAN_SHIM else Error
    with pytest.raises(wanted, match="sandbox pod"):
        sandboxes.create("pod", runtime)
    sandboxes.forget("pod")
    assert bundles(here) == []


def test_a_sandbox_that_is_only_recorded_takes_no_task(here: Host, sandboxes: Sandboxes) -> None:
    made = Sandbox(sandbox_id="pod", runtime=SandboxRuntime(name=RUNC))
    store = api.StoreCreateRequest(sandbox=made)
    sandboxes.call(STORE + "Create", store, api.StoreCreateResponse)
    failed = here.ctr("run", "-d", "--null-io", "--sandbox", "pod", IMAGE, "one", *SLEEP)
    assert failed.returncode == 1
    assert b"can't find shim for sandbox pod: not found" in failed.stderr
    here.out("containers", "rm", "one")
    sandboxes.forget("pod")


class Waiting:
    """A Wait in a thread."""

    def __init__(self, sandboxes: Sandboxes, id: str) -> None:
        self.answer: api.ControllerWaitResponse | None = None
        self._thread = threading.Thread(target=self._run, args=(sandboxes, id), daemon=True)
        self._thread.start()

    def _run(self, sandboxes: Sandboxes, id: str) -> None:
        with contextlib.suppress(Error):
            self.answer = sandboxes.wait(id)

    def status(self) -> int:
        """The exit status that it was answered."""
        self._thread.join(SECONDS)
        assert self.answer is not None
        return self.answer.exit_status


@pytest.mark.parametrize("runtime", [RUNC, OWN_BINARY])
def test_a_killed_daemon_finds_its_sandboxes_again(
    here: Host, sandboxes: Sandboxes, runtime: str
) -> None:
    shim = sandboxes.up("pod", runtime)
    sandboxes.up("empty", runtime)
    one = run(here, "one", "pod")
    here.kill()
    here.start()
    assert sandboxes.status("pod").pid == shim
    assert sandboxes.status("empty").state == "SANDBOX_READY"
    assert here.tasks()["one"] == (one, "RUNNING")
    assert parent(run(here, "two", "pod")) == shim
    assert run(here, "three", "empty") > 0
    waiting = Waiting(sandboxes, "pod")
    sandboxes.stop("pod")
    assert waiting.status() == 0
    sandboxes.remove("pod")
    sandboxes.remove("empty")
    here.out("containers", "rm", "one", "two", "three")


@pytest.mark.parametrize("runtime", [RUNC, OWN_BINARY])
def test_a_killed_shim_is_a_sandbox_that_ended(
    here: Host, sandboxes: Sandboxes, runtime: str
) -> None:
    with watch(here, 'topic~="^/(sandboxes|tasks)/"') as watcher:
        shim = sandboxes.up("pod", runtime)
        one = run(here, "one", "pod")
        waiting = Waiting(sandboxes, "pod")
        os.kill(shim, signal.SIGKILL)
        assert watcher.until("/sandboxes/exit").body["exit_status"] == 137
        watcher.until("/tasks/exit", container_id="one")
        watcher.until("/tasks/delete", container_id="one")
    assert waiting.status() == 137
    assert gone(one)
    assert sandboxes.wait("pod").exit_status == 137
    assert sandboxes.status("pod").state == "SANDBOX_NOTREADY"
    failed = here.ctr("run", "-d", "--null-io", "--sandbox", "pod", IMAGE, "two", *SLEEP)
    assert b"can't find shim for sandbox pod" in failed.stderr
    assert bundles(here) == []
    with pytest.raises(NotFound):
        sandboxes.start("pod")
    sandboxes.remove("pod")
    here.out("containers", "rm", "one", "two")


def test_a_shim_that_dies_without_a_daemon(here: Host, sandboxes: Sandboxes) -> None:
    shim = sandboxes.up("pod")
    one = run(here, "one", "pod")
    here.kill()
    os.kill(shim, signal.SIGKILL)
    here.start()
    assert sandboxes.wait("pod").exit_status == 137
    assert gone(one)
    deadline = time.monotonic() + SECONDS
    while here.tasks():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sandboxes.shutdown("pod")
    # a new one of the same name is as good as the first
    request = api.ControllerCreateRequest(sandbox_id="pod", sandboxer="shim")
    sandboxes.call(CONTROLLER + "Create", request, api.ControllerCreateResponse)
    sandboxes.start("pod")
    sandboxes.remove("pod")
    here.out("containers", "rm", "one")


def test_ctr(here: Host, sandboxes: Sandboxes) -> None:
    config = here.base / "pod.json"
    config.write_text('{"ociVersion": "1.0.2"}')
    assert here.out("sandboxes", "run", str(config), "pod") == "pod\n"
    again = here.ctr("sandbox", "create", str(config), "pod")
    assert b'sandbox "pod": already exists' in again.stderr
    header, row = here.out("sb", "ls").splitlines()
    assert header.split() == ["ID", "CREATED", "RUNTIME"]
    assert (row.split()[0], row.split()[-1]) == ("pod", RUNC)
    assert here.out("s", "list", "--filters", "id==other").splitlines() == ["ID CREATED RUNTIME "]
    shown = json.loads(here.out("sandboxes", "info", "pod"))
    assert (shown["ID"], shown["Sandboxer"]) == ("pod", "shim")
    run(here, "one", "pod")
    here.out("sandboxes", "rm", "pod")
    assert here.ctr("sandboxes", "rm", "pod").returncode == 1
    here.out("containers", "rm", "one")


def test_ctr_leaves_no_record_of_one_that_does_not_start(here: Host, sandboxes: Sandboxes) -> None:
    config = here.base / "pod.json"
    config.write_text("{}")
    failed = here.ctr("sandboxes", "run", "--runtime", "no.such.v9", str(config), "pod")
    assert failed.returncode == 1
    config.write_text("{")
    assert b"failed to parse sandbox config" in here.ctr("s", "r", str(config), "x").stderr


def test_a_stopped_daemon_leaves_sandboxes_up(here: Host, sandboxes: Sandboxes) -> None:
    shim = sandboxes.up("pod")
    assert here.stop() == 0
    assert not _ended(shim)
    here.start()
    assert sandboxes.status("pod").state == "SANDBOX_READY"
    sandboxes.remove("pod")


def _ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
