"""``ctr shim``: shims of ours and of containerd, below our daemon and below containerd's."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kontti.client.client import Client
from kontti.shim.bootstrap import SOCKET_DIR, socket_path
from kontti.wire.messages.services.snapshots.v1.snapshots import MountsRequest, MountsResponse
from kontti.wire.messages.services.tasks.v1.tasks import CreateTaskRequest, CreateTaskResponse
from tests.support import daemons, images, leftovers
from tests.support.host import IMAGE
from tests.support.leftovers import Place

pytestmark = pytest.mark.root
DEBIAN_SHIM = "/usr/bin/containerd-shim-runc-v2"
CASES = {
    "our shim": ("kontti", "io.containerd.runc.v2"),
    "containerd's shim": ("kontti", DEBIAN_SHIM),
    "containerd": ("containerd", "io.containerd.runc.v2"),
}
PROCESS = {
    "user": {"uid": 0, "gid": 0},
    "args": ["/bin/sh", "-c", 'read line; echo "$line $WHO $(pwd)"; echo bad >&2; exit 7'],
    "env": ["PATH=/bin:/usr/bin", "WHO=nobody"],
    "cwd": "/",
}
STARTED = b"exec running with pid "


@dataclass(frozen=True)
class Shims:
    """A daemon, and the runtime whose shims are called."""

    place: Place
    runtime: str

    def run(self, id: str, *flags: str) -> None:
        words = ("--runtime", self.runtime, *flags, IMAGE, id, "sleep", "1000")
        self.place.out("run", "-d", *words)

    def ours(self, *args: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return self.by("ours", *args, stdin=stdin)

    def by(
        self, client: str, *args: str, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        words = ("--namespace", self.place.namespace, *args)
        return self.place.daemon.ctr(client, *words, stdin=stdin)

    def shim(self, *args: str) -> str:
        done = self.ours("shim", *args)
        assert done.returncode == 0, done
        return done.stdout.decode()

    def fails(self, *args: str, client: str = "ours") -> str:
        done = self.by(client, "shim", *args)
        assert done.returncode == 1, done
        assert b"Traceback" not in done.stderr
        return done.stderr.decode()

    def path(self, id: str) -> str:
        address = self.place.daemon.address
        return socket_path(SOCKET_DIR, address, self.place.namespace, id)

    def end(self, id: str) -> None:
        self.place.ctr("tasks", "rm", "-f", id)
        self.place.ctr("containers", "rm", id)


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def shims(request: pytest.FixtureRequest) -> Iterator[Shims]:
    kind, runtime = request.param
    with leftovers.place(kind, "ours") as made:
        assert made.import_bytes(images.archive(images.build(), IMAGE)).returncode == 0
        yield Shims(made, runtime)


@pytest.fixture
def one(shims: Shims) -> Iterator[Shims]:
    shims.run("one")
    try:
        yield shims
    finally:
        shims.end("one")


def until_ended(shims: Shims, id: str) -> None:
    deadline = time.monotonic() + 10
    while json.loads(shims.shim("--id", id, "state"))["status"] != 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def written(folder: Path, **changes: object) -> str:
    path = folder / "process.json"
    path.write_text(json.dumps({**PROCESS, **changes}))
    return str(path)


def streams(folder: Path) -> list[str]:
    return [w for n in ("stdin", "stdout", "stderr") for w in (f"--{n}", str(folder / n))]


def test_state_as_the_original_prints_it(one: Shims) -> None:
    ours = one.shim("--id", "one", "state")
    theirs = one.by("debian", "shim", "--id", "one", "state")
    assert theirs.returncode == 0, theirs
    assert ours == theirs.stdout.decode()
    told = json.loads(ours)
    assert (told["id"], told["status"]) == ("one", 2)
    assert Path(f"/proc/{told['pid']}/cmdline").read_bytes() == b"sleep\x001000\x00"


def test_a_task_that_ends_and_is_deleted(one: Shims) -> None:
    for client in ("ours", "debian"):
        said = one.fails("--id", "one", "delete", "one", client=client)
        assert "cannot delete a" in said
        assert "cannot start a" in one.fails("--id", "one", "start", "one", client=client)
    one.place.out("tasks", "kill", "-s", "SIGKILL", "one")
    until_ended(one, "one")
    told = json.loads(one.shim("--id", "one", "state", "--task-id", "one"))
    assert (told["status"], told["exit_status"]) == (3, 137)
    assert told["exited_at"].startswith("20")
    said = one.shim("--id", "one", "delete", "one")
    assert said == "container deleted and returned exit status 137\n"
    assert "not found" in one.fails("--id", "one", "state")
    # past the daemon, which is to take it as it is
    one.shim("--id", "one", "shutdown")
    one.place.ctr("tasks", "rm", "one")
    assert one.place.out("tasks", "ls", "-q") == ""
    one.place.out("containers", "rm", "one")
    assert "fail to connect" in one.fails("--id", "one", "state")


def test_shutdown_leaves_a_shim_that_has_a_task(one: Shims) -> None:
    for version in ("2", "3") if one.runtime != DEBIAN_SHIM else ("2",):
        done = one.ours("shim", "--id", "one", "shutdown", "--api-version", version)
        assert done.returncode == (0 if one.place.daemon.kind == "kontti" or version == "2" else 1)
    assert json.loads(one.shim("--id", "one", "state"))["status"] == 2


def test_versions_of_the_service(one: Shims) -> None:
    assert json.loads(one.shim("--id", "one", "state", "--api-version", "2"))["status"] == 2
    done = one.ours("shim", "--id", "one", "state", "--api-version", "3")
    if one.place.daemon.kind == "kontti" and one.runtime != DEBIAN_SHIM:
        assert json.loads(done.stdout)["status"] == 2
    else:
        assert done.returncode == 1
        assert b"containerd.task.v3.Task" in done.stderr
    assert "api-version must be 2 or 3" in one.fails("--id", "one", "state", "--api-version", "4")
    assert 'invalid value "x"' in one.fails("--id", "one", "state", "--api-version", "x")


def test_an_address_that_is_given(one: Shims) -> None:
    path = one.path("one")
    assert os.path.exists(path)
    for address in (path, f"unix://{path}"):
        said = one.shim("--shim-address", address, "state", "-t", "one")
        assert json.loads(said)["id"] == "one"
    # one that does not answer is no reason not to try the one of the id
    said = one.shim("--shim-address", "/nowhere", "--id", "one", "state")
    assert json.loads(said)["id"] == "one"
    said = one.fails("--shim-address", "/nowhere", "state")
    assert "fail to connect to container shim with sockets: [/nowhere]" in said


def test_a_shim_of_several_tasks_is_found_by_each(one: Shims) -> None:
    group = ("--annotation", "io.containerd.runc.v2.group=one")
    one.run("two", *group)
    # in the usual place, which is beside the bundles
    address = one.place.daemon.state / "usual.sock"
    address.symlink_to(one.place.daemon.address)
    words = ("--namespace", one.place.namespace, "shim", "--id")
    try:
        assert "fail to connect" in one.fails("--id", "two", "state")
        done = daemons.ctr("ours", str(address), *words, "two", "state")
        assert done.returncode == 0, done
        told = json.loads(done.stdout)
        assert (told["id"], told["status"]) == ("two", 2)
        assert json.loads(one.shim("--id", "one", "state", "-t", "two")) == told
        done = daemons.ctr("ours", str(address), *words, "../two", "state")
        assert b"invalid argument" in done.stderr
    finally:
        one.end("two")
        address.unlink()


def test_exec_attached(one: Shims, tmp_path: Path) -> None:
    spec = written(tmp_path)
    changes = ("--env", "WHO=somebody", "-e", "MORE=1", "--cwd", "/bin")
    words = ("--id", "one", "exec", "-a", *streams(tmp_path), *changes, "--spec", spec, "e1")
    done = one.ours("shim", *words, stdin=b"hello\n")
    assert done.returncode == 7, done
    assert done.stdout.startswith(STARTED)
    assert done.stdout.endswith(b"\nhello somebody /bin\n")
    assert done.stderr == b"bad\n"
    # it is deleted, so its id is free
    assert "not found" in one.fails("--id", "one", "state", "--exec-id", "e1")
    assert one.ours("shim", *words, stdin=b"again\n").returncode == 7


def test_exec_with_a_terminal(one: Shims, tmp_path: Path) -> None:
    spec = written(tmp_path, args=["/bin/sh", "-c", "test -t 1 && echo terminal"])
    flags = ("-t", "--attach", *streams(tmp_path), "--spec", spec)
    done = one.ours("shim", "--id", "one", "exec", *flags, "e2")
    assert done.returncode == 0, done
    # shims have terminals add no CR, and a quick process may write before that
    assert done.stdout.replace(b"\r", b"").endswith(b"\nterminal\n")
    assert not (tmp_path / "stderr").exists()


def test_exec_in_the_background(one: Shims, tmp_path: Path) -> None:
    spec = written(tmp_path, args=["/bin/sleep", "0.5"])
    words = ("exec", "--task-id", "one", "--spec", spec, "e3")
    said = one.shim("--shim-address", one.path("one"), *words)
    pid = int(said.encode().removeprefix(STARTED))
    assert "already exists" in one.fails("--id", "one", "exec", "--spec", spec, "e3")
    deadline = time.monotonic() + 10
    while (told := json.loads(one.shim("--id", "one", "state", "--exec-id", "e3")))["status"] != 3:
        assert told["pid"] == pid
        assert time.monotonic() < deadline
    assert told.get("exec_id", "e3") == "e3"
    assert "exit status 0" in one.shim("--id", "one", "delete", "--exec-id", "e3")
    assert json.loads(one.shim("--id", "one", "state"))["status"] == 2


def test_exec_of_what_cannot_be(one: Shims, tmp_path: Path) -> None:
    spec = written(tmp_path)
    assert "exec id must be provided" in one.fails("--id", "one", "exec", "--spec", spec)
    assert "--spec" in one.fails("--id", "one", "exec", "e")
    path = one.path("one")
    assert "task id" in one.fails("--shim-address", path, "exec", "--spec", spec, "e")
    missing = str(tmp_path / "missing")
    assert "no such file" in one.fails("--id", "one", "exec", "--spec", missing, "e")
    (tmp_path / "list").write_text("[]")
    said = one.fails("--id", "one", "exec", "--spec", str(tmp_path / "list"), "e")
    assert "failed to parse process spec" in said
    said = one.fails("--id", "one", "exec", "--spec", spec, "--stdout", spec, "e")
    assert f"{spec} is no FIFO" in said
    wrong = written(tmp_path, args=["/bin/nothing"])
    assert "/bin/nothing" in one.fails("--id", "one", "exec", "--spec", wrong, "e")
    # what did not start is not left
    assert "not found" in one.fails("--id", "one", "state", "--exec-id", "e")


@contextlib.contextmanager
def created(shims: Shims, id: str) -> Iterator[None]:
    """A task that is not started: no client's command makes one."""
    shims.place.out("containers", "create", "--runtime", shims.runtime, IMAGE, id, "sleep", "1000")
    service, namespace = "containerd.services.snapshots.v1.Snapshots/", shims.place.namespace
    with Client(shims.place.daemon.address, namespace=namespace) as client:
        mounts = client.unary(
            service + "Mounts", MountsRequest(snapshotter="overlayfs", key=id), MountsResponse
        ).mounts
        request = CreateTaskRequest(container_id=id, rootfs=mounts)
        client.unary("containerd.services.tasks.v1.Tasks/Create", request, CreateTaskResponse)
    try:
        yield
    finally:
        shims.end(id)


