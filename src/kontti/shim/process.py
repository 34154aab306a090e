"""One process of a container: its state, its streams, and who waits for its end."""

from __future__ import annotations

import time

from kontti.errors import FailedPrecondition
from kontti.wire.messages.google import Timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kontti.shim.stdio import Stdio

# containerd.v1.types.Status
CREATED, RUNNING, STOPPED, PAUSED = 1, 2, 3, 4
DELETED = 0
UNKNOWN = 255
"""The exit status of what never ran."""
_NAMES = {
    CREATED: "created",
    RUNNING: "running",
    STOPPED: "stopped",
    PAUSED: "paused",
    DELETED: "deleted",
}

START, EXIT, PAUSE, RESUME, DELETE = "start", "exit", "pause", "resume", "delete"
CHECKPOINT = "checkpoint"
TRANSITIONS: dict[tuple[int, str], int] = {
    (CREATED, START): RUNNING,
    (CREATED, EXIT): STOPPED,
    (CREATED, DELETE): DELETED,
    (RUNNING, EXIT): STOPPED,
    (RUNNING, PAUSE): PAUSED,
    (RUNNING, CHECKPOINT): RUNNING,
    (PAUSED, CHECKPOINT): PAUSED,
    (PAUSED, RESUME): RUNNING,
    (PAUSED, EXIT): STOPPED,
    (STOPPED, DELETE): DELETED,
}


class Process:
    """``exec_id`` is "" for the container's first process. An exec has ``spec`` until it starts."""

    def __init__(self, exec_id: str, stdio: Stdio, spec: bytes = b"") -> None:
        self.exec_id = exec_id
        self.stdio = stdio
        self.spec = spec
        self.pid = 0
        self.status = CREATED
        self.exit_status = 0
        self.exited_at: Timestamp | None = None
        self._waiting: list[Callable[[], None]] = []

    def check(self, operation: str) -> None:
        """Raises FailedPrecondition where the process is not in a state for ``operation``."""
        if (self.status, operation) not in TRANSITIONS:
            what = "an exec process" if self.exec_id else "a container"
            state = _NAMES[self.status]
            raise FailedPrecondition(f"cannot {operation} {what} in the {state} state")

    def go(self, operation: str) -> None:
        """Change state; raises FailedPrecondition."""
        self.check(operation)
        self.status = TRANSITIONS[self.status, operation]

    @property
    def ended(self) -> bool:
        """Whether it has ended, told or not: its pid may be another's."""
        return self.exited_at is not None

    def wait(self, ended: Callable[[], None]) -> None:
        """Call ``ended`` when it has ended, now if it has."""
        if self.status == STOPPED:
            ended()
        else:
            self._waiting.append(ended)

    def exited(self, code: int) -> None:
        """Note how it ended (a negative code is a signal); those who wait are told by ``tell``."""
        self.exit_status = code if code >= 0 else 128 - code
        now = time.time_ns()
        self.exited_at = Timestamp(seconds=now // 10**9, nanos=now % 10**9)

    def tell(self) -> None:
        """It is over: answer everybody who waits."""
        self.go(EXIT)
        self._answer()

    def abandon(self) -> None:
        """It is deleted and never ran: answer everybody who waits."""
        self.exited(UNKNOWN)
        self._answer()

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for ended in waiting:
            ended()
