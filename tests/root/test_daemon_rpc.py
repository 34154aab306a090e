"""What any gRPC client may send to the daemon, well meant or not."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

import kontti.api.health.v1
import kontti.api.services
from tests.support import images
from tests.support.host import IMAGE, Host, host

pytestmark = pytest.mark.root
SECONDS = 10.0
TASKS = "containerd.services.tasks.v1.Tasks"
CONTAINERS = "containerd.services.containers.v1.Containers"
NAMESPACES = "containerd.services.namespaces.v1.Namespaces"
SNAPSHOTS = "containerd.services.snapshots.v1.Snapshots"


def services() -> Iterator[ServiceDescriptor]:
    """Every service of the API that a daemon serves over gRPC."""
    for package in (kontti.api.services, kontti.api.health.v1):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("_pb2") and ".ttrpc." not in found.name:
                descriptor = importlib.import_module(found.name).DESCRIPTOR
                yield from descriptor.services_by_name.values()


SERVICES = {service.full_name: service for service in services()}
METHODS = [method for service in SERVICES.values() for method in service.methods]
BUILT = {
    "containerd.services.transfer.v1.Transfer": False,
}


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    with host() as made:
        yield made


@pytest.fixture
def channel(here: Host) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{here.address}") as made:
        yield made


@pytest.fixture(autouse=True)
def unharmed(here: Host) -> Iterator[None]:
    """Whatever was sent: it answers, and it is the same process."""
    yield
    assert here.process is not None
    assert here.process.poll() is None
    assert "Server:" in here.out("version")


def full_name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.full_name}/{method.name}"


def call(
    channel: grpc.Channel,
    name: str,
    request: bytes = b"",
    metadata: tuple[tuple[str, str], ...] = (),
) -> tuple[grpc.StatusCode, str, bytes]:
    """One call with raw bytes: its status, its message, the last answer."""
    service, _, rpc = name.partition("/")
    method = SERVICES[service].methods_by_name[rpc] if service in SERVICES else None
    last = b""
    # bytes go and come as they are
    streams: Callable[..., Any] = channel.stream_stream(f"/{name}")
    one: Callable[..., Any] = channel.unary_stream(f"/{name}")
    try:
        if method is not None and method.client_streaming:
            answers = streams(iter([request]), timeout=SECONDS, metadata=metadata)
        else:
            answers = one(request, timeout=SECONDS, metadata=metadata)
        for answer in answers:
            last = answer
        return grpc.StatusCode.OK, "", last
    except grpc.RpcError as error:
        return error.code(), error.details() or "", last


def encode(method: str, **fields: object) -> bytes:
    """A request by its fields."""
    service, _, rpc = method.partition("/")
    kind = SERVICES[service].methods_by_name[rpc].input_type
    made: bytes = message_factory.GetMessageClass(kind)(**fields).SerializeToString()
    return made


def scoped(here: Host) -> tuple[tuple[str, str], ...]:
    return (("containerd-namespace", here.namespace),)


def test_the_api_is_all_there() -> None:
    assert len(SERVICES) >= 17
    assert len(METHODS) >= 90


# which answers when there is an event: tests/root/test_events.py
SUBSCRIBE = "containerd.services.events.v1.Events/Subscribe"
KNOWN = [pytest.param(m, id=full_name(m)) for m in METHODS if full_name(m) != SUBSCRIBE]


@pytest.mark.parametrize("method", KNOWN)
def test_every_rpc_is_known(channel: grpc.Channel, method: MethodDescriptor) -> None:
    name = full_name(method)
    # what an empty request does make is not in the other tests' way
    code, details, _ = call(channel, name, metadata=(("containerd-namespace", "empty"),))
    assert code is not grpc.StatusCode.DEADLINE_EXCEEDED
    if not BUILT.get(method.containing_service.full_name, True):
        assert code is grpc.StatusCode.UNIMPLEMENTED
    if method.name == "Transfer":
        assert details == "method Transfer not implemented for  to : not implemented"
    elif code is grpc.StatusCode.UNIMPLEMENTED:
        assert details == f"method {name}: not implemented"
    assert "Traceback" not in details
    # an empty request is a client's mistake, not ours
    assert code is not grpc.StatusCode.UNKNOWN, details


def test_an_unknown_service_is_not(channel: grpc.Channel) -> None:
    code, _, _ = call(channel, "containerd.services.none.v1.None/Call")
    assert code is grpc.StatusCode.UNIMPLEMENTED


SCOPED = [
    m
    for m in METHODS
    if m.containing_service.name
    in (
        "Containers",
        "Content",
        "Images",
        "Leases",
        "Snapshots",
        "Tasks",
        "Diff",
        "Mounts",
        "Store",
    )
]


@pytest.mark.parametrize("method", [pytest.param(m, id=full_name(m)) for m in SCOPED])
def test_a_namespace_is_required(channel: grpc.Channel, method: MethodDescriptor) -> None:
    code, details, _ = call(channel, full_name(method))
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details == "namespace is required: failed precondition"


@pytest.mark.parametrize("name", ["a/b", "../up", "-a", "a" * 77, "a b", ".", "a..b", "%2e"])
def test_a_bad_namespace_is_refused(channel: grpc.Channel, name: str) -> None:
    code, details, _ = call(
        channel, f"{CONTAINERS}/List", metadata=(("containerd-namespace", name),)
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "namespace validation" in details
    request = encode(f"{NAMESPACES}/Create", namespace={"name": name})
    assert call(channel, f"{NAMESPACES}/Create", request)[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("id", ["", "a/b", "../up", "a" * 77, "a\0b", "é", " ", "a\n"])
def test_a_bad_id_is_refused(channel: grpc.Channel, here: Host, id: str) -> None:
    made = {"id": id, "runtime": {"name": "io.containerd.runc.v2"}, "spec": any_pb2.Any()}
    for method, fields in (
        (f"{CONTAINERS}/Create", {"container": made}),
        (f"{TASKS}/Create", {"container_id": id}),
        (f"{TASKS}/Start", {"container_id": id}),
        (f"{TASKS}/Exec", {"container_id": id, "exec_id": id}),
    ):
        code, details, _ = call(channel, method, encode(method, **fields), scoped(here))
        wanted = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        assert code in wanted, (method, details)
    assert here.nothing() == {}


def test_a_message_that_is_too_large_is_refused(channel: grpc.Channel, here: Host) -> None:
    request = encode(f"{TASKS}/Get", container_id="x" * (17 << 20))
    code, details, _ = call(channel, f"{TASKS}/Get", request, scoped(here))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in details


def test_what_is_no_message_is_refused(channel: grpc.Channel, here: Host) -> None:
    code, _, _ = call(channel, f"{TASKS}/Get", b"\xff" * 100, scoped(here))
    assert code is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("suffix", ["", ".ttrpc"])
@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 100_000,
        b"\xff" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000,
        os.urandom(10_000),
        b"\x00\xff\xff\xff\x00\x00\x00\x01\x01\x00",
    ],
    ids=["http1", "zeros", "ones", "preface", "random", "huge frame"],
)
def test_garbage_does_no_harm(here: Host, suffix: str, garbage: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(here.address + suffix)
        # hung up on, sooner or later; a TimeoutError would be no ConnectionError
        with contextlib.suppress(ConnectionError):
            client.sendall(garbage)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass


def test_clients_that_say_nothing_do_not_hold_up_others(here: Host) -> None:
    idle = [socket.socket(socket.AF_UNIX) for _ in range(200)]
    try:
        for client in idle:
            client.settimeout(SECONDS)
            client.connect(here.address)
        assert "Server:" in here.out("version")
    finally:
        for client in idle:
            client.close()


def test_unknown_runtimes_and_snapshotters_leave_nothing(channel: grpc.Channel, here: Host) -> None:
    snapshots = here.out("snapshots", "ls")
    for flags, said in (
        (
            ("--runtime", "io.containerd.nothere.v1"),
            'runtime "io.containerd.nothere.v1" binary not',
        ),
        (("--runtime", "nonsense"), "invalid runtime name nonsense"),
        (("--runtime", "/nonexistent/shim"), "stat /nonexistent/shim: no such file"),
        (("--snapshotter", "nothere"), "snapshotter not loaded: nothere: invalid argument"),
    ):
        done = here.ctr("run", "--rm", *flags, IMAGE, "one", "true")
        assert (done.returncode, said in done.stderr.decode()) == (1, True), done
        assert here.nothing() == {}
        assert here.out("snapshots", "ls") == snapshots
    method = f"{SNAPSHOTS}/Prepare"
    request = encode(method, snapshotter="../../etc", key="k")
    assert call(channel, method, request, scoped(here))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("version", ["1.1.0", "1.2.0", "1.2.1", "1.3.0-rc.1"])
def test_a_newer_spec_runs(here: Host, version: str) -> None:
    # as clients of containerd 2 send it, and as older runtimes refuse it
    assert run_spec(here, version) == (0, "hello\n", "")


def test_a_spec_of_another_major_version_is_refused(here: Host) -> None:
    code, out, error = run_spec(here, "2.0.0")
    assert (code, out) == (1, "")
    assert "version" in error
    assert here.nothing() == {}


def run_spec(here: Host, version: str) -> tuple[int, str, str]:
    """Run a container of a whole spec that names an ociVersion."""
    here.out("containers", "create", IMAGE, "made", "echo", "hello")
    spec = json.loads(here.out("containers", "info", "--spec", "made"))
    here.out("containers", "rm", "made")
    folder = here.base / "rootfs" / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(images.BUSYBOX, folder / "echo")
    root = {"path": str(folder.parent)}
    file = here.base / "spec.json"
    file.write_text(json.dumps({**spec, "ociVersion": version, "root": root}))
    done = here.ctr("run", "--rm", "--config", str(file), "one")
    return done.returncode, done.stdout.decode(), done.stderr.decode()
