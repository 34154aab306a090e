"""Which daemon, namespace and deadline a command uses; and how ctr ends when they fail it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.cmd.ctr.grammar import Call, parse
from kontti.cmd.ctr.main import GLOBAL_FLAGS
from kontti.cmd.ctr.session import connect, key_values, namespace_of
from kontti.cmd.ctr.signals import Signals
from tests.support.daemons import client_path
from tests.support.shims import short_folder

SECONDS = 20.0


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a daemon that takes every connection and says nothing."""
    with short_folder() as folder, contextlib.ExitStack() as stack:
        path = str(folder / "s")
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(16)
        yield path


def globals_(*words: str) -> Call:
    return Call(parse(GLOBAL_FLAGS, words, passthrough=True)[0], ())


def ctr(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [client_path("ours"), *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip


def test_the_flags_say_where(silent: str) -> None:
    outer = globals_("-a", silent, "-n", "blue")
    with connect(Call({}, (), globals=outer)) as client:
        assert (client.address, client.namespace) == (silent, "blue")
    assert namespace_of(outer) == "blue"


def test_the_environment_says_where(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERD_ADDRESS", f"unix://{silent}")
    monkeypatch.setenv("CONTAINERD_NAMESPACE", "green")
    with connect(globals_()) as client:
        assert client.namespace == "green"
    assert namespace_of(globals_("--namespace", "red")) == "red"


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTAINERD_ADDRESS", raising=False)
    monkeypatch.delenv("CONTAINERD_NAMESPACE", raising=False)
    made = globals_()
    assert made.str("address") == "/run/containerd/containerd.sock"
    assert namespace_of(made) == "default"


def test_key_values() -> None:
    assert key_values(["a=b", "c=d=e", "f=", "g"]) == {"a": "b", "c": "d=e", "f": "", "g": ""}


@pytest.mark.parametrize(
    "words",
    [
        "version",
        "tasks ls",
        "events",
        "images ls",
        "content ls",
        "run --rm x y",
        "tasks exec --exec-id e x y",
    ],
)
def test_a_daemon_that_never_answers_is_not_waited_for_for_ever(silent: str, words: str) -> None:
    done = ctr("-a", silent, "--timeout", "300ms", *words.split())
    assert done.returncode == 1
    assert done.stderr == "ctr: the daemon did not answer in time: context deadline exceeded\n"


def test_no_daemon_at_all() -> None:
    done = ctr("-a", "/nonexistent/s", "tasks", "ls")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        'ctr: failed to dial "/nonexistent/s": No such file or directory; is containerd running?: '
        "unavailable\n"
    )


@pytest.mark.parametrize("words", ["tasks ls", "events", "run --rm x y"])
def test_a_daemon_that_disappears(words: str) -> None:
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(folder / "s")
        listener.bind(path)
        listener.listen()

        def hang_up() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(24)

        thread = threading.Thread(target=hang_up)
        thread.start()
        done = ctr("-a", path, *words.split())
        thread.join(SECONDS)
    assert done.returncode == 1
    assert done.stderr.startswith(f"ctr: connection to {path}")
    assert done.stderr.endswith(": unavailable\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    argv = [client_path("ours"), "--help"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, check=False, timeout=SECONDS)
    os.close(write)
    assert b"Traceback" not in done.stderr


def test_it_starts_from_any_directory_and_environment(tmp_path: Path) -> None:
    argv = [client_path("ours"), "-v"]
    hostile = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nonexistent", "PATH": "/usr/bin:/bin"}
    (tmp_path / "socket.py").write_text("raise SystemExit(9)")
    done = subprocess.run(
        argv, cwd=tmp_path, env=hostile, capture_output=True, check=False, timeout=SECONDS
    )
    assert (done.returncode, done.stdout[:11]) == (0, b"ctr kontti "), done.stderr


def test_signals_are_dealt_with_in_order_and_given_back() -> None:
    dealt: list[int] = []
    enough = threading.Event()

    def deal(number: int) -> None:
        dealt.append(number)
        if len(dealt) == 3:
            enough.set()

    before = signal.getsignal(signal.SIGUSR1)
    signals = Signals(deal)
    signals.start([signal.SIGUSR1, signal.SIGUSR2])
    try:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
            signal.raise_signal(number)
        assert enough.wait(SECONDS)
    finally:
        signals.stop()
    assert dealt == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) == before
    signals.stop()
