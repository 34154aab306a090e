"""What a container reads and writes through a shim: FIFOs, files, loggers, terminals."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.errors import Error, InvalidArgument
from kontti.wire.messages.google import Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from tests.support import taskshim
from tests.support.shimpeers import SECONDS, Fifo
from tests.support.shims import short_folder
from tests.support.taskshim import Pod, Zygote

pytestmark = pytest.mark.root
SLEEP = ("sleep", "1000")
MIB = 1 << 20


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with short_folder() as folder, taskshim.zygote(folder) as made:
        yield made


@pytest.fixture(params=["crun", "runc"])
def pod(zygote: Zygote, request: pytest.FixtureRequest) -> Iterator[Pod]:
    with zygote.pod(request.param) as made, taskshim.leftovers(made):
        yield made


def test_two_streams_to_the_byte(pod: Pod) -> None:
    out, err = pod.fifo("out"), pod.fifo("err")
    script = r"printf 'a\0b\n'; printf 'c\r\n' >&2"
    pod.run("one", "sh", "-c", script, stdout=out.path, stderr=err.path)
    assert out.all() == b"a\0b\n"
    assert err.all() == b"c\r\n"
    assert pod.wait("one") == 0
    pod.delete("one")


def test_both_streams_to_one_fifo_keep_their_order(pod: Pod) -> None:
    both = pod.fifo("both")
    script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done"
    pod.run("one", "sh", "-c", script, stdout=both.path, stderr=both.path)
    assert both.all() == b"out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n"
    pod.wait("one")
    pod.delete("one")


def test_what_was_written_before_an_exit_is_there_after_it(pod: Pod) -> None:
    out = pod.fifo("out")
    pod.run("one", "sh", "-c", "seq 1 5000", stdout=out.path)
    pod.wait("one")
    pod.delete("one")
    assert out.all() == b"".join(b"%d\n" % n for n in range(1, 5001))


def test_much_output_to_a_slow_reader_is_whole_and_costs_no_memory(pod: Pod) -> None:
    out = pod.fifo("out")
    before = peak(pod.pid)
    pod.run("one", "dd", "if=/dev/zero", "bs=1M", "count=64", stdout=out.path)
    assert count(out, pod) == 64 * MIB
    assert pod.wait("one") == 0
    pod.delete("one")
    assert peak(pod.pid) - before < 2 * MIB


def test_much_output_of_a_terminal_is_whole_and_costs_no_memory(pod: Pod) -> None:
    out = pod.fifo("out")
    before = peak(pod.pid)
    pod.run("one", "seq", "1", "300000", stdout=out.path, terminal=True)
    assert out.all() == b"".join(b"%d\n" % n for n in range(1, 300001))
    assert pod.wait("one") == 0
    pod.delete("one")
    assert peak(pod.pid) - before < 2 * MIB


def count(fifo: Fifo, pod: Pod) -> int:
    """How much comes out; the shim is asked for something now and then."""
    total = rounds = 0
    while found := fifo.read(MIB):
        fifo.data = b""
        total += len(found)
        rounds += 1
        if rounds % 100 == 0:
            pod.state("one")
    return total


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def test_a_reader_that_goes_away_ends_nothing(pod: Pod) -> None:
    out = pod.fifo("out")
    go = pod.folder / "go"
    script = "echo one; read x; echo two; exit 4"
    stdin = pod.fifo("in")
    pod.run("one", "sh", "-c", script, stdout=out.path, stdin=stdin.path)
    out.until(b"one\n")
    pod.streams.remove(out)
    out.close()
    pod.feed(stdin, b"go on\n")
    assert pod.wait("one") == 4
    assert not go.exists()
    pod.delete("one")


def test_files(pod: Pod) -> None:
    folder = pod.folder / "logs" / "deep"
    for id in ("one", "two"):
        out, err = f"file://{folder}/a%20b", f"file://{folder}/err"
        pod.run(id, "sh", "-c", f"echo {id}; echo bad >&2", stdout=out, stderr=err)
        assert pod.wait(id) == 0
        pod.delete(id)
    assert (folder / "a b").read_bytes() == b"one\ntwo\n"
    assert (folder / "err").read_bytes() == b"bad\nbad\n"
    assert (folder / "a b").stat().st_mode & 0o777 == 0o644


def test_a_logger_gets_both_streams_and_says_when_it_is_ready(pod: Pod) -> None:
    logger = pod.folder / "logger"
    log = pod.folder / "log"
    logger.write_text(
        "#!/bin/sh\n"
        f'echo "$CONTAINER_NAMESPACE $CONTAINER_ID $*" > {log}.who\n'
        "exec 5>&-\n"
        f"cat <&3 > {log}.out & cat <&4 > {log}.err; wait; echo > {log}.end\n"
    )
    logger.chmod(0o755)
    uri = f"binary://{logger}?tag=x&flag="
    pod.run("one", "sh", "-c", "echo out; echo err >&2", stdout=uri, stderr=uri)
    assert pod.wait("one") == 0
    pod.delete("one")
    until_there(Path(f"{log}.end"))
    assert Path(f"{log}.who").read_text() == f"{pod.namespace} one tag x flag\n"
    assert Path(f"{log}.out").read_text() == "out\n"
    assert Path(f"{log}.err").read_text() == "err\n"
    until_gone(pod, str(logger))


def until_there(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def until_gone(pod: Pod, name: str) -> None:
    deadline = time.monotonic() + SECONDS
    while any(name in line for line in pod.processes().values()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_logger_that_is_not_there(pod: Pod) -> None:
    with pytest.raises(Error, match="/no/logger"):
        pod.create("one", *SLEEP, stdout="binary:///no/logger")


def test_a_stream_of_an_unknown_kind(pod: Pod) -> None:
    with pytest.raises(InvalidArgument, match="unknown STDIO scheme"):
        pod.create("one", *SLEEP, stdout="gopher://somewhere/path")


def test_a_stdin_that_is_not_there(pod: Pod) -> None:
    with pytest.raises(Error, match=r"failed to open stdio: .*none"):
        pod.create("one", *SLEEP, stdin=pod.folder / "none")


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_terminals_stream_that_cannot_be_opened(pod: Pod, stream: str) -> None:
    (pod.folder / "file").touch()
    path = pod.folder / "file" / "none"
    stdin, stdout = (path, "") if stream == "stdin" else ("", path)
    with pytest.raises(Error):
        pod.create("one", *SLEEP, terminal=True, stdin=stdin, stdout=stdout)


def test_input_until_it_is_closed(pod: Pod) -> None:
    stdin, out = pod.fifo("in"), pod.fifo("out")
    pod.run("one", "cat", stdin=stdin.path, stdout=out.path)
    pod.feed(stdin, b"first\n")
    out.until(b"first\n")
    # a writer that hangs up is not the end of input
    pod.feed(stdin, b"second\n")
    out.until(b"second\n")
    pod.feed(stdin, b"third")
    pod.close_stdin("one")
    assert out.all() == b"first\nsecond\nthird"
    assert pod.wait("one") == 0
    pod.delete("one")


def test_much_input_goes_round(pod: Pod) -> None:
    stdin, out = pod.fifo("in"), pod.fifo("out")
    pod.run("one", "cat", stdin=stdin.path, stdout=out.path)
    data = os.urandom(MIB)
    writer = os.open(stdin.path, os.O_WRONLY | os.O_NONBLOCK)
    sent = 0
    while sent < len(data):
        sent += write_some(writer, data[sent : sent + 65536])
        while len(out.data) < sent:
            out.read()
    os.close(writer)
    pod.close_stdin("one")
    assert out.all() == data
    pod.wait("one")
    pod.delete("one")


def write_some(fd: int, data: bytes) -> int:
    """What a FIFO takes now."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


