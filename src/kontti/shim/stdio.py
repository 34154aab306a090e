"""A process's streams: FIFOs handed to it directly, files, the log, loggers, terminals.

stdout and stderr FIFOs are opened by the shim for reading and writing and given to the process as
they are: nothing is copied, and a reader that goes away neither kills the process nor loses what
it wrote. The shim's own ends are closed when the process ends, so readers see the end.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import stat
import struct
import termios
from urllib.parse import parse_qsl, unquote, urlsplit

from kontti.errors import Error, InvalidArgument, Unavailable
from kontti.linux import process
from kontti.shim.log_writer import LogWriter
from kontti.shim.pumps import LogPump, Pump, StdinPump
from kontti.wire import log_uri
from kontti.wire.log_record import STDERR, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kontti.shim.loop import Loop

CONSOLE_SECONDS = 10.0
LOGGER_SECONDS = 10.0
DRAIN_SECONDS, DRAIN_ROUNDS = 1.0, 10
_FIFO_FLAGS = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC


class Names:
    """Where the streams are to go, as the create or exec request says."""

    __slots__ = ("stderr", "stdin", "stdout", "terminal")

    def __init__(self, stdin: str, stdout: str, stderr: str, terminal: bool) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = terminal


class Stdio:
    """The open streams of one process. ``stdin``, ``stdout``, ``stderr`` are what it gets."""

    def __init__(self, loop: Loop, names: Names, bundle: str) -> None:
        self._loop = loop
        self.names = names
        self._bundle = bundle
        self.stdin: int | None = None
        self.stdout: int | None = None
        self.stderr: int | None = None
        self._keepers: list[int] = []
        self._stdin_pump: StdinPump | None = None
        self._input_ended = False
        self._outputs: list[Pump | LogPump] = []
        self._log_ends: list[int] = []
        self._copying = 0
        self._writers: dict[str, LogWriter] = {}
        self._console: socket.socket | None = None
        self._master = -1
        self._folder = -1
        self.console_path = ""
        self._when_drained: Callable[[], None] | None = None

    def open(self, ids: tuple[str, str]) -> None:
        """Open everything; ``ids`` are container id and namespace, for a logger. Raises Error."""
        try:
            if self.names.terminal:
                self._open_console()
            else:
                self.stdin = self._open_stdin()
                self._open_outputs(ids)
        except OSError as error:
            self.close()
            raise Error(f"failed to open stdio: {error}") from None
        except Error:
            self.close()
            raise

    def _open_stdin(self) -> int | None:
        if not self.names.stdin:
            return None
        # held open for writing too: a client that goes away is not the end of input, CloseIO is
        source = os.open(self.names.stdin, _FIFO_FLAGS)
        read, write = os.pipe2(os.O_CLOEXEC)
        self._stdin_pump = StdinPump(self._loop, source, write)
        self._keepers.append(read)
        if self._input_ended:
            self._stdin_pump.finish()
        return read

    def _open_outputs(self, ids: tuple[str, str]) -> None:
        names = self.names
        scheme = names.stdout.partition("://")[0] if "://" in names.stdout else ""
        if scheme.startswith("binary"):
            self._open_logger(names.stdout, ids)
            return
        self.stdout = self._open_stream(names.stdout, STDOUT)
        same = bool(names.stderr) and names.stderr == names.stdout
        if same and not log_uri.is_log(names.stderr):
            self.stderr = self.stdout
        else:
            self.stderr = self._open_stream(names.stderr, STDERR)

    def _open_stream(self, name: str, stream: bytes) -> int | None:
        if not log_uri.is_log(name):
            return self._open_output(name)
        read, write = os.pipe2(os.O_CLOEXEC)
        self._log_ends.append(self._keep(write))
        self._record(read, stream, name)
        return write

    def _record(self, source: int, stream: bytes, name: str) -> None:
        """Have what comes from ``source`` recorded; it is closed here, in any case."""
        try:
            if name not in self._writers:
                self._writers[name] = LogWriter(*log_uri.parse(name))
            pump = LogPump(self._loop, source, stream, self._writers[name], self._output_ended)
        except BaseException:
            os.close(source)
            raise
        self._outputs.append(pump)
        self._copying += 1

    def _output_ended(self) -> None:
        self._copying -= 1
        if self._copying:
            return
        self._close_writers()
        if self._when_drained is not None:
            callback, self._when_drained = self._when_drained, None
            callback()

    def _close_writers(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _open_output(self, name: str) -> int | None:
        if not name:
            return None
        scheme, separator, _ = name.partition("://")
        path = name
        if separator:
            path = unquote(urlsplit(name).path)
            if scheme == "file":
                return self._keep(_open_file(path))
            if scheme != "fifo":
                raise InvalidArgument(f"unknown STDIO scheme {scheme!r:.40}")
        fd = os.open(path, _FIFO_FLAGS) if _is_fifo(path) else _open_file(path)
        os.set_blocking(fd, True)
        return self._keep(fd)

    def _keep(self, fd: int) -> int:
        self._keepers.append(fd)
        return fd

    def _open_logger(self, uri: str, ids: tuple[str, str]) -> None:
        """Start a logger: it reads our outputs as descriptors 3 and 4, and closes 5 when ready."""
        parts = urlsplit(uri)
        argv = [unquote(parts.path)]
        for key, value in parse_qsl(parts.query, keep_blank_values=True):
            argv += [key, value] if value else [key]
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        self.stdout, self.stderr = self._keep(out_write), self._keep(err_write)
        theirs = _apart([(out_read, 3), (err_read, 4), (ready_write, 5)])
        try:
            pid = process.spawn(
                argv,
                env={**os.environ, "CONTAINER_ID": ids[0], "CONTAINER_NAMESPACE": ids[1]},
                files=theirs,
                setsid=True,
            )
            while theirs:
                # it is ready when the last of the pipe's writing ends is closed
                os.close(theirs.pop()[0])
            if not select.select([ready_read], [], [], LOGGER_SECONDS)[0]:
                os.kill(pid, signal.SIGKILL)
                raise Unavailable(f"logger {argv[0]} was not ready in {LOGGER_SECONDS:.0f} s")
        finally:
            for fd in (ready_read, *(fd for fd, _ in theirs)):
                os.close(fd)

    def _open_console(self) -> None:
        console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # names of sockets are short: ours and the runtime's go through a descriptor of the bundle
        self._folder = os.open(self._bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        name = f"pty-{os.urandom(4).hex()}.sock"
        self.console_path = f"/proc/{os.getpid()}/fd/{self._folder}/{name}"
        console.bind(self.console_path)
        console.listen(1)
        self._console = console

    def started(self) -> None:
        """The runtime has the streams: take the terminal, drop what is not ours to keep."""
        if self._console is not None:
            self._take_console()
            return
        # the log's pipes end when the process and its children do
        for fd in (self.stdin, *self._log_ends):
            if fd is not None:
                self._keepers.remove(fd)
                os.close(fd)
        self.stdin = None
        self._log_ends.clear()

    def _drop_console(self, console: socket.socket) -> None:
        console.close()
        os.unlink(self.console_path)
        os.close(self._folder)
        self._folder = -1

    def _take_console(self) -> None:
        console = self._console
        if console is None:
            return
        try:
            console.settimeout(CONSOLE_SECONDS)
            peer, _ = console.accept()
            with peer:
                _, fds, _, _ = socket.recv_fds(peer, 4096, 1)
        except TimeoutError:
            raise Unavailable("the runtime sent no terminal") from None
        finally:
            self._forget_console()
        if not fds:
            raise Error("the runtime sent no terminal")
        self._master = fds[0]
        os.set_inheritable(self._master, False)
        self._raw_output()
        if log_uri.is_log(self.names.stdout):
            self._record(os.dup(self._master), STDOUT, self.names.stdout)
        elif self.names.stdout:
            target = self._open_output(self.names.stdout)
            if target is not None:
                copy, out = os.dup(self._master), os.dup(target)
                self._outputs.append(Pump(self._loop, copy, out, self._output_ended))
                self._copying += 1
        if self.names.stdin:
            source = os.open(self.names.stdin, _FIFO_FLAGS)
            self._stdin_pump = StdinPump(self._loop, source, os.dup(self._master))

    def _forget_console(self) -> None:
        console, self._console = self._console, None
        if console is not None:
            console.close()
            try:
                os.unlink(self.console_path)
            except FileNotFoundError:
                pass  # the bundle is gone, or it was never bound
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def _raw_output(self) -> None:
        """Newlines leave as they are: the client's own terminal turns them."""
        state = termios.tcgetattr(self._master)
        state[1] &= ~termios.ONLCR
        termios.tcsetattr(self._master, termios.TCSANOW, state)

    def drain(self, done: Callable[[], None]) -> None:
        """The process has ended: call ``done`` when what it wrote is copied."""
        if not self._copying:
            done()
            return
        self._when_drained = done
        self._await_drained(self._copied(), DRAIN_ROUNDS)

    def _copied(self) -> int:
        return sum(pump.copied for pump in self._outputs)

    def _await_drained(self, before: int, rounds: int) -> None:
        """Have patience while something is copied; a child may hold the streams for ever."""

        def look() -> None:
            callback, copied = self._when_drained, self._copied()
            if callback is None:
                return
            if copied != before and rounds:
                self._await_drained(copied, rounds - 1)
                return
            # the pumps go on until the process is deleted
            self._when_drained = None
            callback()

        self._loop.later(DRAIN_SECONDS, look)

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; raises InvalidArgument where there is no terminal."""
        if self._master < 0:
            raise InvalidArgument("process has no terminal")
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def close_stdin(self) -> None:
        """Nothing more will be written to the process's stdin, which may not be open yet."""
        self._input_ended = True
        if self._stdin_pump is not None and self._master < 0:
            self._stdin_pump.finish()

    def close(self) -> None:
        """Close the shim's ends."""
        for pump in self._outputs:
            pump.close()
        self._outputs.clear()
        self._close_writers()
        self.ended()

    def ended(self) -> None:
        """The process has ended: close all but what of its output is not copied yet."""
        pump, self._stdin_pump = self._stdin_pump, None
        if pump is not None:
            pump.close()
        for fd in self._keepers:
            os.close(fd)
        self._keepers.clear()
        self.stdin = self.stdout = self.stderr = None
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        self._forget_console()


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def _open_file(path: str) -> int:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return os.open(path, flags, 0o644)


def _apart(files: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Move descriptors out of the way of the numbers they are to have."""
    moved = []
    for fd, there in files:
        moved.append((fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64), there))
        os.close(fd)
    return moved
