"""Names that are none, straight to the API: refused in containerd's words, and nothing made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from kontti.api.services.containers.v1 import containers_pb2 as containers
from kontti.api.services.namespaces.v1 import namespace_pb2 as namespaces
from kontti.api.services.tasks.v1 import tasks_pb2 as tasks
from tests.support import images
from tests.support.leftovers import Place, place, unchanged

pytestmark = pytest.mark.root
IMAGE = "docker.io/library/busybox:test"
HELD = "held"
SECONDS = 10.0
PATTERN = r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
MUST = f"must match {PATTERN}: invalid argument"
# how the name is quoted in a message
NAMES: dict[str, str] = {
    "": "",
    "../x": "../x",
    "a/b": "a/b",
    "/": "/",
    "..": "..",
    ".a": ".a",
    "a.": "a.",
    "-a": "-a",
    "a--b": "a--b",
    " ": " ",
    "a b": "a b",
    "a\n": r"a\n",
    "a\nb": r"a\nb",
    "a\0b": r"a\x00b",
    '"\\': r"\"\\",
    "\x1b[2J": r"\x1b[2J",
    "é": "é",
    "\u202e": r"\u202e",
    "\U0001f600 \U000e0001": "\U0001f600 " + r"\U000e0001",
    "x" * 77: "x" * 77,
}
LONG = "x" * 100_000
"""An answer that repeats it would be too large for a client's headers."""


