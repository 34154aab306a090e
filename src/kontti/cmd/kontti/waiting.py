"""Being there for a process of a container without keeping the root from others."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kontti.cmd.kontti.root import PATIENCE_SECONDS, Root
from kontti.engine.engine import Engine
from kontti.errors import DeadlineExceeded, Unavailable
from kontti.tasks.base import Status

# a process that ends at once costs one opening of the engine, not two
HOLD_SECONDS = 1.0
REPORT_SECONDS = 30.0
AWAY_SECONDS = 0.1
ENDED = (Status.STOPPED, Status.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Name:
    """A container's first process, or one exec'd into it."""

    id: str
    exec_id: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """What is done with the engine before a process is waited for, and after its end."""

    begin: Callable[[Engine], Name]
    end: Callable[[Engine, Name], None] = lambda _engine, _name: None


@contextlib.contextmanager
def watched(engine: Engine, name: Name) -> Iterator[int | None]:
    """A pidfd of a process, or None where it has ended; raises NotFound."""
    process = engine.processes.get(name.id, name.exec_id)
    fd = None
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(process.pid) if process.pid > 0 else None
    try:
        # asked again: the pid may have become another's before we held it
        status = engine.processes.get(name.id, name.exec_id).status
        yield None if status in ENDED else fd
    finally:
        if fd is not None:
            os.close(fd)


def ended(pidfd: int, seconds: float | None) -> bool:
    """Wait for the process's end, at most ``seconds``."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if seconds is None else max(0, int(seconds * 1000))))


def attend(root: Root, job: Job, timeout: float | None = None) -> int:
    """Do ``job`` around a process's life; its exit code. Raises DeadlineExceeded."""
    hold = HOLD_SECONDS if timeout is None else min(HOLD_SECONDS, timeout)
    with contextlib.ExitStack() as stack:
        with root.engine() as engine:
            name = job.begin(engine)
            fd = None if engine.shared else stack.enter_context(watched(engine, name))
            if not engine.shared and (fd is None or ended(fd, hold)):
                return finish(engine, job, name)
        if fd is None:
            until_ended(root, name, timeout)
        elif not ended(fd, None if timeout is None else timeout - hold):
            raise DeadlineExceeded(f"container {name.id} did not end in {timeout:g} seconds")
    with root.engine() as engine:
        return finish(engine, job, name)


def until_ended(root: Root, name: Name, timeout: float | None) -> None:
    """Have the daemon wait; one that goes away may come back, and still knows the container.

    Raises DeadlineExceeded, Unavailable.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    away_since: float | None = None
    while True:
        left = None if deadline is None else max(0.01, deadline - time.monotonic())
        try:
            with root.engine() as engine:
                away_since = None
                engine.processes.wait(name.id, name.exec_id, left)
                return
        except Unavailable:
            now = time.monotonic()
            away_since = away_since or now
            if now - away_since > PATIENCE_SECONDS:
                raise
        time.sleep(AWAY_SECONDS)


def finish(engine: Engine, job: Job, name: Name) -> int:
    """Take the exit code, and do the job's end."""
    code = engine.processes.wait(name.id, name.exec_id, REPORT_SECONDS)
    job.end(engine, name)
    return code


def wait(root: Root, id: str, timeout: float | None = None) -> int:
    """The exit code of a container; raises DeadlineExceeded, NotFound."""
    return attend(root, Job(lambda _: Name(id)), timeout)
