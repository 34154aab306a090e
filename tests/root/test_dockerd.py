"""Debian's dockerd on our daemon, and on Debian's containerd: what docker's users do."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench.fixtures import fresh_ext4

from tests.support import daemons
from tests.support.daemons import Daemon
from tests.support.dockerd import IMAGE, Docker, docker
from tests.support.shims import short_folder

pytestmark = pytest.mark.root
RUN = ("run", "--network=none")
CLOCK = ("sh", "-c", "i=0; while true; do echo $((i=i+1)); sleep 0.1; done")


@pytest.fixture(scope="module", params=["kontti", "containerd"])
def machine(request: pytest.FixtureRequest) -> Iterator[tuple[Docker, Daemon]]:
    """dockerd on our daemon, and on the original: what is asked here is what it does there."""
    with (
        short_folder() as base,
        fresh_ext4(base, 2) as disk,
        daemons.running(request.param, base / "k") as daemon,
        docker(base, disk, daemon.address) as made,
    ):
        yield made, daemon


@pytest.fixture
def dock(machine: tuple[Docker, Daemon]) -> Iterator[Docker]:
    yield machine[0]
    machine[0].remove_all()
    assert machine[1].ctr("ours", "--namespace", "moby", "tasks", "ls", "-q").stdout == b""


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def pid_of(dock: Docker, name: str) -> int:
    return int(dock.out("inspect", "-f", "{{.State.Pid}}", name))


def status(dock: Docker, name: str) -> str:
    return dock.out("inspect", "-f", "{{.State.Status}}", name).strip()


def test_run_streams_and_exit_code(dock: Docker) -> None:
    done = dock.run(
        *RUN, "--rm", "-i", IMAGE, "sh", "-c", "cat; echo err >&2; exit 7", input="in\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n", "err\n")


def test_run_on_a_terminal(dock: Docker) -> None:
    argv = ["docker", "--host", dock.host, *RUN, "--rm", "-it", IMAGE]
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp("docker", [*argv, "sh", "-c", "tty; read x; echo got $x; exit 5"])
    shown, sent = b"", False
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while data := os.read(fd, 4096):
            shown += data
            if b"/dev/pts/0" in shown and not sent:
                sent = bool(os.write(fd, b"words\n"))
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert b"got words" in shown


def test_exec_logs_and_top(dock: Docker) -> None:
    dock.out(*RUN, "-d", "--name", "clock", IMAGE, *CLOCK)
    assert dock.out("exec", "clock", "echo", "hi") == "hi\n"
    assert dock.out("exec", "-i", "clock", "cat", input="fed") == "fed"
    dock.out("exec", "clock", "sh", "-c", "exit 4", code=4)
    until(lambda: "3" in dock.out("logs", "clock").split())
    assert dock.out("logs", "clock").split()[:3] == ["1", "2", "3"]
    assert "sleep" in dock.out("top", "clock") or "sh -c" in dock.out("top", "clock")


def test_pause_stats_and_update(dock: Docker) -> None:
    dock.out(*RUN, "-d", "--name", "busy", IMAGE, *CLOCK)
    dock.out("pause", "busy")
    assert status(dock, "busy") == "paused"
    dock.out("unpause", "busy")
    assert status(dock, "busy") == "running"
    dock.out("update", "--memory", "64m", "--memory-swap", "128m", "busy")
    shown = dock.out("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "busy")
    assert "/ 64MiB" in shown
    assert int(shown.split()[-1]) >= 1


def test_stop_start_and_kill(dock: Docker) -> None:
    script = "trap 'echo term; exit 9' TERM; echo up; while true; do sleep 0.05; done"
    dock.out(*RUN, "-d", "--name", "polite", IMAGE, "sh", "-c", script)
    until(lambda: "up" in dock.out("logs", "polite"))
    dock.out("stop", "polite")
    assert dock.out("inspect", "-f", "{{.State.ExitCode}}", "polite") == "9\n"
    assert dock.out("logs", "polite") == "up\nterm\n"
    dock.out("start", "polite")
    dock.out("kill", "polite")
    assert dock.out("wait", "polite") == "137\n"
    dock.out("restart", "polite")
    assert status(dock, "polite") == "running"


def test_restart_always(dock: Docker) -> None:
    dock.out(*RUN, "-d", "--restart=always", "--name", "phoenix", IMAGE, "sleep", "1000")
    pid = pid_of(dock, "phoenix")
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid_of(dock, "phoenix") not in (0, pid))
    assert dock.out("inspect", "-f", "{{.RestartCount}}", "phoenix") == "1\n"


def test_running_out_of_memory_is_told(dock: Docker) -> None:
    hungry = "a=x; while true; do a=$a$a; done"
    limits = ("-m", "16m", "--memory-swap", "16m")
    dock.out(*RUN, *limits, "--name", "hungry", IMAGE, "sh", "-c", hungry, code=137)
    assert dock.out("inspect", "-f", "{{.State.OOMKilled}}", "hungry") == "true\n"


def test_command_that_does_not_exist(dock: Docker) -> None:
    done = dock.run(*RUN, "--name", "wrong", IMAGE, "nonesuch")
    assert done.returncode == 127
    assert "nonesuch" in done.stderr


def test_build_with_the_classic_builder(dock: Docker, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("from the context\n")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {IMAGE}\nCOPY note /note\nRUN cat /note > /copy\nCMD cat /copy\n"
    )
    dock.out("build", "--network=none", "-t", "built:1", str(tmp_path))
    assert dock.out(*RUN, "--rm", "built:1") == "from the context\n"
    dock.out("rmi", "built:1")


def test_containers_outlive_a_restart_of_dockerd(dock: Docker) -> None:
    dock.out(*RUN, "-d", "--name", "alive", IMAGE, *CLOCK)
    dock.out(*RUN, "-d", "--name", "brief", IMAGE, "sh", "-c", "sleep 0.5; exit 6")
    pid = pid_of(dock, "alive")
    dock.stop()
    time.sleep(0.7)
    dock.start()
    assert pid_of(dock, "alive") == pid
    assert dock.out("exec", "alive", "echo", "hi") == "hi\n"
    assert dock.out("wait", "brief") == "6\n"
    before = len(dock.out("logs", "alive").split())
    until(lambda: len(dock.out("logs", "alive").split()) > before)
