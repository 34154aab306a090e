"""A process's streams for a caller in this process: FIFOs read and written by a thread."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from kontti.engine.values import Sink
from kontti.tasks.base import Stdio

CHUNK = 64 << 10
DRAIN_SECONDS = 10.0


class Streams:
    """``input`` goes to the process, what it writes to the sinks, from ``begin`` to ``finish``."""

    def __init__(self, directory: str, stdout: Sink, stderr: Sink, input: bytes | None) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._folder = tempfile.mkdtemp(dir=directory)
        self._input = input
        self._ended = False
        self._on_input_end: Callable[[], None] = lambda: None
        names = [os.path.join(self._folder, name) for name in ("stdin", "stdout", "stderr")]
        for name in names:
            os.mkfifo(name, 0o700)
        self.stdio = Stdio(names[0] if input is not None else "", names[1], names[2])
        reads = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        self._sinks = {os.open(names[1], reads): stdout, os.open(names[2], reads): stderr}
        both = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        self._feed = os.open(names[0], both) if input is not None else -1
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._copy, name="stdio", daemon=True)

    def begin(self, on_input_end: Callable[[], None]) -> None:
        """Copy: the process has been made. ``on_input_end`` is called, from another thread, when
        all input is written."""
        self._on_input_end = on_input_end
        self._thread.start()

    def _copy(self) -> None:
        poller = select.poll()
        for fd in (*self._sinks, self._wake_read):
            poller.register(fd, select.POLLIN)
        if self._feed >= 0:
            poller.register(self._feed, select.POLLOUT)
        while self._sinks:
            for fd, _ in poller.poll():
                if fd in self._sinks:
                    self._take(poller, fd)
                elif fd == self._feed:
                    self._give(poller)
                else:
                    self._woken(poller)

    def _take(self, poller: select.poll, fd: int) -> None:
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        if data:
            self._sinks[fd](data)
        else:
            self._drop(poller, fd)

    def _drop(self, poller: select.poll, fd: int) -> None:
        poller.unregister(fd)
        del self._sinks[fd]
        os.close(fd)

    def _give(self, poller: select.poll) -> None:
        if self._input:
            try:
                self._input = self._input[os.write(self._feed, self._input) :]
            except BlockingIOError:
                return
        if not self._input:
            poller.unregister(self._feed)
            os.close(self._feed)
            self._feed = -1
            self._on_input_end()

    def _woken(self, poller: select.poll) -> None:
        os.read(self._wake_read, 64)
        if self._ended:
            # the process is gone: what its FIFOs hold now is all there will be
            for fd in list(self._sinks):
                if not select.select([fd], [], [], 0)[0]:
                    self._drop(poller, fd)

    def finish(self) -> None:
        """The process has ended: read what is left."""
        self._thread.join(DRAIN_SECONDS)
        self._end()

    def _end(self) -> None:
        if self._thread.ident is None:
            return
        deadline = time.monotonic() + DRAIN_SECONDS
        self._ended = True
        while self._thread.is_alive() and time.monotonic() < deadline:
            os.write(self._wake_write, b"e")
            self._thread.join(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._end()
        for fd in (self._wake_read, self._wake_write, self._feed, *self._sinks):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        shutil.rmtree(self._folder, ignore_errors=True)
