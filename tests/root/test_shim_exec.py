"""Processes that are added to a shim's container, and what is left of a shim that is killed."""

from __future__ import annotations

import os
import select
import shutil
import signal
from collections.abc import Iterator

import pytest

from kontti.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, NotFound
from kontti.shim import cleanup
from kontti.wire.messages.events import task as events
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from tests.support import taskshim
from tests.support.shimpeers import SECONDS
from tests.support.shims import short_folder
from tests.support.taskshim import Pod, Zygote

pytestmark = pytest.mark.root
SLEEP = ("sleep", "1000")
RUNNING, STOPPED = 2, 3


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with short_folder() as folder, taskshim.zygote(folder) as made:
        yield made


@pytest.fixture(params=["crun", "runc"])
def pod(zygote: Zygote, request: pytest.FixtureRequest) -> Iterator[Pod]:
    """With a container that runs."""
    with zygote.pod(request.param) as made, taskshim.leftovers(made):
        made.run("one", *SLEEP)
        yield made
        assert made.state("one").status == RUNNING
        made.end("one")


@pytest.mark.parametrize("status", [0, 3])
def test_an_exec_its_output_and_its_events(pod: Pod, status: int) -> None:
    out, err = pod.fifo("out"), pod.fifo("err")
    script = f"echo out; echo err >&2; exit {status}"
    pod.exec("one", "more", "sh", "-c", script, stdout=out.path, stderr=err.path)
    assert pod.state("one", "more").pid == 0
    pid = pod.start("one", "more")
    assert out.all() == b"out\n"
    assert err.all() == b"err\n"
    assert pod.wait("one", "more") == status
    state = pod.state("one", "more")
    assert (state.exec_id, state.pid, state.status) == ("more", pid, STOPPED)
    deleted = pod.delete("one", "more")
    assert (deleted.pid, deleted.exit_status) == (pid, status)
    exit = pod.events.until("exit", events.TaskExit)
    assert (exit.container_id, exit.id, exit.pid) == ("one", "more", pid)
    assert pod.events.topics() == ["create", "start", "exec-added", "exec-started", "exit"]
    with pytest.raises(NotFound):
        pod.state("one", "more")


def test_input_and_its_end(pod: Pod) -> None:
    stdin, out = pod.fifo("in"), pod.fifo("out")
    pod.exec("one", "more", "cat", stdin=stdin.path, stdout=out.path)
    pod.start("one", "more")
    pod.feed(stdin, b"words\n")
    pod.close_stdin("one", "more")
    assert out.all() == b"words\n"
    assert pod.wait("one", "more") == 0
    pod.delete("one", "more")


def test_input_that_is_closed_before_the_start(pod: Pod) -> None:
    stdin, out = pod.fifo("in"), pod.fifo("out")
    pod.exec("one", "more", "cat", stdin=stdin.path, stdout=out.path)
    pod.close_stdin("one", "more")
    pod.start("one", "more")
    assert out.all() == b""
    assert pod.wait("one", "more") == 0
    pod.delete("one", "more")


def test_a_terminal(pod: Pod) -> None:
    stdin, out = pod.fifo("in"), pod.fifo("out")
    streams = {"stdin": stdin.path, "stdout": out.path}
    script = "read x; stty size; read y"
    pod.exec("one", "more", "sh", "-c", script, terminal=True, **streams)
    pod.start("one", "more")
    request = api.ResizePtyRequest(id="one", exec_id="more", width=99, height=11)
    pod.client.call("ResizePty", request, Empty)
    pod.feed(stdin, b"\n")
    out.until(b"11 99\n")
    pod.feed(stdin, b"\x03")
    assert pod.wait("one", "more") == 128 + signal.SIGINT
    pod.delete("one", "more")


def test_many_at_a_time_each_with_its_own_end(pod: Pod) -> None:
    for number in range(8):
        pod.exec("one", f"e{number}", "sh", "-c", f"exit {number}")
    waiting = {
        number: pod.client.send("Wait", api.WaitRequest(id="one", exec_id=f"e{number}"))
        for number in range(8)
    }
    for number in range(8):
        pod.start("one", f"e{number}")
    for number, stream in waiting.items():
        assert pod.client.receive(stream, api.WaitResponse).exit_status == number
        pod.delete("one", f"e{number}")


def test_a_killed_one(pod: Pod) -> None:
    pod.exec("one", "more", *SLEEP)
    pod.start("one", "more")
    pod.kill("one", exec_id="more")
    assert pod.wait("one", "more") == 137
    with pytest.raises(NotFound, match="process already finished"):
        pod.kill("one", exec_id="more")
    pod.delete("one", "more")


def test_one_that_is_not_there(pod: Pod) -> None:
    for method, message in (
        ("Start", api.StartRequest(id="one", exec_id="none")),
        ("State", api.StateRequest(id="one", exec_id="none")),
        ("Kill", api.KillRequest(id="one", exec_id="none", signal=9)),
        ("Wait", api.WaitRequest(id="one", exec_id="none")),
        ("Delete", api.DeleteRequest(id="one", exec_id="none")),
        ("ResizePty", api.ResizePtyRequest(id="one", exec_id="none")),
    ):
        with pytest.raises(NotFound):
            pod.client.call(method, message, Empty)


def test_an_id_that_is_taken(pod: Pod) -> None:
    pod.exec("one", "more", *SLEEP)
    with pytest.raises(AlreadyExists):
        pod.exec("one", "more", *SLEEP)
    pod.delete("one", "more")


