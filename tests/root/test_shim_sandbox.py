"""A shim as a sandbox: up without a container, down with all of them."""

from __future__ import annotations

import json
import os
import platform
import select
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from kontti.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from kontti.wire.messages.cgroups.v1.metrics import Metrics as LegacyMetrics
from kontti.wire.messages.cgroups.v2.metrics import Metrics as UnifiedMetrics
from kontti.wire.messages.events import task as events
from kontti.wire.messages.google import Empty
from kontti.wire.messages.runtime.sandbox.v1 import sandbox as api
from kontti.wire.messages.runtime.task.v2 import shim as task_api
from kontti.wire.messages.types.mount import Mount
from kontti.wire.protobuf import Message
from tests.support import taskshim
from tests.support.shimpeers import SECONDS
from tests.support.shims import short_folder
from tests.support.taskshim import Pod, Zygote

pytestmark = pytest.mark.root
SERVICE = "containerd.runtime.sandbox.v1.Sandbox/"
SLEEP = ("sleep", "1000")
STUBBORN = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
M = TypeVar("M", bound=Message)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with short_folder() as folder, taskshim.zygote(folder) as made:
        yield made


@pytest.fixture
def pod(zygote: Zygote) -> Iterator[Pod]:
    with zygote.pod("crun") as made:
        yield made


def call(pod: Pod, method: str, request: Message, response: type[M]) -> M:
    return pod.client.call(SERVICE + method, request, response)


def create(pod: Pod, **more: object) -> None:
    request = api.CreateSandboxRequest(
        sandbox_id="pod",
        bundle_path=str(pod.folder / "b"),
        **more,  # type: ignore[arg-type]
    )
    call(pod, "CreateSandbox", request, api.CreateSandboxResponse)


def start(pod: Pod) -> api.StartSandboxResponse:
    request = api.StartSandboxRequest(sandbox_id="pod")
    return call(pod, "StartSandbox", request, api.StartSandboxResponse)


def status(pod: Pod, *, verbose: bool = False) -> api.SandboxStatusResponse:
    request = api.SandboxStatusRequest(sandbox_id="pod", verbose=verbose)
    return call(pod, "SandboxStatus", request, api.SandboxStatusResponse)


def stop(pod: Pod, seconds: int = 0) -> None:
    request = api.StopSandboxRequest(sandbox_id="pod", timeout_secs=seconds)
    call(pod, "StopSandbox", request, api.StopSandboxResponse)


def shut_down(pod: Pod) -> None:
    """Shut the sandbox down; the shim ends with it, and nothing is left."""
    handle = os.pidfd_open(pod.pid)
    try:
        request = api.ShutdownSandboxRequest(sandbox_id="pod")
        call(pod, "ShutdownSandbox", request, api.ShutdownSandboxResponse)
        assert select.select([handle], [], [], SECONDS)[0], "the shim goes on"
    finally:
        os.close(handle)
    assert pod.traces() == []


def test_a_life_without_a_container(pod: Pod) -> None:
    create(pod, annotations={"a": "b"}, netns_path="/proc/self/ns/net")
    assert status(pod).state == "SANDBOX_NOTREADY"
    started = start(pod)
    assert started.pid == pod.pid
    found = status(pod, verbose=True)
    assert (found.sandbox_id, found.pid, found.state) == ("pod", pod.pid, "SANDBOX_READY")
    assert found.created_at == started.created_at
    assert found.exited_at is None
    assert json.loads(found.info["annotations"]) == {"a": "b"}
    assert found.info["netns_path"] == "/proc/self/ns/net"
    waiting = pod.client.send(SERVICE + "WaitSandbox", api.WaitSandboxRequest(sandbox_id="pod"))
    call(pod, "PingSandbox", api.PingRequest(sandbox_id="pod"), api.PingResponse)
    stop(pod)
    ended = pod.client.receive(waiting, api.WaitSandboxResponse)
    found = status(pod)
    assert (ended.exit_status, found.state) == (0, "SANDBOX_NOTREADY")
    assert ended.exited_at == found.exited_at is not None
    shut_down(pod)


def test_the_shim_stays_when_its_last_container_goes(pod: Pod) -> None:
    create(pod)
    start(pod)
    pod.run("one", *SLEEP)
    pod.end("one")
    pod.client.call("Shutdown", task_api.ShutdownRequest(id="one"), Empty)
    assert status(pod).state == "SANDBOX_READY"
    pod.run("two", *SLEEP)
    assert json.loads(status(pod, verbose=True).info["containers"]) == ["two"]
    pod.end("two")
    shut_down(pod)