def test_no_input_is_the_end_at_once(pod: Pod) -> None:
    out = pod.fifo("out")
    pod.run("one", "sh", "-c", "cat; echo end", stdout=out.path)
    assert out.all() == b"end\n"
    pod.wait("one")
    pod.delete("one")


def test_a_terminal_its_size_and_control_c(pod: Pod) -> None:
    stdin, out = pod.fifo("in"), pod.fifo("out")
    script = "tty >/dev/null && echo a tty; read x; stty size; trap 'exit 6' INT; echo ok; read x"
    pod.run("one", "sh", "-c", script, terminal=True, stdin=stdin.path, stdout=out.path)
    out.until(b"a tty\n")
    pod.client.call("ResizePty", api.ResizePtyRequest(id="one", width=123, height=45), Empty)
    pod.feed(stdin, b"\n")
    out.until(b"45 123\n")
    out.until(b"ok\n")
    pod.feed(stdin, b"\x03")
    assert pod.wait("one") == 6
    pod.delete("one")
    assert b"\r\n" not in out.all()


def test_control_c_ends_what_does_not_care(pod: Pod) -> None:
    stdin, out = pod.fifo("in"), pod.fifo("out")
    pod.run(
        "one", "sh", "-c", "trap - INT; (echo ok; exec sleep 1000); exit $?",
        terminal=True, stdin=stdin.path, stdout=out.path,
    )  # fmt: skip
    out.until(b"ok\n")
    pod.feed(stdin, b"\x03")
    # init itself is spared by the kernel: it has no handler, and is pid 1
    assert pod.wait("one") == 128 + signal.SIGINT
    pod.delete("one")


def test_the_last_words_of_a_terminal_come_before_its_exit(pod: Pod) -> None:
    out = pod.fifo("out")
    pod.run("one", "sh", "-c", "seq 1 2000", terminal=True, stdout=out.path)
    assert pod.wait("one") == 0
    # all of it is in the FIFO by now: nobody has read, nobody has to write any more
    pod.delete("one")
    assert out.all().endswith(b"1999\n2000\n")


def test_a_terminal_whose_reader_sleeps(pod: Pod) -> None:
    out = pod.fifo("out")
    fcntl.fcntl(out.reader, fcntl.F_SETPIPE_SZ, 4096)
    pod.run("one", "seq", "1", "2500", terminal=True, stdout=out.path)
    # its end is told although nobody reads, and what is not copied yet is not lost
    assert pod.wait("one") == 0
    out.until(b"2500\n")
    pod.delete("one")
    assert out.all() == b"".join(b"%d\n" % n for n in range(1, 2501))


def test_a_size_for_what_is_no_terminal(pod: Pod) -> None:
    pod.run("one", *SLEEP)
    with pytest.raises(InvalidArgument):
        pod.client.call("ResizePty", api.ResizePtyRequest(id="one", width=80, height=24), Empty)
    pod.end("one")


def test_a_terminal_that_nobody_listens_to(pod: Pod) -> None:
    pod.run("one", "sh", "-c", "seq 1 100; exit 2", terminal=True)
    assert pod.wait("one") == 2
    pod.delete("one")
