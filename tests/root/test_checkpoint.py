"""Checkpoints from ctr to the OCI runtime and back: images of them, directories, and failures."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kontti.api.services.tasks.v1 import tasks_pb2
from kontti.api.types.runc.options import oci_pb2
from kontti.cmd.ctr import checkpoints
from kontti.errors import Error, from_code
from tests.support import criu
from tests.support.criu import StandIn, stand_in
from tests.support.host import IMAGE, Host, host

pytestmark = pytest.mark.root
REF = "example.com/checkpoint:one"
SLEEP = ("sh", "-c", "echo was here > /kept; exec sleep 1000")
TASKS = "/containerd.services.tasks.v1.Tasks/"


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    with host() as made:
        yield made


@pytest.fixture
def runtime(here: Host, request: pytest.FixtureRequest) -> Iterator[StandIn]:
    real = shutil.which("runc")
    assert real is not None
    yield stand_in(here.base / f"rt-{abs(hash(request.node.name))}", real)
    for id in here.out("tasks", "ls", "-q").split():
        here.out("tasks", "rm", "-f", id)
    for id in here.out("containers", "ls", "-q").split():
        here.out("containers", "rm", id)
    for name in here.out("images", "ls", "-q").split():
        if name != IMAGE:
            here.out("images", "rm", "--sync", name)
    assert here.nothing() == {}
    assert not list(here.base.glob("**/checkpoint*/**")), "what was unpacked is left"


def run(here: Host, runtime: StandIn, id: str = "one") -> int:
    here.out("run", "-d", "--null-io", "--runc-binary", str(runtime.path), IMAGE, id, *SLEEP)
    return here.until(id, "RUNNING")


def blob(here: Host, digest: str) -> bytes:
    """A blob's bytes."""
    return here.ctr("content", "get", digest).stdout


def index_of(here: Host, name: str) -> dict[str, Any]:
    """The document that an image's name stands for."""
    lines = [line.split() for line in here.out("images", "ls").splitlines()]
    digest = next(line[2] for line in lines if line[0] == name)
    found = json.loads(blob(here, digest))
    assert isinstance(found, dict)
    return found


def types_of(index: dict[str, Any]) -> dict[str, str]:
    return {made["mediaType"]: made["digest"] for made in index["manifests"]}


def rpc(here: Host, method: str, request: Any, response: Any) -> Any:
    """One call of the Tasks service; raises the error that it answers."""
    with grpc.insecure_channel(f"unix:{here.address}") as channel:
        call: Any = channel.unary_unary(
            TASKS + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            return call(request, timeout=20, metadata=(("containerd-namespace", here.namespace),))
        except grpc.RpcError as error:
            raise from_code(error.code().value[0], error.details() or "") from None


def test_a_tasks_checkpoint_is_an_image(here: Host, runtime: StandIn) -> None:
    pid = run(here, runtime)
    name = here.out("tasks", "checkpoint", "one").strip()
    assert name.startswith("containerd.io/checkpoint/one:")
    index = index_of(here, name)
    assert index["annotations"] == {
        checkpoints.IMAGE_NAME: IMAGE,
        checkpoints.SNAPSHOTTER_NAME: "overlayfs",
        checkpoints.RUNTIME_NAME: "io.containerd.runc.v2",
    }
    types = types_of(index)
    with tarfile.open(fileobj=io.BytesIO(blob(here, types[checkpoints.STATE]))) as tar:
        files = {m.name.removeprefix("./"): m for m in tar if m.isfile()}
        assert set(files) == set(criu.IMAGES)
    with tarfile.open(fileobj=io.BytesIO(blob(here, types[checkpoints.WRITABLE]))) as tar:
        assert "kept" in [member.name for member in tar]
    assert b'"args":["sh"' in blob(here, types[checkpoints.CONFIG])
    assert here.tasks()["one"] == (pid, "RUNNING")
    labels = [row for row in here.out("images", "ls").splitlines() if row.startswith(name)]
    assert "containerd.io/checkpoint=true" in labels[0]
    [asked] = runtime.commands("checkpoint")
    assert "--leave-running" in asked


def test_a_task_that_ends_with_its_checkpoint(here: Host, runtime: StandIn) -> None:
    run(here, runtime)
    image, work = here.base / "criu-image", here.base / "criu-work"
    flags = ("--exit", "--image-path", str(image), "--work-path", str(work))
    assert here.out("tasks", "checkpoint", *flags, "one") == ""
    here.until("one", "STOPPED")
    assert (image / "inventory.img").is_file()
    [asked] = runtime.commands("checkpoint")
    assert asked == ["--image-path", str(image), "--work-path", str(work), "one"]
    assert here.out("images", "ls", "-q").split() == [IMAGE]
    shutil.rmtree(image)
    work.rmdir()


@pytest.mark.parametrize("live", [True, False])
def test_a_container_is_restored(here: Host, runtime: StandIn, live: bool) -> None:
    run(here, runtime)
    here.out("containers", "checkpoint", "--rw", "--image", "--task", "one", REF)
    assert here.tasks()["one"][1] == "RUNNING"
    types = types_of(index_of(here, REF))
    assert {checkpoints.OPTIONS, checkpoints.RUNTIME_OPTIONS, checkpoints.STATE} <= set(types)
    assert "--file-locks" in runtime.commands("checkpoint")[0]
    here.out("tasks", "rm", "-f", "one")
    here.out("containers", "rm", "one")
    here.out("containers", "restore", "--rw", *(["--live"] if live else []), "two", REF)
    here.until("two", "RUNNING")
    assert here.out("tasks", "exec", "--exec-id", "e", "two", "cat", "/kept") == "was here\n"
    assert len(runtime.commands("restore")) == int(live)
    record = json.loads(here.out("containers", "info", "two"))
    assert (record["Image"], record["SnapshotKey"]) == (IMAGE, "two")


def test_a_restored_task_outlives_the_daemon(here: Host, runtime: StandIn) -> None:
    run(here, runtime)
    here.out("containers", "checkpoint", "--task", "one", REF)
    here.out("tasks", "rm", "-f", "one")
    here.out("containers", "restore", "--live", "two", REF)
    pid = here.until("two", "RUNNING")
    here.kill()
    here.start()
    assert here.tasks()["two"] == (pid, "RUNNING")


def test_a_failed_checkpoint_changes_nothing(here: Host, runtime: StandIn) -> None:
    pid = run(here, runtime)
    runtime.fail()
    commands = (
        ("tasks", "checkpoint", "--exit", "one"),
        ("containers", "checkpoint", "--rw", "--task", "one", REF),
    )
    for command in commands:
        done = here.ctr(*command)
        assert done.returncode == 1
        assert b"criu failed: type NOTIFY errno 0" in done.stderr
        assert b"vdso" in done.stderr
        assert here.tasks()["one"] == (pid, "RUNNING")
    with pytest.raises(Error, match="criu failed") as failure:
        rpc(here, "Checkpoint", request_for("one"), tasks_pb2.CheckpointTaskResponse)
    assert type(failure.value) is Error, "an unknown error, as containerd's"
    assert here.out("images", "ls", "-q").split() == [IMAGE]
    assert here.out("leases", "ls", "-q") == ""
    assert here.out("content", "active").count("\n") == 1


def test_a_failed_restore_leaves_nothing(here: Host, runtime: StandIn) -> None:
    run(here, runtime)
    here.out("containers", "checkpoint", "--task", "one", REF)
    runtime.fail()
    done = here.ctr("containers", "restore", "--live", "two", REF)
    assert done.returncode == 1
    assert b"OCI runtime restore failed" in done.stderr
    assert here.out("containers", "ls", "-q").split() == ["one"]
    assert list(here.tasks()) == ["one"]
    assert "two" not in here.out("snapshots", "ls")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), b"media type application/vnd.containerd.container.checkpoint.config.v1+proto"),
        (("--live",), b"checkpoint not found in index"),
    ],
)
def test_what_was_not_kept_is_not_restored(
    here: Host, runtime: StandIn, flags: tuple[str, ...], said: bytes
) -> None:
    run(here, runtime)
    here.out("containers", "checkpoint", "one", REF)
    done = here.ctr("containers", "restore", *flags, "two", REF)
    assert done.returncode == 1
    assert said in done.stderr
    assert "two" not in here.out("snapshots", "ls")


