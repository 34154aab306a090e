"""Starting, waiting for and ending processes: the only user of posix_spawn and fork."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time

from kontti.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEVNULL = "/dev/null"
# an interpreter without site: our own path is all that our helpers' few imports need
_PREAMBLE = "import sys; sys.path[:0] = {path!r}; "


class Completed:
    """How a command ended. A negative ``returncode`` is the signal that ended it."""

    __slots__ = ("returncode", "stderr", "stdout")

    def __init__(self, returncode: int, stdout: bytes, stderr: bytes) -> None:
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


def interpreter(program: str) -> list[str]:
    """The command line that runs ``program`` with our own modules and no others to be imported."""
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [sys.executable, "-I", "-S", "-c", _PREAMBLE.format(path=[source]) + program]


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    files: Sequence[tuple[int, int]] = (),
    setsid: bool = False,
) -> int:
    """Start ``argv`` (its first word a path); gives the pid.

    ``stdin``, ``stdout`` and ``stderr`` are descriptors; stdin is /dev/null where None, the others
    ours. ``files`` are further (descriptor, descriptor there) pairs. Everything else that is
    close-on-exec is closed. Raises OSError.
    """
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
    if stdin is None:
        actions.append((os.POSIX_SPAWN_OPEN, 0, DEVNULL, os.O_RDONLY, 0))
    wanted = [(stdin, 0), (stdout, 1), (stderr, 2), *files]
    actions += [(os.POSIX_SPAWN_DUP2, fd, there) for fd, there in wanted if fd is not None]
    return os.posix_spawn(
        argv[0],
        list(argv),
        os.environ if env is None else dict(env),
        file_actions=actions,
        setsid=setsid,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM),
    )


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    input: bytes = b"",
    limit: int = 1 << 20,
    group: bool = False,
) -> Completed:
    """Run ``argv`` to its end; past ``timeout`` seconds it is killed and TimeoutError raised.

    Output past ``limit`` bytes of each stream is thrown away. With ``group`` nothing that it
    started and left in its process group outlives it.
    """
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = _pipes(3)
    try:
        pid = spawn(argv, env=env, stdin=in_read, stdout=out_write, stderr=err_write, setsid=group)
    except BaseException:
        for fd in (in_write, out_read, err_read):
            os.close(fd)
        raise
    finally:
        for fd in (in_read, out_write, err_write):
            os.close(fd)
    deadline = time.monotonic() + timeout
    try:
        out, err = _exchange(in_write, input, (out_read, err_read), deadline, limit)
        _ended(pid, max(0.0, deadline - time.monotonic()))
        if group:
            # before it is waited for, which would free its number for another group
            _kill(-pid)
    except BaseException:
        _kill(-pid if group else pid)
        os.waitpid(pid, 0)
        raise
    return Completed(wait(pid, None), out, err)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        # of a group there may be no more than its leader, which is dead and not waited for
        pass


def _pipes(count: int) -> list[tuple[int, int]]:
    """That many, or none: short of descriptors is when a leak hurts."""
    made: list[tuple[int, int]] = []
    try:
        for _ in range(count):
            made.append(os.pipe())  # noqa: PERF401 those made so far are to be closed
    except OSError:
        for fd in sum(made, ()):
            os.close(fd)
        raise
    return made


def _exchange(
    feed: int, data: bytes, sources: tuple[int, int], deadline: float, limit: int
) -> tuple[bytes, bytes]:
    """Write ``data`` to ``feed`` and read both sources to their end."""
    poller = select.poll()
    found = {fd: bytearray() for fd in sources}
    open_fds = {*sources, feed}
    os.set_blocking(feed, False)
    for fd in open_fds:
        poller.register(fd, select.POLLOUT if fd == feed else select.POLLIN)
    try:
        while open_fds - {feed} or (feed in open_fds and data):
            for fd, _ in _poll(poller, deadline):
                if fd == feed:
                    data = _feed(fd, data)
                    ended = not data
                else:
                    chunk = os.read(fd, 65536)
                    found[fd] += chunk[: max(0, limit - len(found[fd]))]
                    ended = not chunk
                if ended:
                    poller.unregister(fd)
                    open_fds.discard(fd)
                    os.close(fd)
    finally:
        for fd in open_fds:
            os.close(fd)
    return bytes(found[sources[0]]), bytes(found[sources[1]])


def _poll(poller: select.poll, deadline: float) -> list[tuple[int, int]]:
    ready = poller.poll(max(0, int((deadline - time.monotonic()) * 1000)))
    if not ready:
        raise TimeoutError("command did not end in time")
    return ready


def _feed(fd: int, data: bytes) -> bytes:
    """Write what the pipe takes; what is left of ``data``, none where nobody reads."""
    if not data:
        return b""
    try:
        return data[os.write(fd, data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def wait(pid: int, timeout: float | None) -> int:
    """Wait for our child ``pid``; its exit code, or minus the signal. Raises TimeoutError."""
    if timeout is not None:
        _ended(pid, timeout)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _ended(pid: int, timeout: float) -> None:
    """Return when it has ended; raises TimeoutError."""
    fd = os.pidfd_open(pid)
    try:
        # not select(2), which knows descriptors below 1024 only
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(timeout * 1000):
            raise TimeoutError(f"process {pid} did not end in {timeout:.1f} s")
    finally:
        os.close(fd)


def fork() -> int:
    """fork(2), for single-threaded processes of ours alone: the shim's zygote and what it forks."""
    return os.fork()


def raise_open_files() -> int:
    """Let this process have as many descriptors open as it may.

    How many it could have before, 0 where that is the same. The soft limit is low for the sake of
    programs that use select(2), which ours do not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return 0
    set_open_files(hard)
    return soft


def set_open_files(count: int) -> None:
    """Set how many descriptors this process may have open, up to what is allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard) if hard >= 0 else count, hard))


def set_child_subreaper() -> None:
    """Orphans below this process become its children (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)


def set_pdeathsig(number: int) -> None:
    """Get signal ``number`` when the parent dies."""
    libc.prctl(libc.PR_SET_PDEATHSIG, number)


def signal_number(text: str) -> int:
    """``SIGTERM``, ``TERM``, ``term`` or ``15`` as a number; raises ValueError."""
    if text.isascii() and text.isdigit():
        number = int(text)
        if 0 < number < signal.NSIG:
            return number
        raise ValueError(f"unknown signal {text!r}")
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name.startswith(("SIGRTMIN", "SIGRTMAX")):
        return _realtime(text, name)
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise ValueError(f"unknown signal {text!r}") from None


def _realtime(text: str, name: str) -> int:
    base = signal.SIGRTMIN if name.startswith("SIGRTMIN") else signal.SIGRTMAX
    sign, offset = name[8:9], name[9:]
    if sign and (sign not in "+-" or not offset.isascii() or not offset.isdigit()):
        raise ValueError(f"unknown signal {text!r}")
    number = base + int(f"{sign}{offset}" or 0)
    if not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
        raise ValueError(f"unknown signal {text!r}")
    return number
