"""A container's processes, for a caller that waits: the task manager's calls, one after another."""

from __future__ import annotations

import contextlib
import secrets
import signal
from collections.abc import Sequence

from kontti.engine.base import Core
from kontti.engine.stdio import Streams
from kontti.engine.values import ExecOptions
from kontti.errors import Error, FailedPrecondition, NotFound
from kontti.metadata.base import Container
from kontti.namespaces import Scope
from kontti.tasks import base
from kontti.values import AnyValue, Mount
from kontti.wire.typeurl import PROCESS_URL

END_SECONDS = 10.0


class Processes:
    """The processes of one namespace's containers; ``exec_id`` "" is a container's first one."""

    def __init__(self, core: Core, scope: Scope) -> None:
        self._core, self._tasks, self._scope = core, core.tasks, scope

    def create(self, id: str, mounts: Sequence[Mount], stdio: base.Stdio) -> None:
        """Make the first process, waiting to be started."""
        options = base.CreateOptions(rootfs=mounts, stdio=self._core.streams(stdio))
        self._core.wait_for(self._tasks.create(self._scope, id, options))

    def add(
        self, record: Container, command: Sequence[str], options: ExecOptions, stdio: base.Stdio
    ) -> str:
        """Make another process of a running container, waiting to be started; its exec id."""
        from kontti.engine import containers

        pid = self.get(record.id).pid
        spec = containers.exec_process(self._scope, record, pid, command, options)
        asked = base.ExecOptions(secrets.token_hex(6), AnyValue(PROCESS_URL, spec), stdio)
        self._core.wait_for(self._tasks.exec(self._scope, record.id, asked))
        return asked.exec_id

    def start(self, id: str, exec_id: str = "") -> int:
        """Start what was made; its pid."""
        return self._core.wait_for(self._tasks.start(self._scope, id, exec_id))

    def attend(self, id: str, streams: Streams, exec_id: str = "") -> int:
        """Start what was made, feed it, and wait for its end; its exit code."""
        self.start(id, exec_id)
        streams.begin(lambda: self._end_input(id, exec_id))
        code = self.wait(id, exec_id)
        streams.finish()
        return code

    def _end_input(self, id: str, exec_id: str) -> None:
        with contextlib.suppress(NotFound, FailedPrecondition):  # it has ended before its input
            self.close_stdin(id, exec_id)

    def get(self, id: str, exec_id: str = "") -> base.Process:
        """How a process is; raises NotFound."""
        return self._core.wait_for(self._tasks.get(self._scope, id, exec_id))

    def list(self) -> dict[str, base.Process]:
        """The first process of every container that has one, by container."""
        found = self._core.wait_for(self._tasks.list(self._scope))
        return {process.container_id: process for process in found}

    def wait(self, id: str, exec_id: str = "", timeout: float | None = None) -> int:
        """Wait for a process's end; its exit code. Raises DeadlineExceeded."""
        return self._core.wait_for(self._tasks.wait(self._scope, id, exec_id), timeout).status

    def kill(self, id: str, number: int, exec_id: str = "") -> None:
        """Send a signal to a process; raises NotFound where it has ended."""
        self._core.wait_for(self._tasks.kill(self._scope, id, number, exec_id=exec_id))

    def end(self, id: str, exec_id: str = "") -> None:
        """Kill a process, if it runs, and see it end."""
        with contextlib.suppress(Error):  # never started, or ended by itself
            self.kill(id, signal.SIGKILL, exec_id)
            self.wait(id, exec_id, END_SECONDS)

    def close_stdin(self, id: str, exec_id: str = "") -> None:
        """Have the process see the end of its input."""
        self._core.wait_for(self._tasks.close_io(self._scope, id, exec_id, True))

    def resize(self, id: str, columns: int, lines: int, exec_id: str = "") -> None:
        """Tell a process on a terminal the terminal's size."""
        self._core.wait_for(self._tasks.resize_pty(self._scope, id, exec_id, columns, lines))

    def delete(self, id: str, exec_id: str = "") -> int:
        """Forget a process that ended; its exit code."""
        if exec_id:
            work = self._tasks.delete_process(self._scope, id, exec_id)
        else:
            work = self._tasks.delete(self._scope, id)
        return self._core.wait_for(work).status

    def pause(self, id: str) -> None:
        """Freeze every process of a container."""
        self._core.wait_for(self._tasks.pause(self._scope, id))

    def unpause(self, id: str) -> None:
        """Let a paused container go on."""
        self._core.wait_for(self._tasks.resume(self._scope, id))

    def pids(self, id: str) -> Sequence[int]:
        """Every process of a container, by the host's numbers."""
        found = self._core.wait_for(self._tasks.pids(self._scope, id))
        return [process.pid for process in found]

    def metrics(self, ids: Sequence[str] = ()) -> Sequence[base.Metric]:
        """cgroup figures of these containers, of all that have a task where none is named."""
        filters = [f"id=={id}" for id in ids]
        return self._core.wait_for(self._tasks.metrics(self._scope, filters))
