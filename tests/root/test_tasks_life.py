"""Real containers through the task manager: their life, and what is left when something dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kontti.errors import Error, NotFound
from kontti.linux import libc
from kontti.runtime import probe
from kontti.tasks.base import ExecOptions, Status, Stdio
from kontti.values import AnyValue, Mount
from kontti.wire.messages.events.task import TaskExit
from tests.support.containers import SLEEP, Machine, gone, machine
from tests.support.shims import short_folder

pytestmark = pytest.mark.root
EXTERNAL = "/usr/bin/containerd-shim-runc-v2"
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def play(folder: Path, scene: Callable[[Machine], Awaitable[None]], runtime: str = "") -> None:
    """Run ``scene`` on a machine of its own, and look for what it left."""

    async def main() -> None:
        async with asyncio.timeout(100), machine(folder, runtime) as here:
            await scene(here)
            await here.nothing_left()

    asyncio.run(main())


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_whole_life(folder: Path, runtime: str) -> None:
    async def scene(here: Machine) -> None:
        here.add("one", "sh", "-c", "echo hello; exit 7")
        pid = await here.run("one")
        ended = await here.tasks.wait(here.scope, "one")
        assert ended.status == 7
        process = await here.tasks.get(here.scope, "one")
        assert (process.status, process.pid, process.exit_status) == (Status.STOPPED, pid, 7)
        deleted = await here.tasks.delete(here.scope, "one")
        assert (deleted.pid, deleted.status, deleted.exited_at) == (pid, 7, ended.exited_at)
        assert here.output("one") == "hello\n"
        await here.event("delete")
        assert here.topics() == ["create", "start", "exit", "delete"]

    play(folder, scene, runtime)


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_everything_else_that_a_task_can_do(folder: Path, runtime: str) -> None:
    async def scene(here: Machine) -> None:
        tasks, scope = here.tasks, here.scope
        here.add("one", *SLEEP)
        pid = await here.run("one")
        assert [p.pid for p in await tasks.pids(scope, "one")] == [pid]
        (metric,) = await tasks.metrics(scope, ["id==one"])
        assert metric.data.type_url.endswith("Metrics")
        await tasks.pause(scope, "one")
        assert (await tasks.get(scope, "one")).status is Status.PAUSED
        await tasks.resume(scope, "one")
        spec = AnyValue(PROCESS, b'{"args":["/bin/sh","-c","echo in; exit 3"],"cwd":"/"}')
        stdio = Stdio(stdout=f"file://{here.folder}/exec.out")
        await tasks.exec(scope, "one", ExecOptions("e", spec, stdio))
        await tasks.start(scope, "one", "e")
        assert (await tasks.wait(scope, "one", "e")).status == 3
        assert (await tasks.delete_process(scope, "one", "e")).status == 3
        assert here.output("exec") == "in\n"
        with pytest.raises(NotFound):
            await tasks.get(scope, "one", "e")
        await here.kill_and_delete("one")

    play(folder, scene, runtime)


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_command_that_is_not_there_leaves_nothing(folder: Path, runtime: str) -> None:
    async def scene(here: Machine) -> None:
        here.add("one", "/bin/nothing")
        text = f"failed to create shim task: OCI runtime create failed: {runtime} create failed: "
        with pytest.raises(Error, match=text):
            await here.run("one")
        assert await here.tasks.list(here.scope) == []

    play(folder, scene, runtime)


def test_a_root_that_cannot_be_mounted_leaves_nothing(folder: Path) -> None:
    async def scene(here: Machine) -> None:
        here.add("one", *SLEEP)
        rootfs = [*here.options("one").rootfs, Mount("bind", "/no/such/thing", ("bind",))]
        with pytest.raises(Error, match="failed to create shim task: failed to mount rootfs"):
            await here.tasks.create(here.scope, "one", replace(here.options("one"), rootfs=rootfs))

    play(folder, scene)


def test_a_task_goes_on_while_the_daemon_is_away(folder: Path) -> None:
    async def scene(here: Machine) -> None:
        here.add("one", *SLEEP)
        pid = await here.run("one")
        await here.halt()
        os.kill(pid, 0)
        await here.boot()
        process = await here.tasks.get(here.scope, "one")
        assert (process.status, process.pid) == (Status.RUNNING, pid)
        await here.kill_and_delete("one")

    play(folder, scene)


def test_an_exit_while_the_daemon_is_away_is_heard_later(folder: Path) -> None:
    async def scene(here: Machine) -> None:
        here.add("one", "sh", "-c", "while ! [ -e /go ]; do sleep 0.01; done; exit 9")
        pid = await here.run("one")
        await here.halt()
        (here.folder / "rootfs" / "go").touch()
        await gone(pid)
        assert "exit" not in here.topics()
        await here.boot()
        exit = TaskExit.decode(await here.event("exit"))
        assert (exit.container_id, exit.pid, exit.exit_status) == ("one", pid, 9)
        assert (await here.tasks.wait(here.scope, "one")).status == 9
        assert (await here.tasks.delete(here.scope, "one")).status == 9

    play(folder, scene)


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_killed_shim_is_cleaned_up_after(folder: Path, runtime: str) -> None:
    async def scene(here: Machine) -> None:
        here.add("one", *SLEEP)
        pid = await here.run("one")
        waiting = asyncio.create_task(here.tasks.wait(here.scope, "one"))
        (shim,) = here.shims()
        os.kill(shim, signal.SIGKILL)
        ended = await waiting
        assert (ended.status, ended.pid) == (137, pid)
        await gone(pid)
        exit = TaskExit.decode(await here.event("exit"))
        assert (exit.id, exit.pid, exit.exit_status) == ("one", pid, 137)
        await here.event("delete")
        assert await here.tasks.list(here.scope) == []
        here.add("one", "true")
        await here.run("one")
        await here.tasks.wait(here.scope, "one")
        await here.tasks.delete(here.scope, "one")

    play(folder, scene, runtime)


def test_a_shim_that_was_killed_while_the_daemon_was_away(folder: Path) -> None:
    async def scene(here: Machine) -> None:
        here.add("one", *SLEEP)
        pid = await here.run("one")
        await here.halt()
        (shim,) = here.shims()
        os.kill(shim, signal.SIGKILL)
        await gone(shim)
        await here.boot()
        await here.tasks.loaded()
        await gone(pid)
        assert await here.tasks.list(here.scope) == []
        assert here.topics()[-2:] == ["exit", "delete"]

    play(folder, scene)


def test_a_stopped_shim_holds_up_nobody_and_keeps_its_container(folder: Path) -> None:
    async def scene(here: Machine) -> None:
        here.settings = replace(here.settings, state_seconds=1.0, load_seconds=1.0)
        here.add("one", *SLEEP)
        here.add("two", *SLEEP)
        first = await here.run("one")
        (shim,) = here.shims()
        await here.run("two")
        os.kill(shim, signal.SIGSTOP)
        try:
            await here.halt()
            await here.boot()
            found = {p.container_id: p.status for p in await here.tasks.list(here.scope)}
            assert found == {"one": Status.UNKNOWN, "two": Status.RUNNING}
            await here.kill_and_delete("two")
        finally:
            os.kill(shim, signal.SIGCONT)
        await here.tasks.loaded()
        process = await here.tasks.get(here.scope, "one")
        assert (process.status, process.pid) == (Status.RUNNING, first)
        await here.kill_and_delete("one")

    play(folder, scene)


def test_a_daemon_that_was_killed_before_create_leaves_a_shim_that_is_ended(folder: Path) -> None:
    async def scene(here: Machine) -> None:
        shims = here.tasks.shims
        bundle = shims.bundles.create(here.scope.namespace, "one", b"{}")
        bootstrap = shims.zygote.bootstrap(bundle, "")
        bundle.write_binary("")
        bundle.write_bootstrap(bootstrap)
        shim = await shims.zygote.shim(bundle, bootstrap)
        await here.halt()
        await here.boot()
        await here.tasks.loaded()
        await gone(shim)
        assert here.topics() == []

    play(folder, scene)


def test_a_group_shares_a_shim_until_its_last_task(folder: Path) -> None:
    async def scene(here: Machine) -> None:
        group = {"io.containerd.runc.v2.group": "pod"}
        for id in ("one", "two", "three"):
            here.add(id, *SLEEP, annotations=group)
        await asyncio.gather(*(here.run(id) for id in ("one", "two", "three")))
        assert len(here.shims()) == 1
        await here.kill_and_delete("one")
        await here.halt()
        await here.boot()
        await here.kill_and_delete("two")
        assert (await here.tasks.get(here.scope, "three")).status is Status.RUNNING
        (shim,) = here.shims()
        os.kill(shim, signal.SIGKILL)
        await here.event("exit")
        await here.empty()

    play(folder, scene)


@pytest.mark.parametrize("delay", [0.001, 0.005, 0.008, 0.012, 0.02])
def test_a_caller_who_goes_away_gets_no_container(folder: Path, delay: float) -> None:
    async def scene(here: Machine) -> None:
        here.add("one", *SLEEP)
        creating = asyncio.create_task(here.run("one"))
        # as far as it comes: the end must be the same wherever it is given up
        await asyncio.sleep(delay)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        await here.empty()

    play(folder, scene)


def test_debians_shim_is_driven_as_well(folder: Path) -> None:
    async def scene(here: Machine) -> None:
        here.add("one", "sh", "-c", "echo hello; exit 7", runtime=EXTERNAL)
        await here.run("one")
        assert (await here.tasks.wait(here.scope, "one")).status == 7
        assert (await here.tasks.delete(here.scope, "one")).status == 7
        here.add("two", *SLEEP, runtime=EXTERNAL)
        pid = await here.run("two")
        await here.halt()
        await here.boot()
        waiting = asyncio.create_task(here.tasks.wait(here.scope, "two"))
        assert (await here.tasks.get(here.scope, "two")).pid == pid
        for shim in here.shims():
            os.kill(shim, signal.SIGKILL)
        assert (await waiting).status == 137
        await gone(pid)

    play(folder, scene, "runc")


def test_what_is_mounted_inside_a_bundle_is_not_removed_with_it(folder: Path) -> None:
    async def scene(here: Machine) -> None:
        bundle = here.tasks.shims.bundles.create(here.scope.namespace, "one", b"{}")
        precious = here.folder / "precious"
        precious.mkdir()
        (precious / "file").write_text("kept")
        for place in ("rootfs", "rootfs/file system"):
            target = Path(bundle.path) / place
            target.mkdir(exist_ok=True)
            libc.mount(str(precious), str(target), None, libc.MS_BIND, None)
            (target / "file system").mkdir(exist_ok=True)
        bundle.delete()
        assert not Path(bundle.path).exists()
        assert (precious / "file").read_text() == "kept"

    play(folder, scene)


def test_the_probe_finds_what_works_here_and_leaves_nothing(tmp_path: Path) -> None:
    choice = probe.choose(str(tmp_path))
    assert os.path.basename(choice.binary) in ("crun", "runc")
    assert probe.attempt(choice.binary, choice.hide_unified) == ""
    assert probe.choose(str(tmp_path)) == choice


def test_the_probe_says_what_is_wrong_with_a_runtime(tmp_path: Path) -> None:
    broken = tmp_path / "crun"
    broken.write_text("#!/bin/sh\necho no such syscall >&2\nexit 1\n")
    broken.chmod(0o755)
    assert probe.attempt(str(broken), False) == "no such syscall"
    assert "Permission denied" in probe.attempt("/etc/passwd", False)


def test_the_probe_is_not_held_up_by_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert probe.probe().binary != ""
