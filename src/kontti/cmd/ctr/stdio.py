"""A process's streams, through FIFOs as containerd's clients make them."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

FIFO_DIR = "/run/containerd/fifo"
CHUNK = 64 << 10
DRAIN_SECONDS = 10.0
# signals that mean something to this process only are not the container's
FORWARDED = frozenset(signal.Signals) - {
    signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGKILL, signal.SIGSTOP, signal.SIGWINCH,
    signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGBUS, signal.SIGTRAP, signal.SIGTSTP,
    signal.SIGTTIN, signal.SIGTTOU, signal.SIGPROF, signal.SIGABRT,
}  # fmt: skip


class Streams:
    """Where a process's streams go, as the Tasks service takes it. ``attached`` where we copy."""

    attached = False

    def __init__(
        self, stdin: str = "", stdout: str = "", stderr: str = "", tty: bool = False
    ) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = tty

    def start(self) -> None:
        """Begin to copy."""

    def finish(self) -> None:
        """Copy what is left, after the process has ended."""

    def close(self) -> None:
        """Give everything back."""


class Fifos(Streams):
    """FIFOs in a directory of their own, copied from and to ours.

    ``close_stdin`` is called at our stdin's end, ``forward`` with each signal that we get.
    """

    attached = True

    def __init__(
        self, stdin: str, stdout: str, stderr: str, *, directory: str = "", tty: bool = False
    ) -> None:
        super().__init__(stdin, stdout, stderr, tty)
        self.directory = directory
        self.close_stdin: Callable[[], None] = lambda: None
        self.forward: Callable[[int], None] = lambda _: None
        self.resize: Callable[[int, int], None] = lambda _w, _h: None
        both = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        self._in = os.open(self.stdin, both) if self.stdin else -1
        reads = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        outputs = ((self.stdout, 1), (self.stderr, 2))
        self._outputs = {os.open(path, reads): number for path, number in outputs if path}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._signals: list[int] = []
        self._pump = threading.Thread(target=self._copy, name="stdio", daemon=True)
        self._stdin_buffer = b""
        self._terminal_state: list[object] | None = None
        self._ended = False

    @classmethod
    def make(
        cls, id: str, *, directory: str = "", tty: bool = False, stdin: bool = True
    ) -> Self:
        """New FIFOs in a new directory below ``directory``; both go with ``close``."""
        import tempfile

        base = directory or FIFO_DIR
        os.makedirs(base, mode=0o700, exist_ok=True)
        folder = tempfile.mkdtemp(dir=base)
        names = ("stdin", "stdout") if tty else ("stdin", "stdout", "stderr")
        paths = [os.path.join(folder, f"{id}-{name}") for name in names]
        for path in paths:
            os.mkfifo(path, 0o700)
        errors = "" if tty else paths[2]
        return cls(paths[0] if stdin else "", paths[1], errors, directory=folder, tty=tty)

    @classmethod
    def existing(cls, stdin: str, stdout: str, stderr: str, *, tty: bool) -> Self:
        """The FIFOs of a process that another client started."""
        return cls(stdin, stdout, stderr, tty=tty)

    def start(self) -> None:
        if self.terminal and sys.stdin.isatty():
            import termios
            import tty

            self._terminal_state = termios.tcgetattr(0)
            tty.setraw(0)
            signal.signal(signal.SIGWINCH, self._on_signal)
            self._on_signal(signal.SIGWINCH, None)
        for number in FORWARDED if not self.terminal else ():
            signal.signal(number, self._on_signal)
        self._pump.start()

    def _on_signal(self, number: int, _frame: object) -> None:
        # only noted here: the call that forwards it is made by the copying thread
        self._signals.append(number)
        os.write(self._wake_write, b"s")

    def _copy(self) -> None:
        poller = select.poll()
        for fd in (*self._outputs, self._wake_read):
            poller.register(fd, select.POLLIN)
        if self._in >= 0:
            poller.register(0, select.POLLIN)
        while self._outputs:
            for fd, _ in poller.poll():
                if fd in self._outputs:
                    self._take_output(poller, fd)
                elif fd == 0:
                    self._take_input(poller)
                elif fd == self._in:
                    self._give_input(poller)
                else:
                    self._take_wake(poller)

    def _take_output(self, poller: select.poll, fd: int) -> None:
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        if not data:
            poller.unregister(fd)
            del self._outputs[fd]
            os.close(fd)
            return
        self.deliver(self._outputs[fd], data)

    def deliver(self, number: int, data: bytes) -> None:
        """Write ``data`` to our stdout (1) or stderr (2)."""
        while data:
            data = data[os.write(number, data) :]

    def _take_input(self, poller: select.poll) -> None:
        try:
            data = os.read(0, CHUNK)
        except OSError:
            data = b""
        if not data:
            poller.unregister(0)
            self._end_input()
            return
        self._stdin_buffer = data
        poller.unregister(0)
        poller.register(self._in, select.POLLOUT)

    def _give_input(self, poller: select.poll) -> None:
        try:
            self._stdin_buffer = self._stdin_buffer[os.write(self._in, self._stdin_buffer) :]
        except BlockingIOError:
            return
        if not self._stdin_buffer:
            poller.unregister(self._in)
            poller.register(0, select.POLLIN)

    def _end_input(self) -> None:
        if self._in >= 0:
            os.close(self._in)
            self._in = -1
            self.close_stdin()

    def _take_wake(self, poller: select.poll) -> None:
        os.read(self._wake_read, 4096)
        if self._ended:
            # the process is gone: what its FIFOs hold now is all there will be
            for fd in [fd for fd in self._outputs if not _readable(fd)]:
                poller.unregister(fd)
                del self._outputs[fd]
                os.close(fd)
        while self._signals:
            self._deal_with(self._signals.pop(0))

    def _deal_with(self, number: int) -> None:
        if number == signal.SIGWINCH:
            size = os.get_terminal_size(0)
            self.resize(size.columns, size.lines)
        else:
            self.forward(number)

    def finish(self) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        self._pump.join(DRAIN_SECONDS)
        while self._pump.is_alive() and time.monotonic() < deadline + DRAIN_SECONDS:
            self._ended = True
            os.write(self._wake_write, b"e")
            self._pump.join(0.1)

    def close(self) -> None:
        if self._terminal_state is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self._terminal_state)  # type: ignore[arg-type]
        if self.directory:
            import shutil

            shutil.rmtree(self.directory, ignore_errors=True)


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def streams(
    id: str, *, null: bool = False, log_uri: str = "", directory: str = "", tty: bool = False
) -> Streams:
    """The streams that the flags ask for."""
    if null:
        return Streams(tty=tty)
    if log_uri:
        return Streams(stdout=log_uri, stderr=log_uri, tty=tty)
    return Fifos.make(id, directory=directory, tty=tty)
