"""The events of tasks, in order, for one table of commands against both daemons."""

from __future__ import annotations

import json
import os
import selectors
import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kontti.linux import cgroups
from tests.blackbox.steps import IMAGE
from tests.support import daemons, images
from tests.support.daemons import Daemon
from tests.support.host import CGROUPS, RUNTIME_STATE

pytestmark = [pytest.mark.root, pytest.mark.blackbox, pytest.mark.timeout(180)]
SECONDS = 20.0
SPACE = f"t{uuid.uuid4().hex[:10]}"
"""Of our own: the runtime's state is shared by all on the machine."""
TOLD = ("container_id", "id", "exec_id", "exit_status")
Told = tuple[str, dict[str, object]]


@dataclass(frozen=True)
class Step:
    """A command and the events it is to bring; ``code`` None where it does not matter."""

    line: str
    events: tuple[Told, ...]
    code: int | None = 0


def of(id: str, *topics: str, **fields: object) -> tuple[Told, ...]:
    return tuple((topic, {"container_id": id, **fields}) for topic in topics)


def ended(id: str, status: int, process: str = "") -> Told:
    body = {"container_id": id, "id": process or id, "exit_status": status}
    return "exit", body


def deleted(id: str, status: int = 0) -> Told:
    return "delete", {"container_id": id, **({"exit_status": status} if status else {})}


def added(id: str, exec_id: str) -> tuple[Told, ...]:
    return of(id, "exec-added", exec_id=exec_id)


def started(id: str, exec_id: str) -> tuple[Told, ...]:
    return of(id, "exec-started", exec_id=exec_id)


OOM = "run --rm --memory-limit 16777216 {image} eats sh -c 'x=a; while true; do x=$x$x; done'"
STEPS = (
    Step("run -d --null-io {image} one sleep 1000", of("one", "create", "start")),
    Step(
        "tasks exec --exec-id e1 one sh -c 'exit 3'",
        (*added("one", "e1"), *started("one", "e1"), ended("one", 3, "e1")),
        code=3,
    ),
    Step("tasks exec --exec-id e2 one /none", added("one", "e2"), code=None),
    Step("tasks pause one", of("one", "paused")),
    Step("tasks resume one", of("one", "resumed")),
    Step("tasks exec -d --exec-id e3 one sleep 1000", (*added("one", "e3"), *started("one", "e3"))),
    Step("tasks kill --exec-id e3 -s KILL one", (ended("one", 137, "e3"),)),
    Step("tasks kill -s KILL one", (ended("one", 137),)),
    Step("tasks rm one", (deleted("one", 137),)),
    Step("tasks start -d one", of("one", "create", "start")),
    Step("tasks rm -f one", (ended("one", 137), deleted("one", 137)), code=None),
    Step(
        "run --rm {image} two sh -c 'exit 7'",
        (*of("two", "create", "start"), ended("two", 7), deleted("two", 7)),
        code=7,
    ),
    Step("run --rm {image} three /none", (), code=None),
)
LEGACY = (
    Step(
        OOM,
        (*of("eats", "create", "start", "oom"), ended("eats", 137), deleted("eats", 137)),
        code=137,
    ),
)


@dataclass
class Listener:
    """A running ``ctr events``, and what it has told of tasks."""

    process: subprocess.Popen[bytes]
    told: list[Told] = field(default_factory=list)
    others: int = 0
    _left: bytes = b""

    def read(self, seconds: float) -> None:
        """Take in what comes within a time."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            if not ready.select(seconds):
                return
        data = os.read(self.process.stdout.fileno(), 65536)
        assert data, "ctr events ended"
        *lines, self._left = (self._left + data).split(b"\n")
        for line in lines:
            self._take(line.decode().split(" ", 6))

    def _take(self, words: list[str]) -> None:
        if words[4] != SPACE or not words[5].startswith("/tasks/"):
            self.others += 1
            return
        body: dict[str, Any] = json.loads(words[6])
        fields = {name: body[name] for name in TOLD if name in body}
        self.told.append((words[5].removeprefix("/tasks/"), fields))

    def until(self, count: int) -> None:
        """Until so many were told of, or no more come."""
        deadline = time.monotonic() + SECONDS
        while len(self.told) < count and time.monotonic() < deadline:
            self.read(0.2)


@contextmanager
def listening(daemon: Daemon) -> Iterator[Listener]:
    """Listens for certain: it has heard of a namespace that was made."""
    argv = [daemons.client_path("debian"), "--address", daemon.address, "events"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        made = Listener(process)
        try:
            deadline = time.monotonic() + SECONDS
            number = 0
            while not made.others:
                assert time.monotonic() < deadline
                number += 1
                daemon.ctr("debian", "namespaces", "create", f"n{number}")
                made.read(0.1)
            yield made
        finally:
            process.terminate()


def perform(daemon: Daemon, base: Path, steps: tuple[Step, ...]) -> list[Told]:
    """Do the steps with Debian's client; every event of a task that was told."""
    tar = base / "image.tar"
    tar.write_bytes(images.archive(images.build(), IMAGE))
    assert shell(daemon, f"images import {tar}").returncode == 0
    wanted = 0
    with listening(daemon) as listener:
        for step in steps:
            done = shell(daemon, step.line)
            assert step.code is None or done.returncode == step.code, (step.line, done)
            wanted += len(step.events)
            listener.until(wanted)
            assert len(listener.told) >= wanted, (step.line, listener.told)
        # what comes late belongs to the last step, and is not to come
        listener.read(0.5)
        return listener.told


def shell(daemon: Daemon, line: str) -> subprocess.CompletedProcess[bytes]:
    words = [word.replace("{image}", IMAGE) for word in shlex.split(line)]
    return daemon.ctr("debian", "--namespace", SPACE, *words)


@pytest.mark.parametrize("kind", ["containerd", "kontti"])
def test_every_change_of_a_tasks_state_is_told_in_order(kind: str, tmp_path: Path) -> None:
    steps = STEPS if cgroups.mode() == cgroups.UNIFIED else (*STEPS, *LEGACY)
    try:
        with daemons.running(kind, tmp_path) as daemon:
            told = perform(daemon, tmp_path, steps)
    finally:
        for path in (RUNTIME_STATE / SPACE, *CGROUPS.glob(f"*/{SPACE}")):
            with suppress(OSError):
                path.rmdir()
    assert told == [event for step in steps for event in step.events]
