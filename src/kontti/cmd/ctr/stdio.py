"""A process's streams, through FIFOs as containerd's clients make them."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
import time

from kontti.cmd.ctr.signals import Signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

FIFO_DIR = "/run/containerd/fifo"
CHUNK = 64 << 10
DRAIN_SECONDS = 10.0
ATTACHED_DRAIN_SECONDS = 0.5
# signals that mean something to this process only are not the container's
FORWARDED = frozenset(signal.Signals) - {
    signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGKILL, signal.SIGSTOP, signal.SIGWINCH,
    signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGBUS, signal.SIGTRAP, signal.SIGTSTP,
    signal.SIGTTIN, signal.SIGTTOU, signal.SIGPROF, signal.SIGABRT,
}  # fmt: skip


class Streams:
    """Where a process's streams go, as the Tasks service takes it.

    ``forward`` is called with each signal that we get, from another thread; those below are for
    streams that we copy.
    """

    def __init__(
        self, stdin: str = "", stdout: str = "", stderr: str = "", tty: bool = False
    ) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = tty
        self.forward: Callable[[int], None] = lambda _: None
        self.resize: Callable[[int, int], None] = lambda _w, _h: None
        self.close_stdin: Callable[[], None] = lambda: None
        self._signals = Signals(self._deal_with)

    def prepare(self) -> None:
        """The process is there and not started yet: give its terminal the size of ours."""

    def start(self) -> None:
        """Begin to copy, and to pass signals on. From the main thread."""
        self._signals.start(FORWARDED)

    def _deal_with(self, number: int) -> None:
        self.forward(number)

    def finish(self) -> None:
        """Copy what is left, after the process has ended."""

    def close(self) -> None:
        """Give everything back."""
        self._signals.stop()


class Fifos(Streams):
    """FIFOs in a directory of their own, copied from and to ours.

    ``close_stdin`` is called at our stdin's end, ``resize`` when our terminal's size changes.
    Where nobody reads our output any more, the main thread gets a SystemExit as of SIGPIPE.
    """

    def __init__(
        self, stdin: str, stdout: str, stderr: str, *, directory: str = "", tty: bool = False
    ) -> None:
        super().__init__(stdin, stdout, stderr, tty)
        self.directory = directory
        both = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        self._in = os.open(self.stdin, both) if self.stdin else -1
        reads = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        outputs = ((self.stdout, 1), (self.stderr, 2))
        self._outputs = {os.open(path, reads): number for path, number in outputs if path}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pump = threading.Thread(target=self._copy, name="stdio", daemon=True)
        self._stdin_buffer = b""
        self._terminal_state: list[object] | None = None
        self._ended = False
        self._broken = False
        self._drain_seconds = DRAIN_SECONDS

    @classmethod
    def make(cls, id: str, *, directory: str = "", tty: bool = False, stdin: bool = True) -> Self:
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
        made = cls(stdin, stdout, stderr, tty=tty)
        # who came after the process had ended sees no end of its output
        made._drain_seconds = ATTACHED_DRAIN_SECONDS
        return made

    def prepare(self) -> None:
        if self.terminal and sys.stdin.isatty():
            self._deal_with(signal.SIGWINCH)

    def start(self) -> None:
        if self.terminal and sys.stdin.isatty():
            self._make_raw()
            self._signals.start([signal.SIGWINCH])
            self._signals.note(signal.SIGWINCH)
        else:
            super().start()
        signal.signal(signal.SIGPIPE, self._on_broken_pipe)
        self._pump.start()

    def _make_raw(self) -> None:
        """Every key goes to the process; its newlines still begin at the left of our screen."""
        import termios
        import tty

        self._terminal_state = termios.tcgetattr(0)
        # now: what was typed already is for the process
        tty.setraw(0, termios.TCSANOW)
        raw = termios.tcgetattr(0)
        raw[1] |= termios.OPOST
        termios.tcsetattr(0, termios.TCSANOW, raw)

    def _on_broken_pipe(self, _number: int, _frame: object) -> None:
        # of our sockets' SIGPIPE their own errors tell
        if self._broken:
            raise SystemExit(128 + signal.SIGPIPE)

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
        try:
            self.deliver(self._outputs[fd], data)
        except BrokenPipeError:
            # not to be waited for: the process may write for ever
            self._broken = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGPIPE)
            raise SystemExit from None

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

    def _deal_with(self, number: int) -> None:
        if number != signal.SIGWINCH:
            super()._deal_with(number)
            return
        try:
            size = os.get_terminal_size(0)
        except OSError:
            return  # the terminal has gone
        self.resize(size.columns, size.lines)

    def finish(self) -> None:
        self._pump.join(self._drain_seconds)
        deadline = time.monotonic()
        while self._pump.is_alive() and time.monotonic() < deadline + DRAIN_SECONDS:
            self._ended = True
            os.write(self._wake_write, b"e")
            self._pump.join(0.1)

    def close(self) -> None:
        super().close()
        if self._terminal_state is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self._terminal_state)  # type: ignore[arg-type]
        if self.directory:
            import shutil

            shutil.rmtree(self.directory, ignore_errors=True)


def remove_fifos(paths: Iterable[str]) -> None:
    """Take away the FIFOs that a client made for a process that is gone, and their directory.

    Others' files stay: only FIFOs are removed, and only a directory that is empty then.
    """
    for path in filter(None, paths):
        try:
            if stat.S_ISFIFO(os.lstat(path).st_mode):
                os.unlink(path)
                os.rmdir(os.path.dirname(path))
        except OSError:
            continue  # gone, or with other files beside it


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
