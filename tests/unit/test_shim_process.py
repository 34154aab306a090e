"""A process's states, and who is told of its end."""

from __future__ import annotations

import signal
from typing import cast

import pytest

from kontti.errors import FailedPrecondition
from kontti.shim import process as states
from kontti.shim.process import Process
from kontti.shim.stdio import Stdio


def made(status: int = states.CREATED, exec_id: str = "") -> Process:
    process = Process(exec_id, cast(Stdio, None))
    process.status = status
    return process


ALLOWED = {
    (states.CREATED, "start", states.RUNNING),
    (states.CREATED, "exit", states.STOPPED),
    (states.CREATED, "delete", states.DELETED),
    (states.RUNNING, "exit", states.STOPPED),
    (states.RUNNING, "pause", states.PAUSED),
    (states.PAUSED, "resume", states.RUNNING),
    (states.PAUSED, "exit", states.STOPPED),
    (states.STOPPED, "delete", states.DELETED),
}


@pytest.mark.parametrize("operation", ["start", "exit", "pause", "resume", "delete"])
@pytest.mark.parametrize("status", range(5))
def test_every_operation_in_every_state(status: int, operation: str) -> None:
    process = made(status)
    after = [end for begin, what, end in ALLOWED if (begin, what) == (status, operation)]
    if after:
        process.go(operation)
        assert [process.status] == after
        return
    with pytest.raises(FailedPrecondition, match=f"cannot {operation} a container in the "):
        process.go(operation)
    assert process.status == status


@pytest.mark.parametrize(("code", "status"), [(0, 0), (3, 3), (255, 255), (-signal.SIGKILL, 137)])
def test_an_end_is_told_once_to_each(code: int, status: int) -> None:
    process = made(states.RUNNING)
    told: list[int] = []
    process.wait(lambda: told.append(1))
    process.wait(lambda: told.append(2))
    process.exited(code)
    assert (process.ended, process.exit_status, told) == (True, status, [])
    process.tell()
    assert told == [1, 2]
    process.wait(lambda: told.append(3))
    assert told == [1, 2, 3]


def test_who_waits_for_what_never_runs_is_told() -> None:
    process = made(exec_id="e")
    told: list[int] = []
    process.wait(lambda: told.append(process.exit_status))
    process.go("delete")
    process.abandon()
    assert told == [255]


def test_an_exec_is_named_as_one() -> None:
    with pytest.raises(FailedPrecondition, match="cannot delete an exec process in the running"):
        made(states.RUNNING, "e").go("delete")