@dataclass(frozen=True)
class Peer:
    """A daemon with one running container, and a channel to it."""

    at: Place
    channel: grpc.Channel

    @property
    def ours(self) -> bool:
        return self.at.daemon.kind == "kontti"

    def call(
        self, method: str, request: Message | bytes, namespace: str | None = None
    ) -> tuple[grpc.StatusCode, str]:
        """The status and message of one call."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        one: Callable[..., Any] = self.channel.unary_unary(f"/containerd.services.{method}")
        space = self.at.namespace if namespace is None else namespace
        try:
            one(data, timeout=SECONDS, metadata=(("containerd-namespace", space),))
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""

    def there(self, id: str) -> str:
        """What is said of a container that is not there."""
        return f'container "{id}" in namespace "{self.at.namespace}": not found'


@pytest.fixture(scope="module", params=(("kontti", "ours"), ("containerd", "debian")))
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    with place(*request.param) as at:
        assert at.import_bytes(images.archive(images.build(), IMAGE)).returncode == 0
        at.out("run", "--detach", "--null-io", IMAGE, HELD, "sleep", "1000")
        with grpc.insecure_channel(f"unix:{at.daemon.address}") as channel:
            yield Peer(at, channel)
        at.out("tasks", "rm", "--force", HELD)
        at.out("containers", "rm", HELD)


def complaint(name: str) -> str:
    """What every validation says of it."""
    if not name:
        return "identifier must not be empty: invalid argument"
    if len(name) > 76:
        return f'identifier "{name}" greater than maximum length (76 characters): invalid argument'
    return f'identifier "{NAMES[name]}" {MUST}'


@pytest.mark.parametrize("name", NAMES)
def test_names_of_new_containers_and_namespaces(peer: Peer, name: str) -> None:
    record = containers.Container(id=name, runtime={"name": "io.containerd.runc.v2"}, spec={})
    with unchanged(peer.at):
        assert peer.call(
            "containers.v1.Containers/Create",
            containers.CreateContainerRequest(container=record),
        ) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            f"create container failed validation: container.ID: {complaint(name)}",
        )
        assert peer.call(
            "namespaces.v1.Namespaces/Create",
            namespaces.CreateNamespaceRequest(namespace={"name": name}),
        ) == (grpc.StatusCode.INVALID_ARGUMENT, complaint(name))


@pytest.mark.parametrize("name", NAMES)
def test_names_of_new_execs(peer: Peer, name: str) -> None:
    spec = {"type_url": "process", "value": b'{"args":["true"],"cwd":"/"}'}
    request = tasks.ExecProcessRequest(container_id=HELD, exec_id=name, spec=spec)
    with unchanged(peer.at):
        code, said = peer.call("tasks.v1.Tasks/Exec", request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    if name:
        # the original quotes it once and repeats it once as it is
        assert said.startswith("invalid exec id ")
        assert said.endswith(f": {complaint(name)}")
    else:
        assert said.removesuffix(": invalid argument") == "exec id cannot be empty"


OF_TASKS: Mapping[str, Callable[[str], Message]] = {
    "Create": lambda name: tasks.CreateTaskRequest(container_id=name),
    "Start": lambda name: tasks.StartRequest(container_id=name),
    "Get": lambda name: tasks.GetRequest(container_id=name),
    "Delete": lambda name: tasks.DeleteTaskRequest(container_id=name),
    "Kill": lambda name: tasks.KillRequest(container_id=name, signal=9, all=True),
    "Wait": lambda name: tasks.WaitRequest(container_id=name),
    "ListPids": lambda name: tasks.ListPidsRequest(container_id=name),
    "Pause": lambda name: tasks.PauseTaskRequest(container_id=name),
    "Exec": lambda name: tasks.ExecProcessRequest(container_id=name, exec_id="x"),
}


@pytest.mark.parametrize("method", OF_TASKS)
def test_tasks_of_names_that_no_container_has(peer: Peer, method: str) -> None:
    with unchanged(peer.at):
        for name, quoted in NAMES.items():
            found = peer.call(f"tasks.v1.Tasks/{method}", OF_TASKS[method](name))
            assert found == (grpc.StatusCode.NOT_FOUND, peer.there(quoted)), name


OF_EXECS: Mapping[str, Callable[[str], Message]] = {
    "Start": lambda name: tasks.StartRequest(container_id=HELD, exec_id=name),
    "Get": lambda name: tasks.GetRequest(container_id=HELD, exec_id=name),
    "Kill": lambda name: tasks.KillRequest(container_id=HELD, exec_id=name, signal=9),
    "Wait": lambda name: tasks.WaitRequest(container_id=HELD, exec_id=name),
    "ResizePty": lambda name: tasks.ResizePtyRequest(container_id=HELD, exec_id=name),
    "CloseIO": lambda name: tasks.CloseIORequest(container_id=HELD, exec_id=name),
    "DeleteProcess": lambda name: tasks.DeleteProcessRequest(container_id=HELD, exec_id=name),
}


@pytest.mark.parametrize("method", OF_EXECS)
def test_execs_of_names_that_none_has(peer: Peer, method: str) -> None:
    with unchanged(peer.at):
        for name in filter(None, (*NAMES, "none")):
            found = peer.call(f"tasks.v1.Tasks/{method}", OF_EXECS[method](name))
            wanted = f"process does not exist {name}: not found"
            assert found == (grpc.StatusCode.NOT_FOUND, wanted), name
    assert f"{HELD} " in peer.at.out("tasks", "ls")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_namespace_of_a_call(peer: Peer, name: str) -> None:
    code, said = grpc.StatusCode.INVALID_ARGUMENT, f"namespace validation: {complaint(name)}"
    if not name:
        code, said = (
            grpc.StatusCode.FAILED_PRECONDITION,
            "namespace is required: failed precondition",
        )
    elif not (name.isascii() and name.isprintable()):
        # no such header leaves a client
        code, said = grpc.StatusCode.INTERNAL, "Invalid metadata"
    request = tasks.ListTasksRequest()
    with unchanged(peer.at):
        for method in ("tasks.v1.Tasks/List", "containers.v1.Containers/List"):
            assert peer.call(method, request, name) == (code, said)


def test_what_is_no_text(peer: Peer) -> None:
    for method in ("tasks.v1.Tasks/Get", "tasks.v1.Tasks/Create", "containers.v1.Containers/Get"):
        code, _ = peer.call(method, b"\x0a\x03\xff\xfe\xfd")
        # the original's older codec takes any bytes for text, and finds nothing of that name
        assert code is (grpc.StatusCode.INTERNAL if peer.ours else grpc.StatusCode.NOT_FOUND)


def test_a_name_without_end(peer: Peer) -> None:
    """Ours answers with its class; the original's answer does not fit into a client's headers."""
    made = {"id": LONG, "runtime": {"name": "io.containerd.runc.v2"}, "spec": {}}
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    calls: list[tuple[str, Message, grpc.StatusCode]] = [
        (
            "containers.v1.Containers/Create",
            containers.CreateContainerRequest(container=made),
            invalid,
        ),
        ("containers.v1.Containers/Get", containers.GetContainerRequest(id=LONG), missing),
        ("containers.v1.Containers/Delete", containers.DeleteContainerRequest(id=LONG), missing),
        (
            "namespaces.v1.Namespaces/Create",
            namespaces.CreateNamespaceRequest(namespace={"name": LONG}),
            invalid,
        ),
        ("tasks.v1.Tasks/Create", OF_TASKS["Create"](LONG), missing),
        ("tasks.v1.Tasks/Start", OF_TASKS["Start"](LONG), missing),
        ("tasks.v1.Tasks/Start", OF_EXECS["Start"](LONG), missing),
        ("tasks.v1.Tasks/DeleteProcess", OF_EXECS["DeleteProcess"](LONG), missing),
        (
            "tasks.v1.Tasks/Exec",
            tasks.ExecProcessRequest(container_id=HELD, exec_id=LONG),
            invalid,
        ),
    ]
    with unchanged(peer.at):
        for method, request, wanted in calls:
            code, said = peer.call(method, request)
            assert code is wanted if peer.ours else code is not grpc.StatusCode.OK, (method, said)
            assert len(said) < 8192
