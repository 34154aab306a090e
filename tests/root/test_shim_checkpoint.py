"""Checkpoint and restore as a shim does them: what the OCI runtime is asked, and what is left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.errors import Error, FailedPrecondition, InvalidArgument
from kontti.wire.messages.events import task as events
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.messages.types.runc.options.oci import CheckpointOptions, Options
from kontti.wire.typeurl import pack
from tests.support import criu, taskshim
from tests.support.criu import StandIn, stand_in
from tests.support.shims import short_folder
from tests.support.taskshim import Pod, Zygote

pytestmark = pytest.mark.root
CREATED, RUNNING, STOPPED, PAUSED = 1, 2, 3, 4
SLEEP = ("sleep", "1000")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with short_folder() as folder, taskshim.zygote(folder) as made:
        yield made


@pytest.fixture(params=["crun", "runc"])
def pod(zygote: Zygote, request: pytest.FixtureRequest) -> Iterator[Pod]:
    with zygote.pod(request.param) as made, taskshim.leftovers(made):
        yield made


@pytest.fixture
def runtime(pod: Pod) -> StandIn:
    made = stand_in(pod.folder / "runtime", taskshim.choice(pod.runtime).binary)
    pod.options.binary_name = str(made.path)
    return made


def checkpoint(pod: Pod, id: str, path: Path, options: CheckpointOptions | None = None) -> None:
    """Ask the shim for a checkpoint."""
    packed = pack(options) if options else None
    request = api.CheckpointTaskRequest(id=id, path=str(path), options=packed)
    pod.client.call("Checkpoint", request, Empty)


def restore(pod: Pod, id: str, path: Path, *args: str) -> None:
    """Create a container that is to come out of a checkpoint."""
    pod.bundle(id, *args)
    request = pod.create_request(id)
    request.checkpoint = str(path)
    answer = pod.client.call("Create", request, api.CreateTaskResponse)
    assert answer.pid == 0


def work_of(pod: Pod, id: str) -> str:
    return str(pod.folder / "b" / id / "work" / "criu-work")


def test_a_running_container_goes_on_after_its_checkpoint(pod: Pod, runtime: StandIn) -> None:
    pid = pod.run("one", *SLEEP)
    image = pod.folder / "image"
    checkpoint(pod, "one", image)
    assert runtime.commands("checkpoint") == [
        ["--image-path", str(image), "--work-path", work_of(pod, "one"), "--leave-running", "one"]
    ]
    assert [(image / name).read_text().strip() for name in criu.IMAGES] == list(criu.IMAGES)
    assert not Path(work_of(pod, "one")).exists()
    told = pod.events.until("checkpointed", events.TaskCheckpointed)
    assert (told.container_id, told.checkpoint) == ("one", str(image))
    assert (pod.state("one").status, pod.state("one").pid) == (RUNNING, pid)
    pod.end("one")


def test_every_option_is_asked_of_the_runtime(pod: Pod, runtime: StandIn) -> None:
    pod.run("one", *SLEEP)
    work = pod.folder / "logs"
    options = CheckpointOptions(
        exit=True,
        open_tcp=True,
        external_unix_sockets=True,
        terminal=True,
        file_locks=True,
        empty_namespaces=["network", "ipc"],
        cgroups_mode="soft",
        work_path=str(work),
        parent_path="../before",
    )
    checkpoint(pod, "one", pod.folder / "image", options)
    [asked] = runtime.commands("checkpoint")
    assert asked == [
        "--image-path", str(pod.folder / "image"), "--work-path", str(work),
        "--parent-path", "../before", "--tcp-established", "--ext-unix-sk", "--shell-job",
        "--file-locks", "--manage-cgroups-mode", "soft", "--empty-ns", "network",
        "--empty-ns", "ipc", "one",
    ]  # fmt: skip
    assert pod.wait("one") == 137
    assert pod.delete("one").exit_status == 137
    assert pod.events.until("exit", events.TaskExit).exit_status == 137
    assert work.is_dir(), "a work directory that was asked for is kept"
    work.rmdir()


def test_a_paused_container_stays_paused(pod: Pod, runtime: StandIn) -> None:
    pod.run("one", *SLEEP)
    pod.client.call("Pause", api.PauseRequest(id="one"), Empty)
    checkpoint(pod, "one", pod.folder / "image")
    assert pod.state("one").status == PAUSED
    pod.client.call("Resume", api.ResumeRequest(id="one"), Empty)
    pod.end("one")


def test_a_checkpoint_comes_back_to_life(pod: Pod, runtime: StandIn) -> None:
    pod.run("one", *SLEEP)
    image = pod.folder / "image"
    checkpoint(pod, "one", image, CheckpointOptions(exit=True))
    pod.wait("one")
    pod.delete("one")
    fifo = pod.fifo("out")
    pod.bundle("two", "sh", "-c", "echo back; exec sleep 1000")
    pod.options.no_pivot_root = True
    request = pod.create_request("two", stdout=str(fifo.path))
    request.checkpoint = str(image)
    assert pod.client.call("Create", request, api.CreateTaskResponse).pid == 0
    assert (pod.state("two").status, pod.state("two").pid) == (CREATED, 0)
    pid = pod.start("two")
    assert fifo.until(b"back\n")
    state = pod.state("two")
    assert (state.status, state.pid) == (RUNNING, pid)
    [asked] = runtime.commands("restore")
    bundle = pod.folder / "b" / "two"
    expected = ["--image-path", str(image), "--work-path", work_of(pod, "two"), "--detach"]
    expected += ["--pid-file", str(bundle / "init.pid"), "--no-pivot"]
    expected += ["--no-subreaper"] if pod.runtime == "runc" else []
    assert asked == [*expected, "--bundle", str(bundle), "two"]
    pids = pod.client.call("Pids", api.PidsRequest(id="two"), api.PidsResponse).processes
    assert pid in [process.pid for process in pids]
    assert pod.end("two") == 137


def test_a_restored_container_of_a_terminal(pod: Pod, runtime: StandIn) -> None:
    pod.run("one", *SLEEP)
    image = pod.folder / "image"
    checkpoint(pod, "one", image, CheckpointOptions(exit=True))
    pod.wait("one")
    pod.delete("one")
    fifo = pod.fifo("out")
    pod.bundle("two", "sh", "-c", "tty; exec sleep 1000", terminal=True)
    request = pod.create_request("two", stdout=str(fifo.path), terminal=True)
    request.checkpoint = str(image)
    pod.client.call("Create", request, api.CreateTaskResponse)
    pod.start("two")
    assert fifo.until(b"/dev/pts/0")
    [asked] = runtime.commands("restore")
    assert "--console-socket" in asked
    pod.client.call("ResizePty", api.ResizePtyRequest(id="two", width=99, height=9), Empty)
    pod.end("two")


def test_before_it_is_started_a_restored_container_is_nobody_to_signal(
    pod: Pod, runtime: StandIn
) -> None:
    restore(pod, "one", pod.folder / "none", *SLEEP)
    told = pod.events.until("create", events.TaskCreate)
    assert (told.pid, told.checkpoint) == (0, str(pod.folder / "none"))
    for all in (False, True):
        with pytest.raises(FailedPrecondition, match="process not created"):
            pod.kill("one", all=all)
    with pytest.raises(FailedPrecondition, match="not restored yet"):
        pod.exec("one", "e1", "true")
    with pytest.raises(FailedPrecondition, match="cannot checkpoint a container in the created"):
        checkpoint(pod, "one", pod.folder / "image")
    found = pod.client.call("Pids", api.PidsRequest(id="one"), api.PidsResponse).processes
    assert found == []
    waiting = pod.client.send("Wait", api.WaitRequest(id="one"))
    assert pod.delete("one").pid == 0
    assert pod.client.receive(waiting, api.WaitResponse).exit_status == 255
    assert runtime.commands("create") == []


def test_a_failed_checkpoint_says_what_criu_says_and_leaves_the_container(
    pod: Pod, runtime: StandIn
) -> None:
    pid = pod.run("one", *SLEEP)
    runtime.fail()
    with pytest.raises(Error, match="criu failed: type NOTIFY errno 0") as failure:
        checkpoint(pod, "one", pod.folder / "image", CheckpointOptions(exit=True))
    assert type(failure.value) is Error
    assert "vdso: Unexpected rt vDSO area bounds" in failure.value.message
    log = pod.folder / "b" / "one" / "criu-dump.log"
    assert failure.value.message.endswith(f"path= {log}")
    assert "Error (" in log.read_text()
    assert not Path(work_of(pod, "one")).exists()
    assert (pod.state("one").status, pod.state("one").pid) == (RUNNING, pid)
    pod.end("one")
    assert "checkpointed" not in pod.events.topics()


def test_a_failed_restore_leaves_a_container_to_be_deleted(pod: Pod, runtime: StandIn) -> None:
    runtime.fail()
    restore(pod, "one", pod.folder / "image", *SLEEP)
    with pytest.raises(Error, match=r"OCI runtime restore failed: .*criu failed.*vdso"):
        pod.start("one")
    assert pod.state("one").status == CREATED
    pod.delete("one")


def test_options_of_another_type_are_refused(pod: Pod) -> None:
    pod.run("one", *SLEEP)
    options = Any(type_url=Options.NAME, value=b"")
    request = api.CheckpointTaskRequest(id="one", path=str(pod.folder), options=options)
    with pytest.raises(InvalidArgument, match="checkpoint option"):
        pod.client.call("Checkpoint", request, Empty)
    with pytest.raises(InvalidArgument, match="directory"):
        pod.client.call("Checkpoint", api.CheckpointTaskRequest(id="one"), Empty)
    pod.end("one")


def test_a_stopped_container_has_no_checkpoint(pod: Pod, runtime: StandIn) -> None:
    pod.run("one", "true")
    pod.wait("one")
    with pytest.raises(FailedPrecondition, match="cannot checkpoint a container in the stopped"):
        checkpoint(pod, "one", pod.folder / "image")
    pod.delete("one")


def test_the_real_thing(pod: Pod) -> None:
    """CRIU where it works; where it does not, or is not there, a clear error and no harm."""
    pid = pod.run("one", *SLEEP)
    image = pod.folder / "image"
    if pod.runtime == "runc" and works():
        checkpoint(pod, "one", image)
        assert (image / "inventory.img").is_file()
    else:
        with pytest.raises(Error, match=f"{pod.runtime} checkpoint failed: .+ path= /") as failure:
            checkpoint(pod, "one", image)
        assert type(failure.value) is Error
        assert "CRIU" in failure.value.message or "criu" in failure.value.message
    assert (pod.state("one").status, pod.state("one").pid) == (RUNNING, pid)
    pod.end("one")


def works() -> bool:
    """Whether there is a CRIU that can do anything here."""
    try:
        return subprocess.run(["criu", "check"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
