"""The command line of containerd-shim-kontti-v1 by itself."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kontti.errors import NotFound
from kontti.linux import cgroups
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.runtime.bootstrap.v1.bootstrap import (
    BootstrapParams,
    BootstrapResult,
    Extension,
)
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.messages.types.introspection import RuntimeInfo
from kontti.wire.messages.types.runc.options.oci import Options
from tests.support import containers, daemons
from tests.support.shimpeers import Client, Events
from tests.support.shims import short_folder
from tests.support.taskshim import Pod

pytestmark = pytest.mark.root
NAME = "containerd-shim-kontti-v1"
BINARY = str(daemons.VENV_BIN / NAME)
SECONDS = 10.0


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def shim(
    *args: str, cwd: Path | None = None, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line; what it prints ends though a server is left."""
    kept = {k: v for k, v in os.environ.items() if k != "MAX_SHIM_VERSION"}
    return subprocess.run(
        [BINARY, *args],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=SECONDS,
        env={**kept, **environment},
        check=False,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
def pod(folder: Path) -> Iterator[Pod]:
    """A shim that ``start`` left for the bundle of "one"."""
    containers.unpack(folder / "rootfs")
    base = folder / "p"
    base.mkdir()
    events = Events(base / "events.sock")
    options = Options(root=str(base / "oci"))
    namespace = f"t{uuid.uuid4().hex[:10]}"
    unborn = Pod(base, namespace, "crun", Client.__new__(Client), events, 0, options)
    bundle = unborn.bundle("one", "sleep", "1000")
    started = start(unborn, bundle)
    assert (started.returncode, started.stderr) == (0, b"")
    client = Client(started.stdout.decode())
    connected = client.call("Connect", api.ConnectRequest(id=""), api.ConnectResponse)
    made = Pod(base, namespace, "crun", client, events, connected.shim_pid, options)
    try:
        yield made
    finally:
        made.scrub()
        Path((bundle / "address").read_text().removeprefix("unix://")).unlink(missing_ok=True)


def start(
    pod: Pod, bundle: Path, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """``start`` for a bundle, as containerd 1.6 calls it."""
    return shim(
        "-namespace", pod.namespace, "-address", f"{pod.folder}/c.sock",
        "-publish-binary", "/bin/true", "-id", bundle.name, "start",
        cwd=bundle, stdin=stdin, TTRPC_ADDRESS=str(pod.events.path), **environment,
    )  # fmt: skip


def create(pod: Pod, id: str) -> None:
    """Create and start the container of a bundle that is there."""
    pod.client.call("Create", pod.create_request(id), api.CreateTaskResponse)
    pod.start(id)


def test_start_leaves_a_shim_that_is_nobodys_child(pod: Pod) -> None:
    stat = Path(f"/proc/{pod.pid}/stat").read_text().rpartition(")")[2].split()
    parent, session = int(stat[1]), int(stat[3])
    assert parent != os.getpid()
    assert session != os.getsid(0)
    assert os.readlink(f"/proc/{pod.pid}/cwd") == str(pod.folder / "b" / "one")
    for number in (0, 1, 2):
        assert os.readlink(f"/proc/{pod.pid}/fd/{number}") == os.devnull
    create(pod, "one")
    assert pod.end("one") == 137
    pod.shut_down()
    assert pod.traces() == []
    address = (pod.folder / "b" / "one" / "address").read_text()
    assert not os.path.exists(address.removeprefix("unix://"))


def test_a_second_start_finds_the_first(pod: Pod) -> None:
    bundle = pod.folder / "b" / "one"
    address = (bundle / "address").read_text()
    again = start(pod, bundle)
    assert (again.returncode, again.stdout.decode()) == (0, address)
    pod.shut_down()


def test_the_containers_of_a_group_share_a_shim(pod: Pod) -> None:
    address = (pod.folder / "b" / "one" / "address").read_text()
    for annotation in ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"):
        bundle = pod.bundle(f"of-{annotation}", "sleep", "1000")
        config = json.loads((bundle / "config.json").read_text())
        (bundle / "config.json").write_text(
            json.dumps({**config, "annotations": {annotation: "one"}})
        )
        assert start(pod, bundle).stdout.decode() == address
        assert (bundle / "address").read_text() == address
    pod.shut_down()


def test_starts_of_a_group_at_once_make_one_shim(pod: Pod) -> None:
    pod.shut_down()
    words = [BINARY, "-namespace", pod.namespace, "-id", "one", "start"]
    bundle = pod.folder / "b" / "one"
    children = [
        subprocess.Popen(words, cwd=bundle, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    addresses = {child.communicate(timeout=SECONDS)[0] for child in children}
    (address,) = addresses
    assert len(pod.processes()) == 1
    client = Client(address.decode())
    (pid,) = pod.processes()
    handle = os.pidfd_open(pid)
    client.call("Shutdown", api.ShutdownRequest(), Empty)
    assert select.select([handle], [], [], SECONDS)[0]
    os.close(handle)
    client.close()


@pytest.mark.parametrize(
    ("newest", "printed"),
    [
        ("", None),
        ("1", None),
        ("rubbish", None),
        ("2", {"version": 2, "protocol": "ttrpc"}),
        ("3", {"version": 3, "protocol": "ttrpc"}),
        ("17", {"version": 3, "protocol": "ttrpc"}),
    ],
)
def test_what_start_prints(pod: Pod, newest: str, printed: dict[str, object] | None) -> None:
    bundle = pod.folder / "b" / "one"
    address = (bundle / "address").read_text()
    options = Any(type_url=Options.NAME, value=pod.options.encode())
    done = start(pod, bundle, stdin=options.encode(), MAX_SHIM_VERSION=newest)
    if printed is None:
        assert done.stdout.decode() == address
    else:
        assert json.loads(done.stdout) == {**printed, "address": address}
    pod.shut_down()


def test_bootstrap_parameters_are_answered_in_kind(pod: Pod) -> None:
    bundle = pod.bundle("two", "sleep", "1000")
    params = BootstrapParams(
        instance_id="two",
        namespace=pod.namespace,
        containerd_ttrpc_address=str(pod.events.path),
        containerd_grpc_address=f"{pod.folder}/c.sock",
        socket_dir=str(pod.folder / "s"),
    )
    done = start(pod, bundle, stdin=params.encode(), MAX_SHIM_VERSION="3")
    result = BootstrapResult.decode(done.stdout)
    assert (result.version, result.protocol) == (3, "ttrpc")
    assert result.address.startswith(f"unix://{pod.folder}/s/")
    other = Client(result.address)
    other.call("Shutdown", api.ShutdownRequest(), Empty)
    assert other.closed()
    other.close()
    pod.shut_down()


@pytest.mark.parametrize("parameters", [False, True])
def test_a_shim_starts_in_the_group_that_its_options_name(pod: Pod, parameters: bool) -> None:
    """In the options that are all of the input, or in an extension of the parameters."""
    kind = "" if cgroups.mode() == cgroups.UNIFIED else "pids"
    group = Path(cgroups.ROOT) / kind / f"shim-{pod.namespace}"
    two = pod.bundle("two", "sleep", "1000")
    options = Any(type_url=Options.NAME, value=Options(shim_cgroup=f"/{group.name}").encode())
    packed = options.encode()
    if parameters:
        extensions = [Extension(value=options)]
        params = BootstrapParams(
            instance_id="two", namespace=pod.namespace, extensions=extensions, socket_dir=""
        )
        packed = params.encode()
    failed = start(pod, two, packed)
    assert failed.returncode == 1
    assert f"failed to load cgroup /{group.name}".encode() in failed.stderr
    group.mkdir()
    try:
        started = start(pod, two, packed)
        assert started.returncode == 0, started
        address = (two / "address").read_text()
        client = Client(address)
        found = client.call("Connect", api.ConnectRequest(id=""), api.ConnectResponse).shim_pid
        assert str(found) in (group / "cgroup.procs").read_text().split()
        client.call("Shutdown", api.ShutdownRequest(), Empty)
        client.close()
        until(lambda: not (group / "cgroup.procs").read_text())
    finally:
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_what_is_said_goes_to_the_bundles_log(pod: Pod) -> None:
    bundle = pod.bundle("two", "sleep", "1000")
    os.mkfifo(bundle / "log")
    reader = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    address = start(pod, bundle).stdout.decode()
    other = Client(address)
    connected = other.call("Connect", api.ConnectRequest(id=""), api.ConnectResponse)
    assert os.readlink(f"/proc/{connected.shim_pid}/fd/2") == str(bundle / "log")
    with open(f"/proc/{connected.shim_pid}/fd/2", "wb", buffering=0) as log:
        log.write(b"words\n")
    assert os.read(reader, 100) == b"words\n"
    other.call("Shutdown", api.ShutdownRequest(), Empty)
    assert other.closed()
    # its end is the log's end
    until(lambda: select.select([reader], [], [], 0)[0] != [] and os.read(reader, 1) == b"")
    os.close(reader)
    other.close()
    pod.shut_down()


def test_delete_clears_what_a_killed_shim_left(pod: Pod) -> None:
    create(pod, "one")
    pid = pod.state("one").pid
    ended = os.pidfd_open(pid)
    bundle = pod.folder / "b" / "one"
    address = (bundle / "address").read_text()
    os.kill(pod.pid, signal.SIGKILL)
    assert pod.client.closed()
    done = shim("-namespace", pod.namespace, "-id", "one", "-bundle", str(bundle), "delete")
    assert (done.returncode, done.stderr) == (0, b"")
    deleted = api.DeleteResponse.decode(done.stdout)
    assert (deleted.pid, deleted.exit_status) == (pid, 137)
    assert deleted.exited_at is not None
    assert select.select([ended], [], [], SECONDS)[0]
    os.close(ended)
    assert pod.traces() == []
    assert not os.path.exists(address.removeprefix("unix://"))


def test_delete_of_what_was_never_created(pod: Pod) -> None:
    bundle = pod.bundle("two", "sleep", "1000")
    done = shim("-namespace", pod.namespace, "-id", "two", "delete", cwd=bundle)
    assert done.returncode == 0
    deleted = api.DeleteResponse.decode(done.stdout)
    assert (deleted.pid, deleted.exit_status) == (0, 137)
    pod.shut_down()


def test_delete_leaves_a_living_groups_socket_alone(pod: Pod) -> None:
    bundle = pod.folder / "b" / "one"
    assert shim("-namespace", pod.namespace, "-id", "none", "delete", cwd=bundle).returncode == 0
    with pytest.raises(NotFound):
        pod.state("one")
    pod.shut_down()


def test_delete_spares_a_stranger_with_the_containers_number(pod: Pod) -> None:
    bundle = pod.bundle("two", "sleep", "1000")
    with subprocess.Popen(["/bin/sleep", "1000"]) as stranger:
        # its number was the container's, and it shares the top groups with everybody
        (bundle / "init.pid").write_text(str(stranger.pid))
        shared = sorted(set(cgroups.paths_of(stranger.pid).values()))
        (bundle / "cgroups").write_text("\n".join([*shared, "/sys/fs/cgroup/pids/gone"]))
        assert shim("-namespace", pod.namespace, "-id", "two", "delete", cwd=bundle).returncode == 0
        assert stranger.poll() is None
        stranger.kill()
    pod.shut_down()


def test_foreground_on_a_socket_that_is_given(folder: Path) -> None:
    path = folder / "shim.sock"
    words = [BINARY, "-namespace", "n", "-id", "x", "-socket", f"unix://{path}"]
    with subprocess.Popen(words, cwd=folder) as process:
        until(lambda: listens(path))
        shut_down(f"unix://{path}")
        assert process.wait(SECONDS) == 0
    assert not path.exists()


def test_foreground_on_a_socket_that_is_inherited(folder: Path) -> None:
    path = folder / "shim.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        script = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.argv[2], sys.argv[2:])"
        number = str(listener.fileno())
        words = [sys.executable, "-c", script, number, BINARY, "-namespace", "n"]
        with subprocess.Popen(words, cwd=folder, pass_fds=[listener.fileno()]) as process:
            shut_down(f"unix://{path}")
            assert process.wait(SECONDS) == 0
    assert not path.exists()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(path)) == 0


def shut_down(address: str) -> None:
    with contextlib.closing(Client(address, version=2)) as client:
        client.call("Shutdown", api.ShutdownRequest(), Empty)


def test_version_and_info() -> None:
    done = shim("-v")
    assert done.returncode == 0
    assert done.stdout.startswith(f"{NAME}:\n  Version:  ".encode())
    options = Options(binary_name="runc")
    packed = Any(type_url=Options.NAME, value=options.encode())
    info = RuntimeInfo.decode(shim("-info", stdin=packed.encode()).stdout)
    assert info.name == "io.containerd.kontti.v1"
    assert info.version is not None
    assert info.features is not None
    assert "ociVersionMin" in json.loads(info.features.value)
    assert info.options is not None
    assert Options.decode(info.options.value).binary_name == "runc"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["start"], "shim namespace cannot be empty"),
        (["-namespace", "n", "start"], "shim id cannot be empty"),
        (["-namespace", "n", "delete"], "shim id cannot be empty"),
        (["-namespace", "n", "-id", "x", "dance"], "unknown action"),
        (["-namespace", "n", "-rubbish", "start"], "flag provided but not defined: -rubbish"),
        (["-namespace"], "flag needs an argument: -namespace"),
    ],
)
def test_what_is_no_command_line(folder: Path, words: list[str], said: str) -> None:
    done = shim(*words, cwd=folder)
    assert (done.returncode, done.stdout) == (1, b"")
    assert said in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_socket_directory_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").touch()
    params = BootstrapParams(instance_id="x", namespace="n", socket_dir=str(folder / "file" / "s"))
    done = shim("-namespace", "n", "-id", "x", "start", cwd=folder, stdin=params.encode())
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"Traceback" not in done.stderr