def test_no_such_things(here: Host, runtime: StandIn) -> None:
    for command in (
        ("tasks", "checkpoint", "none"),
        ("containers", "checkpoint", "none", REF),
        ("containers", "restore", "two", "example.com/none:1"),
    ):
        done = here.ctr(*command)
        assert done.returncode == 1
        assert b"not found" in done.stderr


def request_for(id: str, **options: Any) -> tasks_pb2.CheckpointTaskRequest:
    request = tasks_pb2.CheckpointTaskRequest(container_id=id)
    request.options.type_url = "containerd.runc.v1.CheckpointOptions"
    request.options.value = oci_pb2.CheckpointOptions(**options).SerializeToString()
    return request


def test_the_api_answers_descriptors_that_create_takes(here: Host, runtime: StandIn) -> None:
    run(here, runtime)
    answer = rpc(here, "Checkpoint", request_for("one"), tasks_pb2.CheckpointTaskResponse)
    assert [d.media_type for d in answer.descriptors] == [checkpoints.STATE, checkpoints.CONFIG]
    for made in answer.descriptors:
        assert len(blob(here, made.digest)) == made.size
    here.out("tasks", "rm", "-f", "one")
    request = tasks_pb2.CreateTaskRequest(container_id="one")
    request.checkpoint.CopyFrom(answer.descriptors[1])
    with pytest.raises(Error, match="unsupported checkpoint type"):
        rpc(here, "Create", request, tasks_pb2.CreateTaskResponse)
    request.checkpoint.CopyFrom(answer.descriptors[0])
    request.checkpoint.digest = "sha256:" + "0" * 64
    with pytest.raises(Error, match="not found"):
        rpc(here, "Create", request, tasks_pb2.CreateTaskResponse)
    assert here.tasks() == {}
    assert not Path(
        here.base / "state/io.containerd.runtime.v2.task" / here.namespace / "one"
    ).exists()


def test_a_directory_is_restored_from(here: Host, runtime: StandIn) -> None:
    run(here, runtime)
    image = here.base / "by-path"
    rpc(
        here,
        "Checkpoint",
        request_for("one", image_path=str(image)),
        tasks_pb2.CheckpointTaskResponse,
    )
    here.out("tasks", "rm", "-f", "one")
    options = oci_pb2.Options(binary_name=str(runtime.path), criu_image_path=str(image))
    options.criu_work_path = str(here.base / "work-path")
    for annotated in (False, True):
        request = tasks_pb2.CreateTaskRequest(container_id="one")
        request.rootfs.add(type="bind", source=str(here.base / "empty"), options=["rbind"])
        (here.base / "empty").mkdir(exist_ok=True)
        if annotated:
            request.checkpoint.annotations["RestoreFromPath"] = str(image)
        else:
            request.options.type_url = "containerd.runc.v1.Options"
            request.options.value = options.SerializeToString()
        assert rpc(here, "Create", request, tasks_pb2.CreateTaskResponse).pid == 0
        here.out("tasks", "rm", "one")
    shutil.rmtree(image)
