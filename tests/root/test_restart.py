"""The restart monitor of a real daemon."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.host import IMAGE, Host, host

pytestmark = pytest.mark.root
CONFIG = """version = 2
[plugins."io.containerd.internal.v1.restart"]
  interval = "1s"
"""
PREFIX = "containerd.io/restart."


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    with host(start=False, image=False) as made:
        made.write_config(CONFIG)
        made.start()
        made.import_image()
        yield made


def run(here: Host, id: str, *command: str, **labels: str) -> None:
    flags = [
        word
        for key, value in labels.items()
        for word in ("--label", f"{PREFIX}{key.replace('_', '-')}={value}")
    ]
    here.out("run", "-d", "--null-io", *flags, IMAGE, id, *command)


def until(true: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def count(here: Host, id: str) -> int:
    for line in here.out("containers", "info", id).splitlines():
        if f"{PREFIX}count" in line:
            return int(line.split(":")[1].strip(' ",'))
    return 0


def remove(here: Host, id: str) -> None:
    here.out("containers", "label", id, f"{PREFIX}status=")
    here.ctr("tasks", "kill", "-s", "KILL", id)
    here.ctr("tasks", "rm", "-f", id)
    until(lambda: here.ctr("containers", "rm", id).returncode == 0)


def test_a_killed_container_comes_back(here: Host) -> None:
    run(here, "always", "sleep", "1000", status="running")
    pid, _ = here.tasks()["always"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: here.tasks().get("always", (pid, ""))[0] not in (pid, 0))
    assert here.tasks()["always"][1] == "RUNNING"
    assert count(here, "always") == 1
    remove(here, "always")


def test_on_failure_counts_and_gives_up(here: Host) -> None:
    run(here, "failing", "sh", "-c", "exit 3", status="running", policy="on-failure:2")
    until(lambda: count(here, "failing") == 2)
    until(lambda: here.tasks().get("failing", (0, ""))[1] == "STOPPED")
    time.sleep(1.2)  # an interval in which nothing may happen
    assert count(here, "failing") == 2
    remove(here, "failing")


def test_a_good_end_is_no_failure(here: Host) -> None:
    run(here, "good", "true", status="running", policy="on-failure")
    until(lambda: here.tasks()["good"][1] == "STOPPED")
    time.sleep(1.2)
    assert count(here, "good") == 0
    remove(here, "good")


def test_wanted_stopped_is_stopped(here: Host) -> None:
    run(here, "down", "sleep", "1000", status="running")
    here.out("containers", "label", "down", f"{PREFIX}status=stopped")
    until(lambda: "down" not in here.tasks())
    remove(here, "down")


def test_what_died_with_no_daemon_comes_back_with_it(here: Host) -> None:
    run(here, "later", "sleep", "1000", status="running", policy="unless-stopped")
    pid, _ = here.tasks()["later"]
    here.kill()
    os.kill(pid, signal.SIGKILL)
    here.start()
    until(lambda: here.tasks().get("later", (pid, ""))[0] not in (pid, 0))
    remove(here, "later")