@pytest.mark.parametrize("exec_id", ["../../escaped", "a/b", "a\0b"])
def test_an_id_that_is_a_path(pod: Pod, exec_id: str) -> None:
    with pytest.raises(InvalidArgument):
        pod.exec("one", exec_id, "true")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_command_that_is_not_there(pod: Pod, terminal: bool) -> None:
    stdin, out = pod.fifo("in"), pod.fifo("out")
    streams = {"stdin": stdin.path, "stdout": out.path, "terminal": terminal}
    before = sorted(os.listdir(pod.folder / "b" / "one"))
    pod.exec("one", "more", "/bin/nothing", **streams)
    stream = pod.client.send("Wait", api.WaitRequest(id="one", exec_id="more"))
    with pytest.raises(Error, match=r"OCI runtime exec failed: .*/bin/nothing"):
        pod.start("one", "more")
    pod.delete("one", "more")
    # who waits for it is not left waiting
    assert pod.client.receive(stream, api.WaitResponse).exit_status == 255
    after = sorted(os.listdir(pod.folder / "b" / "one"))
    assert set(after) - set(before) <= {"log.json"}


def test_a_process_without_a_specification(pod: Pod) -> None:
    request = api.ExecProcessRequest(id="one", exec_id="more")
    with pytest.raises(InvalidArgument):
        pod.client.call("Exec", request, Empty)


def test_a_specification_that_is_none(pod: Pod) -> None:
    request = api.ExecProcessRequest(
        id="one",
        exec_id="more",
        spec=Any(type_url=taskshim.PROCESS_URL, value=b"{not json"),
    )
    pod.client.call("Exec", request, Empty)
    with pytest.raises(Error, match="OCI runtime exec failed"):
        pod.start("one", "more")
    pod.delete("one", "more")


def test_a_running_one_is_not_deleted_nor_started_again(pod: Pod) -> None:
    pod.exec("one", "more", *SLEEP)
    pod.start("one", "more")
    with pytest.raises(FailedPrecondition):
        pod.delete("one", "more")
    with pytest.raises(FailedPrecondition):
        pod.start("one", "more")
    pod.kill("one", exec_id="more")
    pod.wait("one", "more")
    pod.delete("one", "more")


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_an_exec_ends_with_its_container(zygote: Zygote, runtime: str) -> None:
    with zygote.pod(runtime) as pod, taskshim.leftovers(pod):
        pod.run("one", *SLEEP)
        pod.exec("one", "more", *SLEEP)
        pod.start("one", "more")
        pod.kill("one")
        assert pod.wait("one", "more") == 137
        assert pod.wait("one") == 137
        pod.delete("one", "more")
        pod.delete("one")


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_without_a_pid_namespace_all_end_with_the_first(zygote: Zygote, runtime: str) -> None:
    with zygote.pod(runtime) as pod, taskshim.leftovers(pod):
        kinds = [{"type": kind} for kind in taskshim.KINDS if kind != "pid"]
        out = pod.fifo("out")
        script = "sleep 1000 & echo on; read x < /proc/self/stat; exec sleep 1000"
        pod.run("one", "sh", "-c", script, linux={"namespaces": kinds}, stdout=out.path)
        out.until(b"on\n")
        pod.kill("one")
        assert pod.wait("one") == 137
        pod.delete("one")
        out.all()


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_those_who_fork_on_and_on_end_with_the_first(zygote: Zygote, runtime: str) -> None:
    """However many were born while the others were killed."""
    script = "for n in 1 2 3; do (while :; do sleep 1000 & done) & done; sleep 0.2"
    linux = {
        "namespaces": [{"type": kind} for kind in taskshim.KINDS if kind != "pid"],
        "resources": {"pids": {"limit": 300}},
    }
    with zygote.pod(runtime) as pod, taskshim.leftovers(pod):
        for _ in range(3):
            pod.run("one", "sh", "-c", script, linux=linux)
            assert pod.wait("one") == 0
            pod.delete("one")
            shutil.rmtree(pod.folder / "b" / "one")


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_killed_shim_can_be_cleaned_up_after(zygote: Zygote, runtime: str) -> None:
    with zygote.pod(runtime) as pod:
        pid = pod.run("one", *SLEEP)
        pod.exec("one", "more", *SLEEP)
        pod.start("one", "more")
        ended = os.pidfd_open(pid)
        os.kill(pod.pid, signal.SIGKILL)
        assert pod.client.closed()
        clean_in_child(pod, "one")
        assert select.select([ended], [], [], SECONDS)[0]
        os.close(ended)
        (pod.folder / "s" / "shim").unlink()
        assert pod.traces() == []


def clean_in_child(pod: Pod, id: str) -> None:
    """As a daemon does: where the v2 tree cannot be seen, if that is needed."""
    from kontti.linux import process
    from kontti.shim.serve import hide_unified_tree

    chosen = taskshim.choice(pod.runtime)
    child = process.fork()
    if child == 0:
        code = 1
        try:
            if chosen.hide_unified:
                hide_unified_tree()
            bundle = str(pod.folder / "b" / id)
            response = cleanup.clean(pod.namespace, id, bundle, chosen.binary)
            code = 0 if (response.exit_status, response.pid > 0) == (137, True) else 2
        finally:
            os._exit(code)
    assert process.wait(child, SECONDS) == 0
