"""containerd-shim-kontti-v1 as containerd 1.6 drives it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kontti.shim.bootstrap import SOCKET_DIR, socket_path
from tests.support import daemons, images, leftovers
from tests.support.host import IMAGE
from tests.support.leftovers import Place

pytestmark = pytest.mark.root
RUNTIME = ("--runtime", "io.containerd.kontti.v1")
SECONDS = 10.0


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Debian's containerd, which finds the shim on its PATH."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{daemons.VENV_BIN}:{before}"
    try:
        with leftovers.place("containerd", "debian") as made:
            archive = images.archive(images.build(), IMAGE)
            assert made.import_bytes(archive).returncode == 0
            # the first one of a namespace makes folders that stay
            made.out("run", "--rm", *RUNTIME, IMAGE, "first", "true")
            yield made
    finally:
        os.environ["PATH"] = before


@pytest.fixture
def sockets(place: Place) -> Iterator[None]:
    """No shim of ours leaves its socket: the folder is everybody's."""
    yield
    for id in ("one", "kept", "wrong", "lost"):
        path = socket_path(SOCKET_DIR, place.daemon.address, place.namespace, id)
        until(partial(_gone, path))


def _gone(path: str) -> bool:
    return not os.path.exists(path)


def test_containerd_runs_a_container(place: Place, sockets: None) -> None:
    with leftovers.unchanged(place):
        script = "echo hello; echo bad >&2; exit 3"
        done = place.ctr("run", "--rm", *RUNTIME, IMAGE, "one", "sh", "-c", script)
        assert (done.returncode, done.stdout, done.stderr) == (3, b"hello\n", b"bad\n")


def test_containerd_gives_a_container_its_input(place: Place, sockets: None) -> None:
    words = (daemons.DEBIAN_CTR, "--address", place.daemon.address, "--namespace", place.namespace)
    with (
        leftovers.unchanged(place),
        subprocess.Popen(
            [*words, "run", "--rm", *RUNTIME, IMAGE, "one", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as client,
    ):
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"words\n")
        client.stdin.flush()
        # this client forgets to tell the end of input that comes before its task is made
        assert client.stdout.readline() == b"words\n"
        until(lambda: "RUNNING" in place.out("tasks", "ls"))
        client.stdin.close()
        assert client.stdout.read() == b""
        assert client.wait(SECONDS) == 0


def test_containerd_keeps_one_in_the_background(place: Place, sockets: None) -> None:
    with leftovers.unchanged(place):
        place.out("run", "-d", *RUNTIME, IMAGE, "kept", "sleep", "1000")
        assert "RUNNING" in place.out("tasks", "ls")
        words = ("tasks", "exec", "--exec-id", "e", "kept", "sh", "-c", "echo in; exit 4")
        done = place.ctr(*words)
        assert (done.returncode, done.stdout) == (4, b"in\n")
        assert "memory" in place.out("tasks", "metrics", "kept")
        place.out("tasks", "pause", "kept")
        assert "PAUSED" in place.out("tasks", "ls")
        place.out("tasks", "resume", "kept")
        place.out("tasks", "kill", "-s", "SIGKILL", "kept")
        until(lambda: "STOPPED" in place.out("tasks", "ls"))
        assert b"non-zero exit code 137" in place.ctr("tasks", "delete", "kept").stderr
        place.out("containers", "rm", "kept")


def test_containerd_is_told_what_is_wrong(place: Place, sockets: None) -> None:
    with leftovers.unchanged(place):
        said = place.fails("run", "--rm", *RUNTIME, IMAGE, "wrong", "/bin/nothing")
        assert "/bin/nothing" in said
        assert "create failed" in said
        place.ctr("containers", "rm", "wrong")


def test_containerd_cleans_up_after_a_killed_shim(place: Place, sockets: None) -> None:
    with leftovers.unchanged(place):
        place.out("run", "-d", *RUNTIME, IMAGE, "lost", "sleep", "1000")
        (pid,) = (
            pid
            for pid in daemons.shims(place.base / "state")
            if Path(f"/proc/{pid}/comm").read_text() == "kontti-shim\n"
        )
        os.kill(pid, signal.SIGKILL)
        until(lambda: "lost" not in place.out("tasks", "ls", "-q"))
        place.out("containers", "rm", "lost")
