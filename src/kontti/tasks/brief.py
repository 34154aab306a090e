"""What a shim said of a running task, as long as it must still be so.

To ask a shim is to wake a process, and a list of many tasks would wake as many. What a running
task does is changed by calls, which come through us, and by its end, which its pidfd tells.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator

from kontti.tasks.base import Process, Status


class Brief:
    """Of one task, whose shim is our own. ``turn`` counts what may have changed it."""

    __slots__ = ("_changing", "_pidfd", "_process", "turn")

    def __init__(self) -> None:
        self.turn = 0
        self._changing = 0
        self._process: Process | None = None
        self._pidfd = -1

    def known(self) -> Process | None:
        """What is true of it without asking; None where its shim has to be asked."""
        process = self._process
        if process is not None and _ended(self._pidfd):
            self.drop()
            return None
        return process

    def note(self, turn: int, process: Process, shim_pid: int) -> None:
        """The shim ``shim_pid`` was asked in ``turn``, and this is what it said."""
        if turn != self.turn or self._changing or process.status is not Status.RUNNING:
            return
        self.drop()
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:
            return
        # the number may be another's by now, but then its parent is not the shim
        if shim_pid and _parent(process.pid) == shim_pid:
            self._process = process
        else:
            self.drop()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Something within the block changes the task: nothing is known of it until it is over."""
        self._changing += 1
        self.drop()
        try:
            yield
        finally:
            self._changing -= 1
            self.turn += 1

    def drop(self) -> None:
        """Know nothing."""
        self._process = None
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)


def _ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
