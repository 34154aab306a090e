"""The daemon is killed at random moments under load: no container stops, no exit is lost, no byte.

``KONTTI_KILLS`` says how often (8 where it is not set).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.errors import Error, NotFound
from tests.support.api import Api
from tests.support.host import IMAGE, Host, host

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("KONTTI_KILLS", "8"))
WRITERS = 3
LINES = 400
SECONDS = 60.0
PAUSE = max(0.002, 0.45 * KILLS / LINES)
CONFIG = """version = 2
[plugins."io.containerd.internal.v1.restart"]
  interval = "1s"
"""
RESTARTED = "containerd.io/restart.status"


@pytest.fixture
def here() -> Iterator[Host]:
    with host(start=False, image=False) as made:
        made.write_config(CONFIG)
        made.start()
        made.import_image()
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


class ExecLoad:
    """Execs into one container, one after another; ``started`` are those that were acknowledged."""

    def __init__(self, here: Host, id: str) -> None:
        self.here = here
        self.id = id
        self.started: dict[str, int] = {}
        self.waited: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stopped.is_set():
            number += 1
            with contextlib.suppress(Error), contextlib.closing(client(self.here)) as api:
                self._one(api, f"e{number}", number % 256)

    def _one(self, api: Api, exec_id: str, code: int) -> None:
        api.exec(self.id, exec_id, "sh", "-c", f"sleep 0.02; exit {code}")
        api.start(self.id, exec_id)
        self.started[exec_id] = code
        self.waited[exec_id] = api.wait(self.id, exec_id).code
        api.delete_exec(self.id, exec_id)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def check(self) -> None:
        """Every one that was acknowledged ran to its own end, told then or now."""
        assert self.waited == {id: self.started[id] for id in self.waited}
        with contextlib.closing(client(self.here)) as api:
            for exec_id, code in self.started.items():
                if exec_id not in self.waited:
                    assert api.wait(self.id, exec_id).code == code
                # its deletion may have been done, and its answer lost
                with contextlib.suppress(NotFound):
                    assert api.delete_exec(self.id, exec_id).code == code


def client(here: Host) -> Api:
    return Api(here.address, here.namespace, here.base)


def start_exec_writer(here: Host) -> Path:
    """As ``start_writer``, but added to a container that runs."""
    log = here.base / "exec.log"
    script = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; sleep {PAUSE:.4f}; done"
    with contextlib.closing(client(here)) as api:
        uri = f"file://{log}"
        api.exec("steady", "writer", "sh", "-c", f"{script}; exit 9", stdout=uri, stderr=uri)
        api.start("steady", "writer")
    return log


def log_of(here: Host, number: int) -> Path:
    return here.base / f"writer-{number}.log"


def start_writer(here: Host, number: int) -> None:
    """Writes its lines over about the time that the kills take, and exits with its number."""
    script = (
        f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; sleep {PAUSE:.4f}; done; "
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
    exec_log = start_exec_writer(here)
    flags = ("--null-io", "--label", f"{RESTARTED}=running")
    here.out("run", "-d", *flags, IMAGE, "again", "sh", "-c", "sleep 0.5; exit 1")
    load, execs = Load(here), ExecLoad(here, "steady")
    try:
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.0, 0.4))
            here.kill()
            here.start()
            assert here.tasks()["steady"] == (pid, "RUNNING")
    finally:
        load.stop()
        execs.stop()
    assert load.done > 0
    assert execs.waited
    execs.check()
    wait_for_writers(here)
    wanted = "".join(f"line {n}\n" for n in range(1, LINES + 1))
    for number in range(WRITERS):
        assert log_of(here, number).read_text() == wanted
        removed = here.ctr("tasks", "delete", f"writer-{number}")
        assert f"non-zero exit code {number + 10}".encode() in removed.stderr, removed
    with contextlib.closing(client(here)) as api:
        assert api.wait("steady", "writer").code == 9
        assert api.delete_exec("steady", "writer").code == 9
    assert exec_log.read_text() == wanted
    # what is wanted running was started again, by whichever daemon there was, and still is
    here.until("again", "RUNNING")
    assert restarts(here) >= 2
    here.out("containers", "label", "again", f"{RESTARTED}=")
    here.until("again", "STOPPED")
    here.ctr("tasks", "delete", "again")
    here.out("containers", "rm", "again")
    check_load(here, load)
    assert here.tasks() == {"steady": (pid, "RUNNING")}


def restarts(here: Host) -> int:
    """How often a container was started again."""
    info = json.loads(here.out("containers", "info", "again"))
    return int(info["Labels"]["containerd.io/restart.count"])


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
