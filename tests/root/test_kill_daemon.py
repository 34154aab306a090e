"""The daemon is killed at random moments under load: no container stops, no exit is lost, no byte.

``KONTTI_KILLS`` says how often (8 where it is not set).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.host import IMAGE, Host, host

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("KONTTI_KILLS", "8"))
WRITERS = 3
LINES = 400
SECONDS = 60.0


@pytest.fixture
def here() -> Iterator[Host]:
    with host() as made:
        yield made


class Load:
    """Containers that are made, run and removed one after another, whatever becomes of it."""

    def __init__(self, here: Host) -> None:
        self.here = here
        self.asked: list[str] = []
        self.done = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            id = f"load-{len(self.asked)}"
            self.asked.append(id)
            done = self.here.ctr("run", "--rm", "--null-io", IMAGE, id, "true", timeout=60)
            self.done += done.returncode == 0

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def log_of(here: Host, number: int) -> Path:
    return here.base / f"writer-{number}.log"


def start_writer(here: Host, number: int) -> None:
    """Writes its lines over about the time that the kills take, and exits with its number."""
    pause = max(0.002, 0.45 * KILLS / LINES)
    script = (
        f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; sleep {pause:.4f}; done; "
        f"exit {number + 10}"
    )
    uri = f"file://{log_of(here, number)}"
    here.out("run", "-d", "--log-uri", uri, IMAGE, f"writer-{number}", "sh", "-c", script)


def test_nothing_dies_with_the_daemon(here: Host) -> None:
    chance = random.Random(20_261_123)
    here.out("run", "-d", "--null-io", IMAGE, "steady", "sleep", "1000")
    pid = here.tasks()["steady"][0]
    for number in range(WRITERS):
        start_writer(here, number)
    load = Load(here)
    try:
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.0, 0.4))
            here.kill()
            here.start()
            assert here.tasks()["steady"] == (pid, "RUNNING")
    finally:
        load.stop()
    assert load.done > 0
    wait_for_writers(here)
    wanted = "".join(f"line {n}\n" for n in range(1, LINES + 1))
    for number in range(WRITERS):
        assert log_of(here, number).read_text() == wanted
        removed = here.ctr("tasks", "delete", f"writer-{number}")
        assert f"non-zero exit code {number + 10}".encode() in removed.stderr, removed
    check_load(here, load)
    assert here.tasks() == {"steady": (pid, "RUNNING")}


def wait_for_writers(here: Host) -> None:
    deadline = time.monotonic() + SECONDS
    while any(
        state == "RUNNING" for id, (_, state) in here.tasks().items() if id.startswith("writer")
    ):
        assert time.monotonic() < deadline, "writers do not end"
        time.sleep(0.2)


def check_load(here: Host, load: Load) -> None:
    """What a dead daemon left half done can be taken away, and then is gone."""
    for id in here.out("tasks", "ls", "-q").split():
        if id.startswith("load-"):
            here.ctr("tasks", "kill", "-s", "KILL", id)
            here.out("tasks", "rm", "-f", id)
    for id in here.out("containers", "ls", "-q").split():
        if id.startswith("load-"):
            here.out("containers", "rm", id)
    # a client that lost its daemon between snapshot and container leaves them to its lease
    for id in here.out("leases", "ls", "-q").split():
        here.out("leases", "rm", "--sync", id)
    known = here.out("snapshots", "ls")
    assert not [id for id in load.asked if f"\n{id} " in known]
