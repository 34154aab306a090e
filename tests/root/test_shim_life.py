"""Containers as a shim keeps them: their life, what may be done when, and what goes wrong."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from kontti.errors import AlreadyExists, Error, FailedPrecondition, NotFound, Unimplemented
from kontti.wire.messages.cgroups.v1.metrics import Metrics as LegacyMetrics
from kontti.wire.messages.cgroups.v2.metrics import Metrics as UnifiedMetrics
from kontti.wire.messages.events import task as events
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.messages.types.runc.options.oci import ProcessDetails
from kontti.wire.ttrpc import HEADER, MAX_DATA, REQUEST
from tests.support import taskshim
from tests.support.shimpeers import Client
from tests.support.shims import short_folder
from tests.support.taskshim import Pod, Zygote

pytestmark = pytest.mark.root
CREATED, RUNNING, STOPPED, PAUSED = 1, 2, 3, 4
SLEEP = ("sleep", "1000")
MEMORY = 32 << 20
HOG = ("dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with short_folder() as folder, taskshim.zygote(folder) as made:
        yield made


@pytest.fixture(params=["crun", "runc"])
def pod(zygote: Zygote, request: pytest.FixtureRequest) -> Iterator[Pod]:
    with zygote.pod(request.param) as made, taskshim.leftovers(made):
        yield made


@pytest.mark.parametrize("status", [0, 3])
def test_a_life_and_its_events(pod: Pod, status: int) -> None:
    pid = pod.create("one", "sh", "-c", f"exit {status}")
    created = pod.state("one")
    assert (created.id, created.pid, created.status) == ("one", pid, CREATED)
    assert created.bundle == str(pod.folder / "b" / "one")
    assert pod.start("one") == pid
    assert pod.wait("one") == status
    ended = pod.state("one")
    assert (ended.status, ended.exit_status, ended.pid) == (STOPPED, status, pid)
    deleted = pod.delete("one")
    assert (deleted.pid, deleted.exit_status) == (pid, status)
    assert deleted.exited_at is not None
    assert ended.exited_at is not None
    assert deleted.exited_at.seconds == ended.exited_at.seconds
    assert pod.events.until("delete", events.TaskDelete).exit_status == status
    exit = pod.events.until("exit", events.TaskExit)
    assert (exit.container_id, exit.id, exit.pid, exit.exit_status) == ("one", "one", pid, status)
    assert pod.events.topics() == ["create", "start", "exit", "delete"]
    assert {e.namespace for e in pod.events.heard} == {pod.namespace}
    with pytest.raises(NotFound):
        pod.state("one")


def test_a_killed_one_ends_with_128_and_the_signal(pod: Pod) -> None:
    pod.run("one", *SLEEP)
    assert pod.end("one") == 137


def test_a_signal_that_it_handles(pod: Pod) -> None:
    out = pod.fifo("out")
    script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"
    pod.run("one", "sh", "-c", script, stdout=out.path)
    out.until(b"ready")
    pod.kill("one", signal.SIGTERM)
    assert pod.wait("one") == 5
    pod.delete("one")


def test_everybody_who_waits_is_told_and_others_are_served(pod: Pod) -> None:
    pod.run("one", *SLEEP)
    other = Client(f"unix://{pod.folder}/s/shim", version=2)
    waiting = [
        (client, client.send("Wait", api.WaitRequest(id="one")))
        for client in (pod.client, pod.client, other)
    ]
    assert pod.state("one").status == RUNNING
    pod.kill("one")
    answers = [c.receive(stream, api.WaitResponse).exit_status for c, stream in waiting]
    assert answers == [137, 137, 137]
    assert pod.wait("one") == 137
    pod.delete("one")
    other.close()


def test_who_waits_for_one_that_is_deleted_before_it_starts_is_told(pod: Pod) -> None:
    pod.create("one", *SLEEP)
    stream = pod.client.send("Wait", api.WaitRequest(id="one"))
    deleted = pod.delete("one")
    assert deleted.exit_status == 137
    assert deleted.exited_at is not None
    assert pod.client.receive(stream, api.WaitResponse).exit_status == 137
    assert pod.events.until("exit", events.TaskExit).exit_status == 137


def test_one_that_was_killed_before_it_started(pod: Pod) -> None:
    pod.create("one", *SLEEP)
    assert pod.end("one") == 137


def test_pids_and_who_was_execed(pod: Pod) -> None:
    pid = pod.run("one", *SLEEP)
    pod.exec("one", "more", *SLEEP)
    exec_pid = pod.start("one", "more")
    response = pod.client.call("Pids", api.PidsRequest(id="one"), api.PidsResponse)
    found = {p.pid: p.info for p in response.processes}
    assert set(found) == {pid, exec_pid}
    assert found[pid] is None
    info = found[exec_pid]
    assert info is not None
    assert info.type_url == ProcessDetails.NAME
    assert ProcessDetails.decode(info.value).exec_id == "more"
    pod.kill("one", exec_id="more")
    assert pod.wait("one", "more") == 137
    pod.delete("one", "more")
    pod.end("one")


def test_pause_and_resume(pod: Pod) -> None:
    pod.run("one", *SLEEP)
    pod.client.call("Pause", api.PauseRequest(id="one"), Empty)
    assert pod.state("one").status == PAUSED
    with pytest.raises(FailedPrecondition):
        pod.client.call("Pause", api.PauseRequest(id="one"), Empty)
    with pytest.raises(FailedPrecondition):
        pod.exec("one", "frozen", "true")
    with pytest.raises(FailedPrecondition):
        pod.delete("one")
    pod.client.call("Resume", api.ResumeRequest(id="one"), Empty)
    assert pod.state("one").status == RUNNING
    with pytest.raises(FailedPrecondition):
        pod.client.call("Resume", api.ResumeRequest(id="one"), Empty)
    pod.end("one")
    pod.events.until("delete", events.TaskDelete)
    assert pod.events.topics() == ["create", "start", "paused", "resumed", "exit", "delete"]


def test_an_exec_that_was_added_before_the_pause_does_not_start_in_it(pod: Pod) -> None:
    pod.run("one", *SLEEP)
    pod.exec("one", "more", "true")
    pod.client.call("Pause", api.PauseRequest(id="one"), Empty)
    with pytest.raises(FailedPrecondition):
        pod.start("one", "more")
    pod.client.call("Resume", api.ResumeRequest(id="one"), Empty)
    pod.start("one", "more")
    assert pod.wait("one", "more") == 0
    pod.delete("one", "more")
    pod.end("one")


def test_a_paused_one_can_be_killed(pod: Pod) -> None:
    pod.run("one", *SLEEP)
    pod.client.call("Pause", api.PauseRequest(id="one"), Empty)
    assert pod.end("one") == 137


def test_stats_and_a_changed_limit(pod: Pod) -> None:
    limit = {"resources": {"memory": {"limit": MEMORY}}}
    pod.run("one", *SLEEP, linux=limit)
    assert memory_limit(pod, "one") == MEMORY
    resources = json.dumps({"memory": {"limit": 2 * MEMORY}}).encode()
    packed = Any(type_url=taskshim.RESOURCES_URL, value=resources)
    pod.client.call("Update", api.UpdateTaskRequest(id="one", resources=packed), Empty)
    assert memory_limit(pod, "one") == 2 * MEMORY
    packed = Any(type_url=taskshim.RESOURCES_URL, value=b"{not json")
    with pytest.raises(Error):
        pod.client.call("Update", api.UpdateTaskRequest(id="one", resources=packed), Empty)
    pod.kill("one")
    pod.wait("one")
    with pytest.raises(NotFound):
        memory_limit(pod, "one")
    pod.delete("one")


def memory_limit(pod: Pod, id: str) -> int:
    """By the container's figures, which show its process as well."""
    stats = pod.client.call("Stats", api.StatsRequest(id=id), api.StatsResponse).stats
    assert stats is not None
    if stats.type_url == LegacyMetrics.NAME:
        legacy = LegacyMetrics.decode(stats.value)
        assert legacy.pids is not None
        assert legacy.pids.current == 1
        assert legacy.memory is not None
        assert legacy.memory.usage is not None
        assert legacy.memory.usage.usage > 0
        return legacy.memory.usage.limit
    unified = UnifiedMetrics.decode(stats.value)
    assert unified.memory is not None
    return unified.memory.usage_limit


