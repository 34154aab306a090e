"""``logs`` as users of ctr and kontti type it: every runtime, across restarts and kills."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kontti.engine.logs import LogKeeper
from kontti.events.exchange import LocalExchange
from kontti.linux import process
from kontti.logs.reader import Query, read
from kontti.metadata.base import Container
from kontti.shim.log_writer import LogWriter
from kontti.wire.log_uri import Limits
from tests.root.test_kontti_cli import IMAGE, Cli
from tests.root.test_kontti_cli import kontti as kontti
from tests.support import daemons, images
from tests.support.host import Host, host
from tests.support.shims import short_folder

pytestmark = pytest.mark.root
OURS, DEBIANS = "io.containerd.runc.v2", "/usr/bin/containerd-shim-runc-v2"
SECONDS = 20.0
BOTH = r"printf 'out\0\n'; printf 'err\377\n' >&2; printf end; exit 3"
PAUSE = "touch /tmp/here; until test -e /tmp/go; do sleep 0.02; done"


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    with host() as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(here: Host) -> Iterator[None]:
    """Logs go with their containers."""
    if here.process is not None and here.process.poll() is not None:
        here.start()
    yield
    for id in here.out("containers", "ls", "-q").split():
        here.ctr("tasks", "rm", "-f", id)
        here.out("containers", "rm", id)
    assert list((here.base / "root" / "logs").glob("*/*")) == []


def make(here: Host, id: str, script: str, runtime: str = OURS, *flags: str) -> None:
    here.out("containers", "create", "--runtime", runtime, *flags, IMAGE, id, "sh", "-c", script)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(here: Host, id: str) -> None:
    until(lambda: here.tasks().get(id, (0, "none"))[1] == "STOPPED")


@pytest.mark.parametrize("runtime", [OURS, DEBIANS])
def test_the_guides_walk(here: Host, runtime: str) -> None:
    make(here, "box", f"echo hello; {PAUSE}; echo bye >&2; exit 3", runtime)
    assert here.out("containers", "start", "box") == ""
    until(lambda: here.out("containers", "logs", "box") == "hello\n")
    rows = here.out("containers", "list", "--status").splitlines()
    assert rows[0].split() == ["CONTAINER", "IMAGE", "RUNTIME", "STATUS"]
    assert rows[1].split() == ["box", IMAGE, runtime, "RUNNING"]
    assert here.out("containers", "list").splitlines()[1].split() == ["box", IMAGE, runtime]
    assert '"ID": "box"' in here.out("containers", "info", "box")
    seen = here.out("containers", "exec", "--exec-id", "my-exec-id", "box", "ps", "aux")
    assert "sh -c echo hello" in seen
    again = here.ctr("containers", "start", "box")
    assert b"container box is running already" in again.stderr
    here.out("containers", "exec", "box", "touch", "/tmp/go")
    ended(here, "box")
    done = here.ctr("containers", "logs", "box")
    assert (done.stdout, done.stderr) == (b"hello\n", b"bye\n")
    # a second life writes on
    here.out("containers", "start", "box")
    ended(here, "box")
    assert here.out("containers", "logs", "box") == "hello\nhello\n"
    assert here.out("containers", "logs", "--tail", "1", "box") == ""
    assert here.ctr("containers", "logs", "--tail", "1", "box").stderr == b"bye\n"
    here.ctr("tasks", "delete", "box")
    # by the label now
    assert here.out("containers", "logs", "box") == "hello\nhello\n"
    assert here.out("containers", "list", "-s").splitlines()[1].split()[-1] == "-"


@pytest.mark.parametrize("runtime", [OURS, DEBIANS])
def test_every_byte_whatever_the_shim(here: Host, runtime: str) -> None:
    make(here, "bytes", f"{BOTH}", runtime)
    here.out("containers", "start", "bytes")
    done = here.ctr("containers", "logs", "-f", "bytes")
    assert (done.stdout, done.stderr) == (b"out\0\nend", b"err\xff\n")


@pytest.mark.parametrize("runtime", [OURS, DEBIANS])
def test_follow_across_rotations(here: Host, runtime: str) -> None:
    script = "busybox awk 'BEGIN { for (i = 1; i <= 30000; i++) print i }'"
    make(here, "much", script, runtime)
    here.out(
        "containers", "start", "--log-opt", "max-size=64k", "--log-opt", "max-file=500", "much"
    )
    for flags in (("-f",), ()):
        # no "assert a == b": it would draw the difference of 30,000 lines
        found = here.ctr("containers", "logs", *flags, "much").stdout.split()
        assert len(found) == 30000
        assert all(int(word) == n + 1 for n, word in enumerate(found))
    assert here.out("containers", "logs", "-n", "3", "much") == "29998\n29999\n30000\n"
    assert len(list((here.base / "root" / "logs" / here.namespace / "much").iterdir())) > 5


@pytest.mark.parametrize("runtime", [OURS, DEBIANS])
def test_a_daemon_killed_amid_writing_costs_no_line(here: Host, runtime: str) -> None:
    script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.005; done"
    make(here, "steady", script, runtime)
    here.out(
        "containers", "start", "--log-opt", "max-size=4k", "--log-opt", "max-file=99", "steady"
    )
    argv = here.argv("containers", "logs", "-f", "steady")
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"line 1\n"
        for _ in range(3):
            here.kill()
            here.start()
        wanted = [f"line {n}" for n in range(1, 301)]
        # it reads without the daemon
        assert follower.stdout.read().decode().splitlines() == wanted[1:]
    ended(here, "steady")
    assert here.out("containers", "logs", "steady").splitlines() == wanted


def test_times(here: Host) -> None:
    make(here, "clock", "echo one; sleep 1; echo two")
    here.out("containers", "start", "clock")
    ended(here, "clock")
    lines = here.out("containers", "logs", "--timestamps", "clock").splitlines()
    stamps = [line.split(" ")[0] for line in lines]
    assert [line.split(" ")[1] for line in lines] == ["one", "two"]
    assert here.out("containers", "logs", "--since", stamps[1], "clock") == "two\n"
    assert here.out("containers", "logs", "--until", stamps[0], "clock") == "one\n"
    assert here.out("containers", "logs", "--since", "10m", "clock") == "one\ntwo\n"
    assert here.out("containers", "logs", "--until", "10m", "clock") == ""
    assert here.ctr("containers", "logs", "--since", "noon", "clock").returncode == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--null-io",), b"output of container other was not kept"),
        (("--log-uri", "file:///dev/null"), b"output of container other went to file:///dev/null"),
    ],
)
def test_output_that_went_elsewhere(here: Host, flags: tuple[str, ...], message: bytes) -> None:
    here.out("run", "-d", *flags, IMAGE, "other", "sleep", "100")
    done = here.ctr("containers", "logs", "other")
    assert done.returncode == 1
    assert message in done.stderr
    assert b"no output" not in here.ctr("containers", "logs", "nosuch").stderr


@pytest.mark.parametrize("option", ["max-size=1", "max-file=0", "colour=red", "max-size"])
def test_options_that_are_wrong(here: Host, option: str) -> None:
    make(here, "wrong", "true")
    done = here.ctr("containers", "start", "--log-opt", option, "wrong")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert "wrong" not in here.tasks()


@pytest.mark.parametrize("runtime", [OURS, DEBIANS])
def test_an_execs_output_has_a_log_of_its_own(here: Host, runtime: str) -> None:
    here.out("run", "-d", "--null-io", "--runtime", runtime, IMAGE, "box", "sleep", "100")
    folder = here.base / "elsewhere" / f"exec{len(runtime)}"
    flags = ("-d", "--exec-id", "e", "--log-uri", f"kontti-log://{folder}?max-size=4k")
    here.out("tasks", "exec", *flags, "box", "seq", "1", "3")

    def found() -> list[bytes]:
        return [record.data for record in read(str(folder), Query())]

    until(lambda: found() == [b"1\n", b"2\n", b"3\n"])


@pytest.mark.parametrize("runtime", [OURS, DEBIANS])
def test_the_uri_is_for_every_client(here: Host, runtime: str) -> None:
    folder = here.base / "elsewhere" / f"x y{len(runtime)}"
    uri = f"kontti-log://{str(folder).replace(' ', '%20')}?max-size=1m"
    flags = ("--runtime", runtime, "--log-uri", uri)
    here.out("run", "-d", *flags, IMAGE, "direct", "echo", "hi")
    ended(here, "direct")
    assert here.out("containers", "logs", "-f", "direct") == "hi\n"
    assert (folder / "00000001.log").read_text().endswith("Z stdout F hi\n")
    bad = here.ctr(
        "run", "-d", "--runtime", runtime, "--log-uri", "kontti-log:x", IMAGE, "bad", "true"
    )
    assert b"is not an absolute path" in bad.stderr


def test_a_log_that_a_crash_left_is_swept(here: Host) -> None:
    make(here, "stays", "echo stays")
    here.out("containers", "start", "stays")
    ended(here, "stays")
    orphan = here.base / "root" / "logs" / here.namespace / "orphan"
    orphan.mkdir()
    (orphan / "00000001.log").write_text("2016-10-06T00:17:09.669794202Z stdout F x\n")
    here.stop()
    here.start()
    assert not orphan.exists()
    assert here.out("containers", "logs", "stays") == "stays\n"


def test_a_lost_database_takes_no_log_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "default" / "box"
    LogWriter(str(folder), Limits()).close()
    known: list[str] = []

    class Records:
        def list(self) -> list[Container]:
            return [Container(id=id) for id in known]

    keeper = LogKeeper(str(tmp_path), lambda _scope: Records(), LocalExchange())
    keeper.sweep()
    assert folder.exists()
    known.append("other")
    writer = LogWriter(str(folder), Limits())
    keeper.sweep()
    assert folder.exists()
    writer.close()
    keeper.sweep()
    assert not folder.exists()
    keeper.close()


def test_a_person_is_told_where_things_are(here: Host) -> None:
    make(here, "mine", "true")
    here.out("containers", "start", "mine")
    for kind in ("images", "containers"):
        argv = [*here.argv()[:3], "--namespace", "elsewhere", kind, "ls"]
        shown = on_terminal(argv)
        assert f'no {kind} in namespace "elsewhere", but' in shown
        assert f"{here.namespace} has 1" in shown
        # a program is not
        assert b"but" not in subprocess.run(argv, capture_output=True, check=True).stderr


def on_terminal(argv: list[str]) -> str:
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(argv[0], argv)
    shown = b""
    try:
        while data := os.read(fd, 4096):
            shown += data
    except OSError:
        pass  # EIO: its end
    finally:
        os.close(fd)
        os.waitpid(pid, 0)
    return shown.decode()


def test_kontti_logs(kontti: Cli, here: Host) -> None:
    script = "echo one; echo two >&2; echo three; exit 3"
    for flags in (("-d",), ("-d", "--runtime", DEBIANS), ()):
        kontti("run", *flags, "--name", "k", IMAGE, "sh", "-c", script, code=0 if flags else 3)
        kontti("wait", "k")
        done = kontti("logs", "-f", "k")
        assert (done.stdout, done.stderr) == ("one\nthree\n", "two\n")
        done = kontti("logs", "--tail", "2", "-t", "k")
        stamps = [line.split(" ")[0] for line in (done.stdout + done.stderr).splitlines()]
        assert len(stamps) == 2
        assert all(len(stamp) == 30 for stamp in stamps)
        assert kontti("logs", "--since", "1h", "k").stdout == "one\nthree\n"
        kontti("rm", "k")
        assert not (kontti.folder / "root" / "logs" / "default" / "k").exists()


def test_kontti_log_options(kontti: Cli, here: Host) -> None:
    flags = ("--log-opt", "max-size=4k", "--log-opt", "max-file=2", "--log-opt", "compress=false")
    kontti("run", "-d", "--name", "k", *flags, IMAGE, "seq", "1", "2000")
    kontti("wait", "k")
    found = kontti("logs", "k").stdout
    assert found.endswith("1999\n2000\n")
    (folder,) = (kontti.folder / "root" / "logs").glob("*/k")
    files = list(folder.iterdir())
    assert len(files) == 2
    assert all(path.stat().st_size <= 4096 for path in files)
    kontti("rm", "k")
    kontti("run", "-d", "--name", "k", "--log-driver", "none", IMAGE, "echo", "x")
    kontti("wait", "k")
    assert "log driver none: its output is not kept" in kontti("logs", "k", code=1).stderr
    kontti("rm", "k")
    bad = kontti("run", "-d", "--log-opt", "max-size=x", IMAGE, "true", code=1)
    assert "max-size 'x' is not a size such as 10m" in bad.stderr


def test_follow_ends_when_its_writer_is_killed(kontti: Cli, here: Host) -> None:
    kontti("run", "-d", "--name", "k", IMAGE, "sh", "-c", "echo up; sleep 100")
    argv = [*kontti.argv, "logs", "-f", "k"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"up\n"
        kontti("kill", "k")
        assert follower.stdout.read() == b""
        assert follower.wait(SECONDS) == 0
    kontti("rm", "k")


def test_the_logger_says_what_is_wrong(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("kontti-logger"))
    for words, message in (
        (["folder"], "pairs of a name and a value"),
        (["folder", "relative"], "not an absolute path"),
        (["folder", str(tmp_path / "x"), "max-file", "0"], "between 1 and 1000"),
    ):
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr


def test_the_logger_ends_on_sigterm_with_its_streams_held(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("kontti-logger"))
    (out_r, out_w), (err_r, err_w), (ready_r, ready_w) = os.pipe(), os.pipe(), os.pipe()
    files = [(os.dup(fd), there) for fd, there in ((out_r, 3), (err_r, 4), (ready_w, 5))]
    pid = process.spawn([program, "folder", f"{tmp_path}/log"], files=files)
    for fd in (ready_w, *(fd for fd, _ in files)):
        os.close(fd)
    assert os.read(ready_r, 1) == b""
    os.write(out_w, b"words\n")
    os.kill(pid, signal.SIGTERM)
    assert process.wait(pid, SECONDS) == 0
    for fd in (out_r, out_w, err_r, err_w, ready_r):
        os.close(fd)
    assert b" words\n" in (tmp_path / "log" / "00000001.log").read_bytes()


def test_another_containerd_keeps_output_by_our_logger(here: Host, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(images.archive(images.build(), IMAGE))
    with short_folder() as base, daemons.running("containerd", base) as daemon:

        def ctr(*words: str) -> bytes:
            argv = [
                daemons.client_path("ours"),
                "--address",
                daemon.address,
                "-n",
                "t-logs",
                *words,
            ]
            return subprocess.run(argv, capture_output=True, check=True, timeout=SECONDS).stdout

        ctr("images", "import", str(archive))
        ctr("containers", "create", IMAGE, "box", "sh", "-c", "seq 1 3; exit 4")
        ctr("containers", "start", "box")
        assert ctr("containers", "logs", "-f", "box") == b"1\n2\n3\n"
        folder = base / "root" / "logs" / "t-logs" / "box"
        assert [path.name for path in folder.iterdir()] == ["00000001.log"]
        ctr("tasks", "delete", "box")
        assert ctr("containers", "logs", "--tail", "1", "box") == b"3\n"
        ctr("containers", "delete", "box")
        assert not folder.exists()
