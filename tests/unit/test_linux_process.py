"""Commands: how they end, what they get, and that they and their descriptors are gone after."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.linux import process

SHELL = "/bin/sh"


def shell(script: str, *, input: bytes = b"", timeout: float = 20) -> process.Completed:
    return process.run([SHELL, "-c", script], timeout=timeout, input=input)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def children() -> str:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read()


@contextmanager
def descriptor_limit(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_both_streams_and_the_input_can_be_larger_than_pipes() -> None:
    data = os.urandom(1 << 19)
    done = shell("tee /dev/stderr", input=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, data)


def test_a_command_need_not_read_its_input() -> None:
    done = shell("exec <&-; echo done", input=b"x" * (1 << 20))
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_output_of_each_stream_past_the_limit_is_dropped() -> None:
    done = process.run(
        [SHELL, "-c", "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; echo end"],
        timeout=20,
        limit=4096,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, bytes(4096), bytes(4096))


@pytest.mark.parametrize(
    "script",
    [
        "exec sleep 60",
        "trap '' TERM INT; while :; do sleep 60; done",
        "exec >&- 2>&-; exec sleep 60",
        "while :; do echo more; done",
    ],
)
def test_past_its_time_a_command_is_killed_and_reaped(script: str) -> None:
    before, others = descriptors(), children()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        shell(script, timeout=0.2)
    assert time.monotonic() - began < 20
    assert children() == others
    assert descriptors() == before


def test_an_ended_command_whose_child_keeps_its_output_is_not_waited_for_longer(
    tmp_path: Path,
) -> None:
    others = children()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        shell(f"sleep 60 & echo $! > {tmp_path}/pid", timeout=0.5)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert time.monotonic() - began < 20
    assert children() == others


def test_the_environment_is_the_one_given() -> None:
    done = process.run(["/usr/bin/env"], timeout=20, env={"ONLY": "this"})
    assert done.stdout == b"ONLY=this\n"


def test_files_are_passed_under_their_numbers_and_no_others() -> None:
    inherited = {fd for fd in descriptors() if os.path.exists(f"/proc/self/fd/{fd}")}
    inherited = {fd for fd in inherited if os.get_inheritable(int(fd))}
    read, write = os.pipe()
    out_read, out_write = os.pipe()
    os.write(write, b"passed")
    os.close(write)
    try:
        pid = process.spawn(
            [SHELL, "-c", "cat <&7; echo; ls /proc/self/fd"], stdout=out_write, files=[(read, 7)]
        )
        os.close(out_write)
        with open(out_read) as file:
            passed, *numbers = file.read().split()
        assert process.wait(pid, 20) == 0
    finally:
        os.close(read)
    # 3 is the directory that ls has open
    assert passed == "passed"
    assert set(numbers) - inherited == {"0", "1", "2", "3", "7"} - inherited


def test_signals_are_as_at_the_start_of_a_process() -> None:
    # Python ignores SIGPIPE: a command that inherits that never ends when nobody reads
    old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        status = shell("cat /proc/self/status").stdout.decode()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    found = dict(line.split(":\t", 1) for line in status.splitlines())
    assert int(found["SigBlk"], 16) == 0
    assert not int(found["SigIgn"], 16) & 1 << signal.SIGPIPE - 1


def test_setsid_makes_a_session() -> None:
    read, write = os.pipe()
    pid = process.spawn([SHELL, "-c", "cut -d' ' -f6 /proc/$$/stat"], stdout=write, setsid=True)
    os.close(write)
    with open(read) as file:
        assert int(file.read()) == pid
    assert process.wait(pid, 20) == 0


def test_wait_gives_the_signal_that_ended_it() -> None:
    pid = process.spawn(["/bin/sleep", "60"])
    with pytest.raises(TimeoutError):
        process.wait(pid, 0)
    os.kill(pid, signal.SIGTERM)
    assert process.wait(pid, 20) == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        process.wait(pid, 20)


def test_more_than_a_thousand_descriptors_are_no_hindrance() -> None:
    with descriptor_limit(2048):
        held = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(1100)]
        try:
            assert process.run(["/bin/true"], timeout=20).returncode == 0
        finally:
            for fd in held:
                os.close(fd)


@pytest.mark.parametrize("left", [1, 3, 5])
def test_none_is_lost_when_there_are_no_more_descriptors(left: int) -> None:
    before = descriptors()
    held: list[int] = []
    try:
        with descriptor_limit(max(map(int, before)) + 20):
            with suppress(OSError):
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            for _ in range(left):
                os.close(held.pop())
            with pytest.raises(OSError, match="Too many"):
                process.run(["/bin/true"], timeout=20)
    finally:
        for fd in held:
            os.close(fd)
    assert descriptors() == before


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15), ("TERM", 15), ("term", 15), ("15", 15), ("SIGRTMIN", signal.SIGRTMIN),
        ("rtmin+3", signal.SIGRTMIN + 3), ("SIGRTMAX-2", signal.SIGRTMAX - 2), ("64", 64),
    ],
)  # fmt: skip
def test_signals_by_name_and_number(text: str, number: int) -> None:
    assert process.signal_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-9",
        "65",
        "SIG",
        "SIGNOSUCH",
        "RTMIN+99",
        "RTMAX+1",
        "RTMIN-1",
        "RTMINx",
        "²",
        "9 ",
    ],
)
def test_unknown_signals(text: str) -> None:
    with pytest.raises(ValueError, match="unknown signal"):
        process.signal_number(text)


@given(st.text(max_size=12))
def test_any_text_is_a_signal_or_refused(text: str) -> None:
    try:
        number = process.signal_number(text)
    except ValueError as error:
        message = str(error)
    else:
        assert 0 < number < signal.NSIG
        return
    assert "unknown signal" in message