def test_running_out_of_memory(pod: Pod) -> None:
    limit = {"resources": {"memory": {"limit": MEMORY}}}
    pod.run("one", *HOG, linux=limit)
    assert pod.wait("one") == 137
    pod.delete("one")
    assert pod.events.until("oom", events.TaskOOM).container_id == "one"
    pod.events.until("delete", events.TaskDelete)
    topics = pod.events.topics()
    assert topics == ["create", "start", *["oom"] * topics.count("oom"), "exit", "delete"]


def test_a_child_that_runs_out_of_memory_is_told_while_the_container_goes_on(pod: Pod) -> None:
    limit = {"resources": {"memory": {"limit": MEMORY}}}
    script = f"{' '.join(HOG)}; exec sleep 1000"
    pod.run("one", "sh", "-c", script, linux=limit)
    assert pod.events.until("oom", events.TaskOOM).container_id == "one"
    assert pod.state("one").status == RUNNING
    pod.end("one")
    pod.events.until("delete", events.TaskDelete)
    topics = pod.events.topics()
    assert topics == ["create", "start", *["oom"] * topics.count("oom"), "exit", "delete"]


def test_one_that_is_there_is_not_made_again(pod: Pod) -> None:
    pid = pod.run("one", *SLEEP)
    with pytest.raises(AlreadyExists):
        pod.client.call("Create", pod.create_request("one"), api.CreateTaskResponse)
    assert (pod.state("one").status, pod.state("one").pid) == (RUNNING, pid)
    pod.end("one")


