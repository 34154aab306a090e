"""Our own streams and terminal as a container process's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from kontti.cmd.ctr.stdio import Fifos
from kontti.cmd.kontti.root import Root
from kontti.cmd.kontti.waiting import Job, Name, attend
from kontti.engine.engine import Engine
from kontti.errors import Error
from kontti.shim.log_writer import LogWriter
from kontti.tasks.base import Stdio
from kontti.wire.log_record import STREAMS


class Console(Fifos):
    """Our streams; what the process writes is kept in ``log`` as well, if there is one."""

    log: LogWriter | None = None

    def deliver(self, number: int, data: bytes) -> None:
        """Write ``data`` to our stdout (1) or stderr (2), and keep it."""
        if self.log is not None:
            self.log.write(STREAMS[number - 1], data)
        super().deliver(number, data)

    def close_log(self) -> None:
        """All is written: let go of the log."""
        if self.log is not None:
            self.log.close(wait=True)

    @property
    def stdio(self) -> Stdio:
        """The process's ends."""
        return Stdio(self.stdin, self.stdout, self.stderr, self.terminal)

    def connect(self, root: Root, name: Name) -> None:
        """Begin to copy; what we are told (signals, sizes, the end of input) is passed on."""

        # the process may have ended meanwhile, and there is no one to tell

        def forward(number: int) -> None:
            with contextlib.suppress(Error), root.engine() as engine:
                engine.processes.kill(name.id, number, name.exec_id)

        def resize(columns: int, lines: int) -> None:
            with contextlib.suppress(Error), root.engine() as engine:
                engine.processes.resize(name.id, columns, lines, name.exec_id)

        def close_stdin() -> None:
            with contextlib.suppress(Error), root.engine() as engine:
                engine.processes.close_stdin(name.id, name.exec_id)

        self.forward, self.resize, self.close_stdin = forward, resize, close_stdin
        self.start()


@dataclass(frozen=True, slots=True)
class Session:
    """A process on our streams: how it begins, what is done at its end, whether output is kept."""

    begin: Callable[[Engine, Stdio], Name]
    end: Callable[[Engine, Name], None]
    keep_output: bool = False


def foreground(root: Root, session: Session, *, terminal: bool, interactive: bool) -> int:
    """Be a process's console to its end; its exit code."""
    console = Console.make("process", directory=root.fifos, tty=terminal, stdin=interactive)
    with contextlib.ExitStack() as stack:
        stack.callback(console.close)

        def begin(engine: Engine) -> Name:
            name = session.begin(engine, console.stdio)
            if session.keep_output:
                console.log = engine.log_writer(name.id)
                stack.callback(console.close_log)
            console.connect(root, name)
            return name

        def end(engine: Engine, name: Name) -> None:
            console.finish()
            session.end(engine, name)

        return attend(root, Job(begin, end))