@pytest.mark.parametrize("words", [("made",), ()])
def test_start_of_a_created_task(shims: Shims, words: tuple[str, ...]) -> None:
    with created(shims, "made"):
        assert json.loads(shims.shim("--id", "made", "state"))["status"] == 1
        assert shims.shim("--id", "made", "start", *words) == ""
        assert json.loads(shims.shim("--id", "made", "state"))["status"] == 2
        assert "RUNNING" in shims.place.out("tasks", "ls")


def test_a_shim_that_hangs(one: Shims) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(one.path("one"))
        pid = int.from_bytes(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), "little")
    if one.place.daemon.kind == "containerd" or one.runtime == DEBIAN_SHIM:
        # who called listen(2) there was not the shim, but what started it
        (pid,) = (p for p in daemons.shims(one.place.base) if is_shim(p, one.place.namespace))
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        done = one.ours("--timeout", "1s", "shim", "--id", "one", "state")
        assert 0.9 < time.monotonic() - began < 8
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.returncode == 1
    assert b"State was not answered in 1 s: context deadline exceeded" in done.stderr
    assert json.loads(one.shim("--id", "one", "state"))["status"] == 2


def is_shim(pid: int, namespace: str) -> bool:
    line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return os.path.basename(line[0]).startswith(b"containerd-shim") and namespace.encode() in line


