"""Shims that are dead, hung, lying, flooding: the daemon says which, goes on, and cleans up."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.errors import Error
from kontti.wire.messages.google import Any
from kontti.wire.messages.services.containers.v1 import containers as records
from tests.support.api import CONTAINERS, SPEC, Api, connected
from tests.support.badshim import install
from tests.support.host import Host, gone, host
from tests.support.leftovers import of_host

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
SETTLE = 15.0
CONFIG = """version = 2
[timeouts]
  "io.containerd.timeout.shim.load" = "1s"
  "io.containerd.timeout.shim.cleanup" = "2s"
  "io.containerd.timeout.shim.shutdown" = "1s"
  "io.containerd.timeout.task.state" = "1s"
"""


class Scene:
    """A daemon, a good container on it, and a runtime whose shims do what they are told."""

    def __init__(self, here: Host, api: Api) -> None:
        self.here = here
        self.api = api
        self.folder = here.base / "bad"
        self.binary = install(self.folder)
        self.good = api.run("good", "sleep", "1000")
        self.before = self.picture()

    def picture(self) -> dict[str, set[str]]:
        """What is on the host, the daemon itself apart."""
        assert self.here.process is not None
        seen = of_host(self.here.base, self.here.process.pid, self.here.namespace)
        kinds = ("mounts", "cgroups", "runtime state")
        found = {kind: set(seen[kind]) for kind in kinds}
        found["files"] = {f for f in seen["files"] if f.startswith("state/")}
        # the zygote is another's after a start of the daemon
        found["shims"] = {p for p in seen["processes"] if "zygote" in p or "shim-bad" in p}
        return found

    def record(self, id: str) -> None:
        """A container of that runtime."""
        runtime = records.ContainerRuntime(name=str(self.binary))
        spec = Any(type_url=SPEC, value=b'{"ociVersion":"1.0.2"}')
        container = records.Container(id=id, runtime=runtime, spec=spec)
        request = records.CreateContainerRequest(container=container)
        self.api.client.unary(CONTAINERS + "Create", request, records.CreateContainerResponse)

    def mode(self, **how: str) -> None:
        """From now on."""
        lines = [f"{method} {kind}" for method, kind in how.items()]
        (self.folder / "mode").write_text("\n".join(lines))

    def shim(self, id: str) -> int:
        """The pid of the shim of a container of that runtime."""
        return int((self.folder / f"{id}.pid").read_text())

    def kill_shim(self, id: str) -> None:
        """However it hangs."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(self.shim(id), signal.SIGKILL)

    def well(self) -> None:
        """The daemon answers, soon, and the other container is as it was."""
        begun = time.monotonic()
        assert self.api.get("good").pid == self.good
        assert self.api.run_exec("good", f"e{time.monotonic_ns()}", "true") == 0
        assert "Server:" in self.here.out("version")
        assert time.monotonic() - begun < 10

    def clean(self) -> None:
        """Nothing is left but the good one."""
        (self.folder / "mode").unlink(missing_ok=True)
        deadline = time.monotonic() + SETTLE
        while True:
            now = self.picture()
            more = {k: now[k] - self.before[k] for k in now if now[k] - self.before[k]}
            tasks = set(self.api.list())
            if not more and tasks == {"good"}:
                return
            assert time.monotonic() < deadline, (more, tasks)
            time.sleep(0.1)

    def log(self) -> str:
        """What the daemon has said."""
        return self.here.log.read_text()


@contextlib.contextmanager
def made() -> Iterator[Scene]:
    with host(start=False, image=False) as here:
        here.write_config(CONFIG)
        here.start()
        with connected(here.address, here.namespace, here.base) as api:
            yield Scene(here, api)


@pytest.fixture
def alone() -> Iterator[Scene]:
    """One whose daemon the test may stop."""
    with made() as scene:
        yield scene


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with made() as scene:
        yield scene


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    yield shared
    shared.mode()
    shared.kill_shim("one")
    with contextlib.suppress(Error):
        shared.api.forget("one")


BROKEN = ("garbage", "wrong", "unreadable", "cut", "endless", "die")
HANGING = ("silent", "flood", "stop")


