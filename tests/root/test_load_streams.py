"""Much through streams: complete to the byte, in bounded memory; one that is stuck stops no other.

``KONTTI_STREAM_MIB`` is how much goes through each (128 where it is not set; the whole is 1024).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kontti.errors import Error
from tests.support import daemons, figures, images
from tests.support.api import Api, connected
from tests.support.figures import steady
from tests.support.leftovers import Place, place, unchanged

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
IMAGE = "docker.io/library/busybox:test"
MIB = 1 << 20
SIZE = int(os.environ.get("KONTTI_STREAM_MIB", "128")) * MIB
BLOCK = bytes(range(256)) * (MIB // 256)
PEAK_KIB = 24 << 10
"""How much more a process may hold at any time, a stream's size being many times that."""
PIPE = 1 << 20


@pytest.fixture(scope="module", params=(("kontti", "ours"), ("containerd", "debian")))
def at(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(*request.param) as made:
        archive = images.archive(images.build(), IMAGE)
        assert made.import_bytes(archive).returncode == 0
        yield made


@pytest.fixture(scope="module")
def link(at: Place) -> Iterator[Api]:
    with connected(at.daemon.address, at.namespace, at.base) as made:
        made.run("warm", "sleep", "1000")
        made.end("warm")
        yield made


@pytest.fixture
def api(at: Place, link: Api) -> Iterator[Api]:
    with unchanged(at), steady(at.daemon.pid, 64 << 10):
        yield link
        link.clear()


class Ends:
    """The FIFOs of one process, below ``folder``, and who is at their other ends."""

    def __init__(self, folder: Path, *names: str) -> None:
        folder.mkdir()
        self._folder = folder
        self.paths = {name: str(folder / name) for name in names}
        for path in self.paths.values():
            os.mkfifo(path)

    def reader(self, name: str) -> int:
        """Our end of an output, whoever is to write."""
        fd = os.open(self.paths[name], os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(fd, True)
        return fd

    def remove(self) -> None:
        """Take them away."""
        for path in self.paths.values():
            os.unlink(path)
        self._folder.rmdir()


@pytest.fixture
def ends(at: Place) -> Iterator[Callable[..., Ends]]:
    made: list[Ends] = []

    def make(*names: str) -> Ends:
        made.append(Ends(at.base / f"fifos{len(made)}", *names))
        return made[-1]

    yield make
    for each in made:
        each.remove()


def feed(path: str, size: int) -> str:
    """Write ``size`` bytes to a process's stdin; their sha256."""
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for begin in range(0, size, MIB):
            block = BLOCK[: min(MIB, size - begin)]
            digest.update(block)
            left = memoryview(block)
            while left:
                left = left[file.write(left) :]
    return digest.hexdigest()


def drain(fd: int) -> tuple[int, str]:
    """Everything until the last writer has gone: how much, and its sha256."""
    digest, size = hashlib.sha256(), 0
    while data := os.read(fd, 1 << 20):
        digest.update(data)
        size += len(data)
    os.close(fd)
    return size, digest.hexdigest()


class Feeding(threading.Thread):
    """Feeds a process's stdin in the background, then says that this is all."""

    def __init__(self, api: Api, id: str, path: str, size: int) -> None:
        super().__init__()
        self._work = (api, id, path, size)
        self.digest = ""
        self.start()

    def run(self) -> None:
        api, id, path, size = self._work
        self.digest = feed(path, size)
        api.close_stdin(id)


@contextlib.contextmanager
def bounded(at: Place, pid: int) -> Iterator[None]:
    """Neither the daemon nor the shim of a container's process ``pid`` holds much more."""
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    before = {each: figures.peak(each) for each in (at.daemon.pid, shim)}
    yield
    for each, peak in before.items():
        assert figures.peak(each) < peak + PEAK_KIB, each


def run(api: Api, id: str, ends: Ends, *args: str) -> int:
    """Record, create and start, with those streams; the pid."""
    api.record(id, api.spec(id, *args))
    api.create(id, **ends.paths)
    return api.start(id)


def test_much_input(at: Place, api: Api, ends: Callable[..., Ends]) -> None:
    streams = ends("stdin", "stdout", "stderr")
    out, errors = streams.reader("stdout"), streams.reader("stderr")
    pid = run(api, "one", streams, "sh", "-c", "busybox sha256sum; sleep 0.3")
    with bounded(at, pid):
        feeding = Feeding(api, "one", streams.paths["stdin"], SIZE)
        said = os.read(out, 200).split()[0].decode()
    feeding.join()
    assert said == feeding.digest
    assert api.wait("one").code == 0
    api.delete("one")
    api.forget("one")
    os.close(out)
    os.close(errors)


def test_much_goes_round(at: Place, api: Api, ends: Callable[..., Ends]) -> None:
    streams = ends("stdin", "stdout", "stderr")
    out, errors = streams.reader("stdout"), streams.reader("stderr")
    pid = run(api, "one", streams, "cat")
    with bounded(at, pid):
        feeding = Feeding(api, "one", streams.paths["stdin"], SIZE)
        found: list[tuple[int, str]] = []
        reading = threading.Thread(target=lambda: found.append(drain(out)))
        reading.start()
        feeding.join()
    assert api.wait("one").code == 0
    api.delete("one")
    reading.join(20)
    assert found == [(SIZE, feeding.digest)]
    api.forget("one")
    os.close(errors)


def test_much_output_as_fast_as_it_can(at: Place, api: Api, ends: Callable[..., Ends]) -> None:
    streams = ends("stdin", "stdout", "stderr")
    out, errors = streams.reader("stdout"), streams.reader("stderr")
    script = f"read go; head -c {SIZE} /dev/zero; echo written >&2; read go; exit 5"
    pid = run(api, "one", streams, "sh", "-c", script)
    with open(streams.paths["stdin"], "wb", buffering=0) as go:
        with bounded(at, pid):
            go.write(b"\n")
            found: list[tuple[int, str]] = []
            reading = threading.Thread(target=lambda: found.append(drain(out)))
            reading.start()
            # it is written, and the shim still there: the process waits for another line
            assert os.read(errors, 10) == b"written\n"
        go.write(b"\n")
        assert api.wait("one").code == 5
    api.delete("one")
    reading.join(20)
    zeros = hashlib.sha256()
    for _ in range(SIZE // MIB):
        zeros.update(bytes(MIB))
    assert found == [(SIZE, zeros.hexdigest())]
    os.close(errors)
    api.forget("one")


@pytest.mark.parametrize("ending", ["killed", "read after all", "reader goes away"])
def test_a_reader_that_stops_reading(
    at: Place, api: Api, ends: Callable[..., Ends], ending: str
) -> None:
    """The container waits, in no more memory than a pipe's; others go on; it can be ended."""
    streams = ends("stdout", "stderr")
    out, errors = streams.reader("stdout"), streams.reader("stderr")
    api.run("other", "sleep", "1000")
    pid = run(api, "one", streams, "head", "-c", str(SIZE), "/dev/zero")
    with bounded(at, pid):
        assert len(os.read(out, 10)) == 10
        blocked(pid)
        for number in range(5):
            assert api.run_exec("other", f"e{number}", "sh", "-c", "exit 3") == 3
            assert api.run_exec("one", f"e{number}", "true") == 0
        assert api.get("one").status == 2
    if ending == "killed":
        api.kill("one")
        assert api.wait("one").code == 137
        api.delete("one")
        left, _ = drain(out)
        assert left < SIZE
    elif ending == "read after all":
        size, _ = drain(out)
        assert size == SIZE - 10
        assert api.wait("one").code == 0
        api.delete("one")
    else:
        os.close(out)
        # nobody reads: it waits on, as with a client that is started again, until it is ended
        time.sleep(0.2)
        api.kill("one")
        assert api.wait("one").code == 137
        api.delete("one")
    os.close(errors)
    api.forget("one")
    api.end("other")


def blocked(pid: int) -> None:
    """Until a process has written all that a pipe takes, and waits."""
    deadline = time.monotonic() + 20
    before = -1
    while (now := written(pid)) != before or now == 0:
        assert time.monotonic() < deadline, now
        before = now
        time.sleep(0.2)
    assert before <= 4 * PIPE


def written(pid: int) -> int:
    """How much a process has written (proc(5), io)."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


def test_much_through_a_client_and_back(at: Place) -> None:
    """``… | ctr run … cat | …``: what comes out is what went in, and it ends by itself."""
    size = min(SIZE, 256 * MIB)
    words = ["--address", at.daemon.address, "--namespace", at.namespace]
    argv = [daemons.client_path(at.client), *words, "run", "--rm", IMAGE, "one", "cat"]
    with (
        unchanged(at),
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client,
    ):
        assert client.stdin is not None
        assert client.stdout is not None
        digest = hashlib.sha256()
        stdin = client.stdin

        def write() -> None:
            for _ in range(size // MIB):
                digest.update(BLOCK)
                stdin.write(BLOCK)
            stdin.close()

        writing = threading.Thread(target=write)
        writing.start()
        found = drain(os.dup(client.stdout.fileno()))
        writing.join()
        assert client.wait(20) == 0
    assert found == (size, digest.hexdigest())


def test_a_client_whose_output_is_stuck(at: Place) -> None:
    """Its container can be ended by another client, and then it ends."""
    words = ["--address", at.daemon.address, "--namespace", at.namespace]
    script = f"head -c {SIZE} /dev/zero"
    argv = [daemons.client_path(at.client), *words, "run", "--rm", IMAGE, "one", "sh", "-c", script]
    with unchanged(at), subprocess.Popen(argv, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert len(os.read(client.stdout.fileno(), 10)) == 10
        time.sleep(0.3)
        at.out("tasks", "kill", "--signal", "KILL", "one")
        drain(os.dup(client.stdout.fileno()))
        assert client.wait(20) == 137


def test_an_exec_whose_output_is_stuck(at: Place, api: Api, ends: Callable[..., Ends]) -> None:
    """The task of the container is killed and deleted all the same, the exec with it."""
    streams = ends("stdout", "stderr")
    out, errors = streams.reader("stdout"), streams.reader("stderr")
    api.run("one", "sleep", "1000")
    api.exec("one", "e", "head", "-c", str(SIZE), "/dev/zero", **streams.paths)
    blocked(api.start("one", "e"))
    api.kill("one")
    assert api.wait("one", "e").code == 137
    assert api.wait("one").code == 137
    with contextlib.suppress(Error):
        api.delete_exec("one", "e")
    api.delete("one")
    api.forget("one")
    os.close(out)
    os.close(errors)