def test_bad_names(shims: Shims) -> None:
    for client, said in (("ours", "shim ID (--id) or address"), ("debian", "must be specified")):
        assert said in shims.fails("state", client=client)
        assert "fail to connect to container" in shims.fails("--id", "nope", "state", client=client)
    assert "invalid argument" in shims.fails("--id", "../../etc", "state")
    assert "invalid argument" in shims.fails("--id", "a\nb", "state")
    assert "task id must be provided" in shims.fails("--shim-address", "/x", "delete")
    assert "not defined" in shims.fails("--id", "nope", "state", "--what")
    assert shims.ours("shim", "what").returncode == 3


class Profiles(http.server.BaseHTTPRequestHandler):
    """Answers with what is asked for."""

    def do_GET(self) -> None:
        self.send_response(404 if "block" in self.path else 200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def address_string(self) -> str:
        return ""

    def log_message(self, *_: object) -> None:
        return


class OnUnix(http.server.HTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(str(self.server_address))
        self.server_name, self.server_port = "shim", 0


@pytest.fixture
def profiles() -> Iterator[tuple[str, ...]]:
    """A shim's debug socket where containerd 2 has it: its shims here are older, and have none."""
    words = ("--address", "/run/shim-test.sock", "--namespace", f"ns{os.getpid()}")
    path = socket_path(SOCKET_DIR, words[1], words[3], "one/debug")
    os.makedirs(SOCKET_DIR, exist_ok=True)
    with OnUnix(path, Profiles) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield words
        finally:
            server.shutdown()
            thread.join()
            os.unlink(path)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("goroutines",), "goroutine?debug=2"),
        (("heap", "--debug", "1"), "heap?debug=1"),
        (("profile", "-s", "1m"), "profile?debug=0&seconds=60"),
        (("trace",), "trace?debug=0&seconds=5"),
        (("threadcreate",), "threadcreate?debug=0"),
    ],
)
def test_profiles(profiles: tuple[str, ...], words: tuple[str, ...], asked: str) -> None:
    argv = (daemons.client_path("ours"), *profiles, "shim", "--id", "one", "pprof", *words)
    done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout.decode()) == (0, f"/debug/pprof/{asked}")


def test_profiles_that_are_not_there(profiles: tuple[str, ...]) -> None:
    argv = (daemons.client_path("ours"), *profiles, "shim")
    for words, said in (
        (("--id", "one", "pprof", "block"), b"http get failed with status: 404 Not Found"),
        (("--id", "two", "pprof", "heap"), b"No such file or directory"),
        (("pprof", "heap"), b"container id must be provided"),
    ):
        done = subprocess.run((*argv, *words), capture_output=True, timeout=20, check=False)
        assert done.returncode == 1
        assert said in done.stderr