@pytest.mark.parametrize("how", BROKEN)
def test_a_create_that_is_answered_wrongly_leaves_nothing(scene: Scene, how: str) -> None:
    scene.record("one")
    scene.mode(Create=how)
    with pytest.raises(Error, match="failed to create shim task: ") as caught:
        scene.api.create("one")
    assert "Traceback" not in caught.value.message
    scene.well()
    scene.clean()
    # the same name can be had, by a shim that does it right
    assert scene.api.create("one") > 0
    scene.api.start("one")
    assert scene.api.end("one").code == 137
    scene.clean()


@pytest.mark.parametrize("how", HANGING)
def test_a_create_that_is_not_answered_holds_up_nobody(scene: Scene, how: str) -> None:
    scene.record("one")
    scene.mode(Create=how)
    other = impatient(scene, 1.0)
    with pytest.raises(Error):
        other.create("one")
    other.client.close()
    scene.well()
    scene.kill_shim("one")
    scene.clean()
    scene.well()


def impatient(scene: Scene, seconds: float) -> Api:
    """A client whose calls end in time, answered or not."""
    where = scene.here
    return Api(where.address, where.namespace, scene.api.rootfs, timeout=seconds)


@pytest.mark.parametrize("how", [*BROKEN, *HANGING])
def test_a_state_that_is_answered_wrongly(scene: Scene, how: str) -> None:
    """Every way of a shim to be no shim, with a task that runs."""
    scene.record("one")
    scene.api.create("one")
    scene.api.start("one")
    scene.mode(State=how)
    with pytest.raises(Error):
        scene.api.get("one")
    begun = time.monotonic()
    found = scene.api.list()
    assert time.monotonic() - begun < 6
    assert found["good"].pid == scene.good
    scene.well()
    if "one" in scene.api.list():
        scene.kill_shim("one")
    scene.clean()
    scene.well()


@pytest.mark.parametrize("how", [*BROKEN, *HANGING])
def test_a_daemon_starts_with_a_shim_that_is_none(alone: Scene, how: str) -> None:
    """At once, and says which one it is; it is cleaned up after when that is due."""
    alone.record("one")
    alone.api.create("one")
    alone.api.start("one")
    alone.mode(State=how)
    alone.here.stop()
    begun = time.monotonic()
    alone.here.start()
    assert time.monotonic() - begun < 10
    alone.api.client.close()
    alone.api.client = Api(alone.here.address, alone.here.namespace, alone.api.rootfs).client
    alone.well()
    deadline = time.monotonic() + 10
    while "task one in" not in alone.log():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    alone.kill_shim("one")
    alone.clean()
    alone.well()


@pytest.mark.parametrize("how", ["garbage", "wrong", "cut", "die", "silent"])
@pytest.mark.parametrize("method", ["Kill", "Wait", "Delete", "Shutdown"])
def test_an_end_that_goes_wrong(scene: Scene, method: str, how: str) -> None:
    """Whatever the client is told: when the shim is gone, so is everything else."""
    scene.record("one")
    scene.api.create("one")
    scene.api.start("one")
    scene.mode(**{method: how})
    client = impatient(scene, 2.0)
    with contextlib.suppress(Error):
        client.kill("one")
    if method == "Wait":
        with contextlib.suppress(Error):
            client.wait("one")
    with contextlib.suppress(Error):
        client.delete("one")
    client.client.close()
    scene.well()
    scene.kill_shim("one")
    scene.clean()
    scene.well()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_shim_of_ours_that_is_killed(scene: Scene, number: int) -> None:
    """Its container is reported and cleaned up: who waits is told 137."""
    pid = scene.api.run("two", "sleep", "1000")
    shim = shim_of(pid)
    os.kill(shim, number)
    assert scene.api.wait("two").code == 137
    assert gone(pid)
    scene.clean()
    scene.api.forget("two")
    assert "the shim of task two" in scene.log()
    scene.well()


