"""Starts layer workers, talks to them with a deadline, and never leaves one behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

from kontti.diff.job import END, FRAME, Result, decode_result
from kontti.errors import Canceled, DeadlineExceeded, Internal, from_code
from kontti.linux import process

# -I -S: neither the environment nor site-packages hooks run in a process that is about to chroot
_BOOT = (
    "import sys; sys.path[:] = sys.argv[1:]; from kontti.diff.worker import main; sys.exit(main())"
)
# glibc gives chunks of a megabyte back to the kernel with each free, which costs a page fault for
# every page of the next: 100,000 of them for a layer of 400 MB (mallopt(3))
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(8 << 20), "MALLOC_TRIM_THRESHOLD_": str(32 << 20)}
_READ = 1 << 18
PIPE = 1 << 20
_REAP_SECONDS = 10.0
IDLE_SECONDS = 30.0
# how often a wait looks whether it is still wanted
_LOOK_SECONDS = 0.2
_STDERR_TAIL = 2000


class Worker:
    """One worker process: started, it waits for its request; closed, it is gone."""

    def __init__(self) -> None:
        self._stderr = os.memfd_create("worker-stderr")
        stdin, self._stdin = os.pipe()
        self._stdout, stdout = os.pipe()
        _widen(self._stdout)
        try:
            self._pid = process.spawn(
                [sys.executable, "-I", "-S", "-c", _BOOT, *filter(os.path.isabs, sys.path)],
                env=_ENVIRONMENT,
                stdin=stdin,
                stdout=stdout,
                stderr=self._stderr,
                setsid=True,
            )
        except BaseException:
            self._close_files()
            raise
        finally:
            os.close(stdin)
            os.close(stdout)
        self._buffer = bytearray()
        self._result: Result | None = None
        self.stopped: Callable[[], bool] | None = None
        """Whether nobody wants the result any more: waits then raise Canceled."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, request: bytes, deadline: float, blob: Iterable[bytes] = ()) -> Result:
        """The result of a task that sends nothing before it; raises the worker's error."""
        self.send(request, blob, deadline)
        return self.finish(deadline)

    def finish(self, deadline: float) -> Result:
        """The result of what it was sent; raises the worker's error."""
        for _ in self.frames(deadline):
            pass
        return self.result()

    def send(self, request: bytes, blob: Iterable[bytes], deadline: float) -> None:
        """The request, and the blob where the worker is to read it from here."""
        os.set_blocking(self._stdin, False)
        try:
            self._write(request, deadline)
            for chunk in blob:
                self._write(chunk, deadline)
        except BrokenPipeError:
            # it has ended early and says why on its standard output
            return

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            _await(self._stdin, select.POLLOUT, deadline, self.stopped)
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                continue

    def frames(self, deadline: float) -> Iterator[bytes]:
        """The data it sends before its result."""
        while (head := self._read(FRAME, deadline)) != END:
            if len(head) < FRAME:
                return
            yield self._read(int.from_bytes(head, "big"), deadline)
        self._result = decode_result(self._read(-1, deadline))

    def result(self) -> Result:
        """How the task ended, after all frames were read; raises the worker's error."""
        if self._result is None:
            raise Internal(f"layer worker ended without a result: {self._complaint()}")
        code = self._result.get("error")
        if code is not None:
            raise from_code(code, self._result.get("message", ""))
        return self._result

    def _read(self, count: int, deadline: float) -> bytes:
        while count < 0 or len(self._buffer) < count:
            _await(self._stdout, select.POLLIN, deadline, self.stopped)
            data = os.read(self._stdout, _READ)
            if not data:
                count = len(self._buffer)
                break
            self._buffer += data
        taken = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return taken

    def _complaint(self) -> str:
        size = os.fstat(self._stderr).st_size
        tail = os.pread(self._stderr, _STDERR_TAIL, max(0, size - _STDERR_TAIL))
        return tail.decode(errors="replace").strip() or "no message"

    def is_idle(self) -> bool:
        """Whether it lives and has nothing to say."""
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Kill it if it still runs, and reap it."""
        try:
            os.kill(self._pid, signal.SIGKILL)
            process.wait(self._pid, _REAP_SECONDS)
        except (ProcessLookupError, ChildProcessError):
            # a program that embeds us may reap whatever ends
            pass
        finally:
            self._close_files()

    def _close_files(self) -> None:
        for fd in (self._stdin, self._stdout, self._stderr):
            os.close(fd)


def _widen(pipe: int) -> None:
    """Have a whole frame go through a pipe at once; who has too many pipes keeps a small one."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)


def _await(fd: int, event: int, deadline: float, stopped: Callable[[], bool] | None) -> None:
    poll = select.poll()
    poll.register(fd, event)
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll((left if stopped is None else min(left, _LOOK_SECONDS)) * 1000):
            return
        if stopped is not None and stopped():
            raise Canceled("layer worker is not wanted any more")
    raise DeadlineExceeded("layer worker did not finish in time")


class Workers:
    """Hands out workers; keeps up to ``warm`` of them started ahead of need, for a while."""

    def __init__(self, warm: int = 0, idle_seconds: float = IDLE_SECONDS) -> None:
        self._warm, self._idle_seconds = warm, idle_seconds
        self._timer: threading.Timer | None = None
        self._idle: list[Worker] = []
        self._lock = threading.Lock()
        self._closed = False

    def take(self) -> Worker:
        """A started worker, the caller's to close."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return Worker()
            if worker.is_idle():
                return worker
            worker.close()

    def refill(self) -> None:
        """Start what is missing; called when there is time for it."""
        with self._lock:
            while len(self._idle) < self._warm and not self._closed:
                self._idle.append(Worker())
            if self._idle:
                self._rearm()

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self._idle_seconds, self.end_idle)
        self._timer.daemon = True
        self._timer.start()

    def end_idle(self) -> None:
        """End those that nobody needed: each holds as much memory as two containers."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def close(self) -> None:
        """End the idle ones, and keep no more."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        self.end_idle()
