"""What the labels of a container want done."""

from __future__ import annotations

import pytest

from kontti.tasks.base import Process, Status
from kontti.tasks.restart import Action, _Backoff, log_uri, plan


def process(status: Status, code: int = 0) -> Process:
    return Process("c", "", 1, status, exit_status=code)


RUNNING, PAUSED, CREATED = (process(s) for s in (Status.RUNNING, Status.PAUSED, Status.CREATED))
GOOD, BAD = process(Status.STOPPED), process(Status.STOPPED, 3)


def labels(**values: str) -> dict[str, str]:
    return {f"containerd.io/restart.{k.replace('_', '-')}": v for k, v in values.items()}


@pytest.mark.parametrize(
    ("wanted", "task", "action"),
    [
        ({}, BAD, Action.NOTHING),
        (labels(status="running"), RUNNING, Action.NOTHING),
        (labels(status="running"), PAUSED, Action.NOTHING),
        (labels(status="running"), CREATED, Action.NOTHING),
        (labels(status="running"), None, Action.START),
        (labels(status="running"), GOOD, Action.START),
        (labels(status="running", policy="always"), GOOD, Action.START),
        (labels(status="running", policy="no"), BAD, Action.NOTHING),
        (labels(status="running", policy="nonsense"), BAD, Action.NOTHING),
        (labels(status="running", policy="on-failure"), GOOD, Action.NOTHING),
        (labels(status="running", policy="on-failure"), BAD, Action.START),
        (labels(status="running", policy="on-failure:2", count="1"), BAD, Action.START),
        (labels(status="running", policy="on-failure:2", count="2"), BAD, Action.NOTHING),
        (labels(status="running", policy="unless-stopped"), GOOD, Action.START),
        (
            labels(status="running", policy="unless-stopped", explicitly_stopped="true"),
            GOOD,
            Action.NOTHING,
        ),
        (labels(status="stopped"), RUNNING, Action.STOP),
        (labels(status="stopped"), GOOD, Action.NOTHING),
        (labels(status="stopped"), None, Action.NOTHING),
    ],
)
def test_plan(wanted: dict[str, str], task: Process | None, action: Action) -> None:
    assert plan(wanted, task) is action


def test_backoff_doubles_to_the_longest_and_begins_anew() -> None:
    backoff = _Backoff()
    delays = []
    for _ in range(6):
        backoff.started(backoff.not_before, 1.0)
        delays.append(backoff.delay)
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.started(backoff.not_before + 60, 1.0)
    assert backoff.delay == 0.1


def test_log_uri() -> None:
    assert log_uri(labels(loguri="file:///a")) == "file:///a"
    assert log_uri(labels(logpath="/b")) == "file:///b"
    assert log_uri({}) == ""
    before = {"kontti.io/log-uri": "kontti-log:///c"}
    assert log_uri(before) == "kontti-log:///c"
    assert log_uri({**before, **labels(loguri="file:///a")}) == "file:///a"
    assert log_uri({"kontti.io/log-uri": "none"}) == ""
