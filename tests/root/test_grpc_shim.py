"""A shim that speaks gRPC, driven by the daemon from a container's begin to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import grpcshim
from tests.support.host import IMAGE, Host, gone, host

pytestmark = pytest.mark.root
SLEEP = ("sleep", "1000")
SECONDS = 10.0


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    with host() as made:
        yield made


@pytest.fixture(params=[3, 2])
def shim(here: Host, request: pytest.FixtureRequest) -> Iterator[Path]:
    yield grpcshim.install(here.base, request.param)
    for id in here.out("tasks", "ls", "-q").split():
        here.out("tasks", "rm", "-f", id)
    for id in here.out("containers", "ls", "-q").split():
        here.out("containers", "rm", id)
    (here.base / grpcshim.NOTES).unlink(missing_ok=True)
    assert here.nothing() == {}
    deadline = time.monotonic() + SECONDS
    while servers(here):
        assert time.monotonic() < deadline, servers(here)
        time.sleep(0.02)


def servers(here: Host) -> list[int]:
    """The shim's processes, by what they work in."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "cwd").startswith(str(here.base)):
                found.append(int(entry.name))
    return found


def calls(here: Host) -> list[str]:
    return (here.base / grpcshim.NOTES).read_text().split()


def test_a_container_from_begin_to_end(here: Host, shim: Path) -> None:
    done = here.ctr(
        "run", "--rm", "--runtime", str(shim), IMAGE, "one", "sh", "-c", "echo hi; exit 7"
    )
    assert (done.returncode, done.stdout) == (7, b"hi\n"), done
    assert {"Create", "Start", "Wait", "Delete", "Shutdown"} <= set(calls(here))


def test_everything_that_is_asked_of_a_task(here: Host, shim: Path) -> None:
    here.out("run", "-d", "--null-io", "--runtime", str(shim), IMAGE, "one", *SLEEP)
    pid = here.until("one", "RUNNING")
    assert str(pid) in here.out("tasks", "ps", "one")
    done = here.ctr("tasks", "exec", "--exec-id", "e", "one", "sh", "-c", "echo in; exit 3")
    assert (done.returncode, done.stdout) == (3, b"in\n")
    here.out("tasks", "pause", "one")
    assert here.tasks()["one"][1] == "PAUSED"
    here.out("tasks", "resume", "one")
    assert "memory" in here.out("tasks", "metrics", "one")
    missing = here.ctr("tasks", "kill", "--exec-id", "none", "one")
    assert b"not found" in missing.stderr or b"does not exist" in missing.stderr
    here.out("tasks", "kill", "-s", "TERM", "one")
    here.out("tasks", "kill", "-s", "KILL", "one")
    here.until("one", "STOPPED")
    here.out("tasks", "rm", "one")
    assert here.tasks() == {}


def test_a_daemon_that_dies_finds_its_shim_again(here: Host, shim: Path) -> None:
    here.out("run", "-d", "--null-io", "--runtime", str(shim), IMAGE, "one", *SLEEP)
    pid = here.until("one", "RUNNING")
    here.kill()
    here.start()
    assert here.tasks()["one"] == (pid, "RUNNING")
    with subprocess.Popen(here.argv("tasks", "attach", "one"), stdout=subprocess.PIPE) as waiting:
        here.until_task(waiting, "one")
        here.out("tasks", "kill", "-s", "KILL", "one")
        assert waiting.wait(SECONDS) == 137


def test_a_shim_that_dies_takes_its_container_with_it(here: Host, shim: Path) -> None:
    here.out("run", "-d", "--null-io", "--runtime", str(shim), IMAGE, "one", *SLEEP)
    pid = here.until("one", "RUNNING")
    for process in servers(here):
        os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while here.tasks():
        assert time.monotonic() < deadline, here.tasks()
        time.sleep(0.02)
    assert gone(pid)
