"""The debug socket of a daemon, and ctr's commands that read it: ours and containerd's alike."""

from __future__ import annotations

import gzip
import json
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.wire.pprof import Profile
from tests.support import daemons
from tests.support.daemons import Daemon
from tests.support.shims import short_folder

pytestmark = pytest.mark.root


def config(folder: Path) -> str:
    return f'[debug]\naddress = "{folder}/d.sock"\nuid = 0\ngid = 0\n'


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with short_folder() as folder, daemons.running("kontti", folder, config(folder)) as found:
        yield found


def pprof(daemon: Daemon, client: str, *args: str) -> subprocess.CompletedProcess[bytes]:
    path = Path(daemon.address).with_name("d.sock")
    return daemon.ctr(client, "pprof", "--debug-socket", str(path), *args, timeout=60)


def get(daemon: Daemon, target: str) -> tuple[int, bytes]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(Path(daemon.address).with_name("d.sock")))
        client.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
        data = b""
        while part := client.recv(65536):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def read(data: bytes) -> tuple[Profile, list[list[str]]]:
    """A profile, and the names in each stack, the innermost first."""
    found = Profile.decode(gzip.decompress(data))
    names = {f.id: found.string_table[f.name] for f in found.function}
    places = {place.id: names[place.line[0].function_id] for place in found.location}
    return found, [[places[id] for id in sample.location_id] for sample in found.sample]


def test_only_its_owner_reaches_it(daemon: Daemon) -> None:
    mode = os.stat(Path(daemon.address).with_name("d.sock")).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


@pytest.mark.parametrize("client", ["ours", "debian"])
def test_stacks_of_threads_and_tasks(daemon: Daemon, client: str) -> None:
    done = pprof(daemon, client, "goroutines")
    assert done.returncode == 0, done
    text = done.stdout.decode()
    assert f"thread {daemon.pid} [MainThread]:\n" in text
    assert "BaseEventLoop.run_forever\n\t" in text or "run_forever\n\t" in text
    # who waits for the end of the daemon does so in a task
    task = text.partition("task [")[2]
    assert "serve\n\t" in task
    assert "kontti/server/daemon.py:" in task


def test_threads_as_a_profile(daemon: Daemon) -> None:
    found, stacks = read(pprof(daemon, "ours", "goroutines", "--debug", "0").stdout)
    assert [found.string_table[t.type] for t in found.sample_type] == ["threads"]
    assert any("BaseEventLoop.run_forever" in stack for stack in stacks)
    assert sum(sample.value[0] for sample in found.sample) >= len(stacks) > 1


@pytest.mark.parametrize("client", ["ours", "debian"])
def test_where_the_time_goes(daemon: Daemon, client: str) -> None:
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            assert daemon.ctr("ours", "images", "ls").returncode == 0

    thread = threading.Thread(target=work)
    thread.start()
    try:
        began = time.monotonic()
        done = pprof(daemon, client, "profile", "--seconds", "2s")
        took = time.monotonic() - began
    finally:
        ended.set()
        thread.join()
    assert done.returncode == 0, done
    found, stacks = read(done.stdout)
    assert [found.string_table[t.unit] for t in found.sample_type] == ["count", "nanoseconds"]
    assert 1.9e9 < found.duration_nanos < took * 1e9
    # it is the processor's time: no more than all threads can have had
    assert 0 < sum(sample.value[1] for sample in found.sample) < took * 1e9 * (os.cpu_count() or 1)
    assert any("BaseEventLoop.run_forever" in stack for stack in stacks), stacks


def test_one_profile_at_a_time(daemon: Daemon) -> None:
    first: list[int] = []
    target = "/debug/pprof/profile?seconds=5"
    thread = threading.Thread(target=lambda: first.append(get(daemon, target)[0]))
    thread.start()
    deadline = time.monotonic() + 20
    while b"cpu_profile" not in get(daemon, "/debug/pprof/goroutine?debug=2")[1]:
        assert time.monotonic() < deadline
    assert get(daemon, "/debug/pprof/profile?seconds=0.01")[0] == 500
    thread.join()
    assert first == [200]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/debug/pprof/", 200),
        ("/debug/pprof/heap", 501),
        ("/debug/pprof/other", 404),
        ("/", 404),
        ("/debug/pprof/profile?seconds=x", 400),
        ("/debug/pprof/profile?seconds=-1", 400),
        ("/debug/pprof/profile?seconds=1e9", 400),
        ("/debug/pprof/profile?seconds=nan", 400),
    ],
)
def test_what_is_there_and_what_is_not(daemon: Daemon, target: str, status: int) -> None:
    assert get(daemon, target)[0] == status


def test_what_python_does_not_have_is_said(daemon: Daemon) -> None:
    done = pprof(daemon, "ours", "trace", "-s", "1s")
    assert done.returncode == 1
    assert b"501 Not Implemented: this daemon is in Python" in done.stderr
    assert done.stdout == b""


def test_variables(daemon: Daemon) -> None:
    status, body = get(daemon, "/debug/vars")
    found = json.loads(body)
    assert status == 200
    assert any("containerd" in word for word in found["cmdline"])
    assert found["memory"]["VmRSS"] > 1 << 20


def test_containerds_own_socket(tmp_path: Path) -> None:
    with short_folder() as folder, daemons.running("containerd", folder, config(folder)) as peer:
        text = pprof(peer, "ours", "goroutines").stdout
        assert text.startswith(b"goroutine ")
        found = Profile.decode(gzip.decompress(pprof(peer, "ours", "heap").stdout))
        assert "inuse_space" in found.string_table
        assert pprof(peer, "ours", "profile", "-s", "1s").stdout[:2] == b"\x1f\x8b"


def test_the_socket_goes_with_the_daemon() -> None:
    with short_folder() as folder:
        with daemons.running("kontti", folder, config(folder)) as it:
            path = Path(it.address).with_name("d.sock")
            # a profile under way holds up no end
            thread = threading.Thread(target=lambda: get(it, "/debug/pprof/profile?seconds=100"))
            thread.start()
            time.sleep(0.5)
            assert path.exists()
            began = time.monotonic()
        assert time.monotonic() - began < 15
        thread.join(10)
        assert not thread.is_alive()
        assert not path.exists()


def test_no_socket_is_there_to_ask(tmp_path: Path) -> None:
    argv = [daemons.client_path("ours"), "pprof", "-d", str(tmp_path / "none"), "heap"]
    done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"ctr: {tmp_path}/none".encode() in done.stderr