def test_one_that_another_shim_has_is_left_alone(zygote: Zygote, pod: Pod) -> None:
    pod.run("one", *SLEEP)
    path = f"{pod.folder}/s/other"
    request = {"namespace": pod.namespace, "socket": path, "bundle": str(pod.folder / "b")}
    answer = zygote.fork({**request, "hide_unified": True})
    other = Client(str(answer["address"]))
    with pytest.raises(AlreadyExists):
        other.call("Create", pod.create_request("one"), api.CreateTaskResponse)
    connected = other.call("Connect", api.ConnectRequest(id="one"), api.ConnectResponse)
    assert (connected.shim_pid, connected.task_pid) == (answer["pid"], 0)
    other.call("Shutdown", api.ShutdownRequest(), Empty)
    assert other.closed()
    other.close()
    assert pod.state("one").status == RUNNING
    pod.end("one")


def test_what_is_not_there(pod: Pod) -> None:
    for method, message in (
        ("Start", api.StartRequest(id="none")),
        ("State", api.StateRequest(id="none")),
        ("Kill", api.KillRequest(id="none", signal=9)),
        ("Wait", api.WaitRequest(id="none")),
        ("Delete", api.DeleteRequest(id="none")),
        ("Stats", api.StatsRequest(id="none")),
        ("Pause", api.PauseRequest(id="none")),
        ("CloseIO", api.CloseIORequest(id="none", stdin=True)),
    ):
        with pytest.raises(NotFound):
            pod.client.call(method, message, Empty)
    with pytest.raises(Unimplemented):
        pod.client.call("Dance", Empty(), Empty)


def test_what_cannot_be_done_in_a_state(pod: Pod) -> None:
    pod.create("one", *SLEEP)
    with pytest.raises(FailedPrecondition):
        pod.client.call("Pause", api.PauseRequest(id="one"), Empty)
    pod.start("one")
    with pytest.raises(FailedPrecondition):
        pod.start("one")
    with pytest.raises(FailedPrecondition):
        pod.delete("one")
    pod.kill("one")
    pod.wait("one")
    with pytest.raises(NotFound, match="process already finished: not found"):
        pod.kill("one")
    with pytest.raises(FailedPrecondition):
        pod.exec("one", "late", "true")
    with pytest.raises(FailedPrecondition):
        pod.start("one")
    pod.delete("one")


def test_a_bundle_without_a_configuration(pod: Pod) -> None:
    (pod.bundle("one", *SLEEP) / "config.json").unlink()
    with pytest.raises(Error, match=r"OCI runtime create failed: .*config\.json"):
        pod.client.call("Create", pod.create_request("one"), api.CreateTaskResponse)


@pytest.mark.parametrize("text", ["{not json", '"a string"', "{}", ""])
def test_a_configuration_that_is_none(pod: Pod, text: str) -> None:
    (pod.bundle("one", *SLEEP) / "config.json").write_text(text)
    with pytest.raises(Error, match=r"OCI runtime create failed: \w+ create failed: ..."):
        pod.client.call("Create", pod.create_request("one"), api.CreateTaskResponse)


def test_a_bundle_that_is_not_there(pod: Pod) -> None:
    request = pod.create_request("one")
    with pytest.raises(Error, match=r"failed to mount rootfs: .*No such file or directory"):
        pod.client.call("Create", request, api.CreateTaskResponse)
    request.rootfs = []
    with pytest.raises(Error, match=r"failed to create container: .*No such file or directory"):
        pod.client.call("Create", request, api.CreateTaskResponse)
    assert not (pod.folder / "b" / "one").exists()


def test_a_command_that_is_not_there(pod: Pod) -> None:
    with pytest.raises(Error, match=r"OCI runtime create failed: .*/bin/nothing"):
        pod.create("one", "/bin/nothing")


def test_a_runtime_that_is_not_there(pod: Pod) -> None:
    pod.options.binary_name = "/no/such/runtime"
    with pytest.raises(Error, match="/no/such/runtime: no such file or directory"):
        pod.create("one", *SLEEP)


def test_a_root_that_cannot_be_mounted(pod: Pod) -> None:
    pod.bundle("one", *SLEEP)
    request = pod.create_request("one")
    request.rootfs.append(type(request.rootfs[0])(type="bind", source="/none", options=["bind"]))
    with pytest.raises(Error, match="failed to mount rootfs"):
        pod.client.call("Create", request, api.CreateTaskResponse)


def test_a_shim_with_a_container_does_not_shut_down(pod: Pod) -> None:
    pod.run("one", *SLEEP)
    pod.client.call("Shutdown", api.ShutdownRequest(), Empty)
    assert pod.state("one").status == RUNNING
    pod.end("one")


def test_garbage_ends_its_connection_alone(pod: Pod) -> None:
    pod.run("one", *SLEEP)
    for garbage in (b"\xff" * 64, HEADER.pack(4, 1, REQUEST, 0) + b"\xff\xff\xff\xff"):
        other = Client(f"unix://{pod.folder}/s/shim")
        other.send_raw(garbage)
        other.close()
    assert pod.state("one").status == RUNNING
    pod.end("one")


def test_a_call_that_is_too_long_is_refused_and_the_next_one_is_served(pod: Pod) -> None:
    pod.client.send_raw(HEADER.pack(MAX_DATA + 1, 7, REQUEST, 0) + bytes(MAX_DATA + 1))
    with pytest.raises(NotFound):
        pod.state("one")
