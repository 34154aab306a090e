"""The warm process that shims are forked from: what it is asked, and when it ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kontti.wire.messages.google import Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from tests.support import taskshim
from tests.support.shimpeers import SECONDS, Client
from tests.support.shims import short_folder
from tests.support.taskshim import Zygote

pytestmark = pytest.mark.root


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    with short_folder() as folder, taskshim.zygote(folder) as made:
        yield made


def fork(zygote: Zygote, name: str, **more: object) -> dict[str, object]:
    request = {"namespace": "n", "socket": f"{zygote.folder}/s/{name}", "bundle": "/"}
    return zygote.fork({**request, **more})


def shut_down(answer: dict[str, object]) -> None:
    handle = os.pidfd_open(int(str(answer["pid"])))
    client = Client(str(answer["address"]))
    client.call("Shutdown", api.ShutdownRequest(), Empty)
    assert select.select([handle], [], [], SECONDS)[0]
    client.close()
    os.close(handle)


def test_shims_are_processes_of_their_own(zygote: Zygote) -> None:
    answers = [fork(zygote, str(number)) for number in range(5)]
    assert len({answer["pid"] for answer in answers}) == 5
    for answer in answers:
        assert (answer["version"], answer["protocol"]) == (3, "ttrpc")
        path = str(answer["address"]).removeprefix("unix://")
        assert os.stat(path).st_mode & 0o777 == 0o600
        shut_down(answer)
        assert not os.path.exists(path)


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"rubbish\n", b"[]\n", b'{"namespace": "n"}\n', b"x" * 100_000 + b"\n"]
)
def test_a_request_that_is_none_is_refused_and_the_next_one_served(
    zygote: Zygote, line: bytes
) -> None:
    for _ in range(3):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(SECONDS)
            client.connect(str(zygote.path))
            try:
                client.sendall(line)
                client.shutdown(socket.SHUT_WR)
                assert b'"error"' in client.recv(65536)
            except (BrokenPipeError, ConnectionResetError):
                assert len(line) > 65536
    shut_down(fork(zygote, "good"))


def test_a_bundle_that_is_not_there(zygote: Zygote) -> None:
    answer = fork(zygote, "x", bundle="/no/such/bundle")
    assert "/no/such/bundle" in str(answer["error"])
    assert not os.path.exists(f"{zygote.folder}/s/x")
    shut_down(fork(zygote, "x"))


def test_shims_outlive_it_and_spares_do_not() -> None:
    with short_folder() as folder:
        with taskshim.zygote(folder) as zygote:
            answer = fork(zygote, "one")
        assert not zygote.path.exists()
        marks = [
            entry
            for entry in os.listdir("/proc")
            if entry.isdigit() and str(zygote.path) in line(entry)
        ]
        assert marks in ([], [str(answer["pid"])])
        shut_down(answer)


def line(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def test_it_ends_when_its_daemon_is_killed() -> None:
    """Its control is a pipe of the daemon's: however that ends, the pipe does."""
    with short_folder() as folder:
        read, write = os.pipe()
        path = folder / "zygote.sock"
        argv = [sys.executable, "-m", "kontti.shim.zygote", str(path), str(read)]
        with subprocess.Popen(argv, pass_fds=[read]) as process:
            os.close(read)
            taskshim._listening(path, process)
            process.send_signal(signal.SIGINT)  # of the daemon's terminal: not its business
            os.close(write)
            assert process.wait(SECONDS) == 0
        assert not path.exists()
