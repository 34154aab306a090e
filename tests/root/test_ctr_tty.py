"""``ctr run`` and its streams: a real terminal, pipes, files, signals and exit codes."""

from __future__ import annotations

import fcntl
import os
import pty
import selectors
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support.host import IMAGE, Host, gone, host

pytestmark = pytest.mark.root
SECONDS = 15.0


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with host() as made:
        yield made


@pytest.fixture
def here(shared: Host) -> Iterator[Host]:
    """The host; whatever a test leaves is taken away, and FIFOs must not be left."""
    yield shared
    for id in shared.out("tasks", "ls", "-q").split():
        shared.ctr("tasks", "rm", "-f", id)
    for id in shared.out("containers", "ls", "-q").split():
        shared.out("containers", "rm", id)


class Terminal:
    """Our ctr on a terminal of its own."""

    def __init__(self, argv: list[str], columns: int = 80, rows: int = 24) -> None:
        self.master, slave = pty.openpty()
        self.seen = b""
        self.resize(columns, rows)
        self.before = termios.tcgetattr(slave)
        self._slave = slave

        def control() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, preexec_fn=control
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(SECONDS)
        os.close(self._slave)
        os.close(self.master)

    def resize(self, columns: int, rows: int) -> None:
        """Have another size; who runs on it gets SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        """As from the keyboard."""
        os.write(self.master, data)

    def until(self, text: bytes) -> None:
        """Read on until the screen has shown ``text``; what came before it is forgotten."""
        deadline = time.monotonic() + SECONDS
        while text not in self.seen:
            with selectors.DefaultSelector() as ready:
                ready.register(self.master, selectors.EVENT_READ)
                assert ready.select(deadline - time.monotonic()), self.seen
            self.seen += os.read(self.master, 65536)
        self.seen = self.seen.partition(text)[2]

    def read_line(self) -> None:
        """Read on until a line is whole."""
        while b"\n" not in self.seen:
            self.seen += os.read(self.master, 65536)

    def code(self) -> int:
        """Wait for the end, with the terminal as it was before."""
        code = self.process.wait(SECONDS)
        assert termios.tcgetattr(self._slave) == self.before
        return code


def start(here: Host, *args: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Our ctr in the background, its output piped."""
    return subprocess.Popen(
        here.argv(*args), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_terminal(here: Host) -> None:
    with Terminal(here.argv("run", "--rm", "-t", IMAGE, "tty", "sh"), 100, 40) as screen:
        screen.type(b"tty; stty size; exit 7\n")
        screen.until(b"/dev/pts/0\r\n")
        screen.until(b"40 100\r\n")
        assert screen.code() == 7
    assert here.nothing() == {}


def test_keys_that_interrupt_and_end(here: Host) -> None:
    script = "trap 'echo interrupted' INT; echo begun; cat; echo over; cat"
    with Terminal(here.argv("run", "--rm", "-t", IMAGE, "keys", "sh", "-c", script)) as screen:
        screen.until(b"begun")
        screen.type(b"\x03")  # ends the first cat
        screen.until(b"interrupted")
        screen.until(b"over")
        screen.type(b"typed\n")
        screen.until(b"typed")
        screen.type(b"\x04")  # the end of input
        assert screen.code() == 0
    assert here.nothing() == {}


def test_a_new_size_is_seen_inside(here: Host) -> None:
    script = "while read line; do stty size; done"
    with Terminal(here.argv("run", "--rm", "-t", IMAGE, "size", "sh", "-c", script)) as screen:
        screen.type(b"x\n")
        screen.until(b"24 80")
        screen.resize(77, 33)
        deadline = time.monotonic() + SECONDS
        # the new size goes another way than what is typed does
        while b"33 77" not in screen.seen:
            assert time.monotonic() < deadline, screen.seen
            screen.type(b"y\n")
            screen.until(b"y\r\n")
            screen.read_line()
        screen.type(b"\x04")
        assert screen.code() == 0


def test_exec_on_a_terminal(here: Host) -> None:
    here.out("run", "-d", IMAGE, "box", "sleep", "1000")
    with Terminal(
        here.argv("tasks", "exec", "-t", "--exec-id", "e", "box", "sh"), 90, 30
    ) as screen:
        screen.type(b"stty size; exit 9\n")
        screen.until(b"30 90")
        assert screen.code() == 9


def test_attach_to_a_terminal(here: Host) -> None:
    here.out("containers", "create", "-t", IMAGE, "box", "sh")
    here.out("tasks", "start", "-d", "box")
    with Terminal(here.argv("tasks", "attach", "box"), 70, 20) as screen:
        screen.type(b"echo at''tached; exit 4\n")
        screen.until(b"attached")
        assert screen.code() == 4
    assert here.tasks() == {}


def test_attach_without_a_terminal(here: Host) -> None:
    here.out("run", "-d", IMAGE, "box", "sh", "-c", "read line; echo got $line; exit 5")
    done = here.ctr("tasks", "attach", "box", stdin=b"a line\n")
    assert (done.returncode, done.stdout) == (5, b"got a line\n")


def test_attach_to_what_has_no_streams(here: Host) -> None:
    here.out("run", "-d", "--null-io", IMAGE, "box", "sleep", "1000")
    with start(here, "tasks", "attach", "box") as attached:
        here.out("tasks", "kill", "-s", "KILL", "box")
        attached.communicate(timeout=SECONDS)
        assert attached.returncode == 137


def test_pipes(here: Host) -> None:
    data = os.urandom(1 << 20)
    done = here.ctr("run", "--rm", IMAGE, "pipe", "cat", stdin=data)
    assert (done.returncode, done.stdout == data) == (0, True), done.stderr
    done = here.ctr("run", "--rm", IMAGE, "pipe", "sh", "-c", "cat >&2; exit 3", stdin=data)
    assert (done.returncode, done.stdout, done.stderr == data) == (3, b"", True)
    done = here.ctr("run", "--rm", IMAGE, "pipe", "wc", "-c", stdin=b"")
    assert done.stdout.strip() == b"0"
    assert here.nothing() == {}


def test_exec_with_pipes(here: Host) -> None:
    here.out("run", "-d", IMAGE, "box", "sleep", "1000")
    data = os.urandom(300_000)
    done = here.ctr("tasks", "exec", "--exec-id", "e", "box", "cat", stdin=data)
    assert (done.returncode, done.stdout == data) == (0, True)


def test_input_that_nobody_reads_is_no_hindrance(here: Host) -> None:
    done = here.ctr("run", "--rm", IMAGE, "deaf", "echo", "done", stdin=b"x" * 1_000_000)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_output_that_nobody_reads_ends_ctr_and_not_the_container(here: Host) -> None:
    with start(here, "run", "--rm", IMAGE, "loud", "yes") as process:
        assert process.stdout is not None
        assert process.stdout.read(100) == b"y\n" * 50
        process.stdout.close()
        assert process.wait(SECONDS) == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert here.tasks()["loud"][1] == "RUNNING"
    here.out("tasks", "rm", "-f", "loud")
    here.out("containers", "rm", "loud")


@pytest.mark.parametrize("streams", [(), ("--null-io",), ("--log-uri", "file://{log}")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_the_container(
    here: Host, streams: tuple[str, ...], number: signal.Signals
) -> None:
    flags = [flag.format(log=here.base / "signals.log") for flag in streams]
    script = "trap 'exit 42' TERM INT USR1; while true; do sleep 0.05; done"
    with start(here, "run", "--rm", *flags, IMAGE, "told", "sh", "-c", script) as process:
        here.until_task(process, "told")
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, out, err) == (42, b"", b"")
    assert here.nothing() == {}


def test_a_pid_file(here: Host) -> None:
    file = here.base / "pid"
    here.out("run", "-d", "--pid-file", str(file), IMAGE, "box", "sleep", "1000")
    pid = int(file.read_text())
    assert here.tasks()["box"] == (pid, "RUNNING")
    assert b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()
    here.out("tasks", "rm", "-f", "box")
    assert gone(pid)
    here.out("tasks", "start", "-d", "--pid-file", str(file), "box")
    assert int(file.read_text()) == here.tasks()["box"][0] != pid


def test_a_pid_file_that_cannot_be_written_leaves_nothing(here: Host) -> None:
    done = here.ctr("run", "--rm", "--pid-file", "/nonexistent/pid", IMAGE, "box", "true")
    assert (done.returncode, done.stderr) == (
        1, b"ctr: open /nonexistent/pid: no such file or directory\n",
    )  # fmt: skip
    assert here.nothing() == {}


def test_output_to_a_file(here: Host) -> None:
    log = here.base / "out.log"
    flags = ("--log-uri", f"file://{log}")
    done = here.ctr(
        "run", "--rm", *flags, IMAGE, "box", "sh", "-c", "echo out; echo err >&2; exit 6"
    )
    assert (done.returncode, done.stdout, done.stderr) == (6, b"", b"")
    assert sorted(log.read_text().splitlines()) == ["err", "out"]


def test_output_to_nowhere(here: Host) -> None:
    done = here.ctr("run", "--rm", "--null-io", IMAGE, "box", "sh", "-c", "echo out; cat; exit 6")
    assert (done.returncode, done.stdout, done.stderr) == (6, b"", b"")


def test_fifos_go_with_their_process(here: Host) -> None:
    folder = here.base / "fifos"
    done = here.ctr("run", "--rm", "--fifo-dir", str(folder), IMAGE, "box", "ls", "/bin/sh")
    assert done.stdout == b"/bin/sh\n"
    assert list(folder.iterdir()) == []


def test_a_timeout_ends_ctr_and_not_the_container(here: Host) -> None:
    argv = ("--timeout", "500ms", "run", "--rm", IMAGE, "slow", "sleep", "1000")
    done = here.ctr(*argv)
    assert (done.returncode, b"deadline exceeded" in done.stderr) == (1, True)
    assert here.tasks()["slow"][1] == "RUNNING"
    # the snapshot of what goes on is not taken away either
    assert "slow" in here.out("snapshots", "ls")


def test_a_daemon_that_goes_away_ends_ctr_and_not_the_container() -> None:
    with host() as here, start(here, "run", "--rm", IMAGE, "box", "sleep", "1000") as process:
        pid = here.until_task(process, "box")
        assert here.stop() == 0
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 1
        assert err.startswith(b"ctr: ")
        assert b"Traceback" not in err
        here.start()
        assert here.until("box", "RUNNING") == pid
        here.out("tasks", "rm", "-f", "box")
        here.out("containers", "rm", "box")
        assert here.nothing() == {}