def test_stop_ends_every_container(pod: Pod) -> None:
    create(pod)
    start(pod)
    pod.run("run", *SLEEP)
    pod.create("created", *SLEEP)
    pod.run("paused", *SLEEP)
    pod.client.call("Pause", task_api.PauseRequest(id="paused"), Empty)
    stop(pod)
    assert {pod.wait(id) for id in ("run", "created", "paused")} == {137}
    pod.bundle("late", *SLEEP)
    with pytest.raises(FailedPrecondition, match="sandbox is stopped"):
        pod.client.call("Create", pod.create_request("late"), task_api.CreateTaskResponse)
    stop(pod)
    shut_down(pod)


def test_stop_with_a_timeout_asks_first(pod: Pod) -> None:
    create(pod)
    start(pod)
    out = pod.fifo("out")
    pod.run("polite", "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done",
            stdout=out.path)  # fmt: skip
    assert out.until(b"ready")
    stop(pod, 600)
    assert pod.wait("polite") == 7
    shut_down(pod)


def test_stop_with_a_timeout_kills_who_does_not_listen(pod: Pod) -> None:
    create(pod)
    start(pod)
    out = pod.fifo("out")
    pod.run("stubborn", *STUBBORN, stdout=out.path)
    assert out.until(b"ready")
    stop(pod, 1)
    assert pod.wait("stubborn") == 137
    shut_down(pod)


def test_shutdown_takes_everything_along(pod: Pod) -> None:
    source = pod.folder.parent / "rootfs"
    create(pod, rootfs=[Mount(type="bind", source=str(source), options=["rbind", "ro"])])
    # where the shim sees it: it may live in a mount namespace of its own
    seen = Path(f"/proc/{pod.pid}/root{pod.folder}/b/rootfs")
    assert (seen / "bin" / "busybox").exists()
    start(pod)
    waiting = pod.client.send(SERVICE + "WaitSandbox", api.WaitSandboxRequest(sandbox_id="pod"))
    pod.run("one", *SLEEP)
    shut_down(pod)
    assert pod.client.receive(waiting, api.WaitSandboxResponse).exit_status == 0
    assert pod.events.until("exit", events.TaskExit).exit_status == 137
    assert pod.events.until("delete", events.TaskDelete).container_id == "one"
    assert list(Path(pod.folder / "b" / "rootfs").iterdir()) == []


def test_platform_and_metrics(pod: Pod) -> None:
    create(pod)
    start(pod)
    request = api.PlatformRequest(sandbox_id="pod")
    found = call(pod, "Platform", request, api.PlatformResponse).platform
    assert found is not None
    wanted = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    assert (found.os, found.architecture) == ("linux", wanted)
    assert _pids(pod) == 0
    pod.run("one", *SLEEP)
    pod.run("two", *SLEEP)
    assert _pids(pod) == 2
    pod.end("one")
    assert _pids(pod) == 1
    shut_down(pod)


def _pids(pod: Pod) -> int:
    request = api.SandboxMetricsRequest(sandbox_id="pod")
    metric = call(pod, "SandboxMetrics", request, api.SandboxMetricsResponse).metrics
    assert metric is not None
    assert metric.id == "pod"
    assert metric.data is not None
    kinds = {cls.NAME: cls for cls in (LegacyMetrics, UnifiedMetrics)}
    figures = kinds[metric.data.type_url].decode(metric.data.value)
    assert isinstance(figures, LegacyMetrics | UnifiedMetrics)
    return figures.pids.current if figures.pids is not None else 0


def test_what_is_refused(pod: Pod) -> None:
    with pytest.raises(NotFound, match="sandbox pod: not found"):
        start(pod)
    with pytest.raises(InvalidArgument):
        call(pod, "CreateSandbox", api.CreateSandboxRequest(), api.CreateSandboxResponse)
    with pytest.raises(NotFound, match="network namespace /nowhere"):
        create(pod, netns_path="/nowhere")
    create(pod)
    with pytest.raises(AlreadyExists):
        create(pod)
    with pytest.raises(NotFound, match="sandbox other: not found"):
        call(pod, "PingSandbox", api.PingRequest(sandbox_id="other"), api.PingResponse)
    with pytest.raises(Unimplemented):
        call(pod, "Create", api.PingRequest(sandbox_id="pod"), api.PingResponse)
    with pytest.raises(Unimplemented):
        pod.client.call("PingSandbox", api.PingRequest(sandbox_id="pod"), api.PingResponse)
    stop(pod)
    with pytest.raises(FailedPrecondition, match="sandbox pod is stopped"):
        start(pod)
    shut_down(pod)
