"""What is known of a running task without asking its shim, and when that is no more."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from kontti.tasks.base import Process, Status
from kontti.tasks.brief import Brief


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def running(pid: int, status: Status = Status.RUNNING) -> Process:
    return Process("one", "", pid, status)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_running_process_is_known_until_it_ends(child: subprocess.Popen[bytes]) -> None:
    brief, before = Brief(), open_descriptors()
    assert brief.known() is None
    brief.note(brief.turn, running(child.pid), os.getpid())
    for _ in range(3):
        assert brief.known() == running(child.pid)
    child.kill()
    child.wait()
    assert brief.known() is None
    assert brief.known() is None
    assert open_descriptors() == before


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.RUNNING])
def test_another_state_is_asked_for_each_time(
    child: subprocess.Popen[bytes], status: Status
) -> None:
    brief = Brief()
    brief.note(brief.turn, running(child.pid, status), os.getpid())
    assert brief.known() is None


def test_a_process_that_is_not_its_shims_is_not_it(child: subprocess.Popen[bytes]) -> None:
    brief, before = Brief(), open_descriptors()
    for shim in (0, 1, child.pid):
        brief.note(brief.turn, running(child.pid), shim)
        assert brief.known() is None
    brief.note(brief.turn, running(2**22 + 1), os.getpid())
    assert brief.known() is None
    assert open_descriptors() == before


def test_nothing_is_known_while_it_is_changed_and_of_before(child: subprocess.Popen[bytes]) -> None:
    brief = Brief()
    brief.note(brief.turn, running(child.pid), os.getpid())
    asked_before = brief.turn
    with brief.changing():
        assert brief.known() is None
        brief.note(brief.turn, running(child.pid), os.getpid())
        assert brief.known() is None
        asked_meanwhile = brief.turn
    # an answer to a question from before is no news
    for turn in (asked_before, asked_meanwhile):
        brief.note(turn, running(child.pid), os.getpid())
        assert brief.known() is None
    brief.note(brief.turn, running(child.pid), os.getpid())
    assert brief.known() == running(child.pid)
    brief.drop()
    assert brief.known() is None