def shim_of(pid: int) -> int:
    """The parent of a container's first process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_many_shims_that_are_killed_at_once(scene: Scene) -> None:
    pids = {f"c{n}": scene.api.run(f"c{n}", "sleep", "1000") for n in range(20)}
    for shim in [shim_of(pid) for pid in pids.values()]:
        os.kill(shim, signal.SIGKILL)
    assert all(gone(pid) for pid in pids.values())
    scene.clean()
    for id in pids:
        scene.api.forget(id)
    scene.well()


def test_a_zygote_that_is_killed(scene: Scene) -> None:
    """Running containers go on, and new ones are had."""
    for _ in range(3):
        zygote = zygote_of(scene.here)
        os.kill(zygote, signal.SIGKILL)
        scene.well()
        scene.api.run("two", "sleep", "1000")
        assert zygote_of(scene.here) != zygote
        assert scene.api.end("two").code == 137
    scene.clean()


def test_a_zygote_that_hangs(scene: Scene) -> None:
    """Whoever waits for it is told so, and the next one gets another."""
    zygote = zygote_of(scene.here)
    os.kill(zygote, signal.SIGSTOP)
    scene.well()
    said = ""
    for number in range(10):  # the first ones get what was forked ahead
        id = f"two{number}"
        scene.api.record(id, scene.api.spec(id, "sleep", "1000"))
        try:
            scene.api.create(id)
        except Error as error:
            said = error.message
            scene.api.forget(id)
            break
        assert scene.api.end(id).code == 137
    assert said == "failed to start shim: the shims' zygote did not answer in time: unavailable"
    assert gone(zygote)
    scene.api.run("three", "true")
    assert scene.api.wait("three").code == 0
    scene.api.delete("three")
    scene.api.forget("three")
    scene.clean()
    scene.well()


def zygote_of(here: Host) -> int:
    assert here.process is not None
    pid = here.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for task in Path(f"/proc/{pid}/task").iterdir():
        children += (task / "children").read_text().split()
    for child in map(int, children):
        if b"kontti.shim.zygote" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    raise AssertionError("no zygote")


SCRIPTS = {
    "sessions": "setsid sleep 1000 & (setsid sh -c 'setsid sleep 1000 & setsid sleep 1000') & wait",
    "orphans": "(sleep 1000 &) ; (sh -c 'sleep 1000 & exec sleep 1000' &) ; exec sleep 1000",
    "deaf": "trap '' TERM INT; (trap '' TERM; sleep 1000; sleep 1000) & while :; do sleep 1; done",
    "forks": "i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done; wait",
    "storm": "for n in 1 2 3; do (while :; do setsid sleep 1000 & done) & done; sleep 0.3",
    "ends first": "setsid sleep 1000 & setsid sh -c 'sleep 1000; sleep 1000' & exit 0",
}


@pytest.mark.parametrize("space", ["own", "host"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_daemons_of_a_container_end_with_it(scene: Scene, name: str, space: str) -> None:
    limit = {"pids": {"limit": 500}}
    kinds = ("pid", "ipc", "uts", "mount", "network") if space == "own" else ("ipc", "uts", "mount")
    spaces = [{"type": kind} for kind in kinds]
    linux = scene.api.linux("two", namespaces=spaces, resources=limit)
    scene.api.record("two", scene.api.spec("two", "sh", "-c", SCRIPTS[name], linux=linux))
    scene.api.create("two")
    group = scene.here.namespace + "/two"
    scene.api.start("two")
    if name in ("ends first", "storm"):
        assert scene.api.wait("two").code == 0
    else:
        time.sleep(0.4)
        assert len(members(group)) >= 2
        scene.api.kill("two")
        assert scene.api.wait("two").code == 137
    scene.api.delete("two")
    scene.api.forget("two")
    deadline = time.monotonic() + 5
    while members(group):
        assert time.monotonic() < deadline, members(group)
        time.sleep(0.05)
    scene.clean()


@pytest.mark.parametrize("space", ["own", "host"])
def test_daemons_of_a_container_end_with_its_shim(scene: Scene, space: str) -> None:
    """Also where the shim was killed, and somebody else cleans up."""
    kinds = ("pid", "ipc", "uts", "mount", "network") if space == "own" else ("ipc", "uts", "mount")
    linux = scene.api.linux("two", namespaces=[{"type": kind} for kind in kinds])
    scene.api.record("two", scene.api.spec("two", "sh", "-c", SCRIPTS["sessions"], linux=linux))
    scene.api.create("two")
    pid = scene.api.start("two")
    time.sleep(0.4)
    group = scene.here.namespace + "/two"
    assert len(members(group)) >= 3
    shim = shim_of(pid)
    os.kill(shim, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while members(group):
        assert time.monotonic() < deadline, members(group)
        time.sleep(0.05)
    scene.clean()
    scene.api.forget("two")


def members(group: str) -> set[str]:
    """Processes in a control group of that name, or that were before it was removed."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if f"/{group}\n" in (entry / "cgroup").read_text():
                    found.add(entry.name)
    return found
