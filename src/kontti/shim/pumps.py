"""Copying streams: from one descriptor to another, or into the log."""

from __future__ import annotations

import os

from kontti.shim.log_writer import READ_SIZE
from kontti.shim.loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kontti.shim.log_writer import LogWriter
    from kontti.shim.loop import Loop

CHUNK = 64 << 10
LAST_READS = 64
"""Of a stream whose process has ended: four times what a pipe holds by default, and no more."""


class Pump:
    """Copies one descriptor to another through one chunk: a slow end slows the other.

    Closes both at the source's end, or what is left of them when told to stop.
    """

    def __init__(
        self, loop: Loop, source: int, target: int, on_end: Callable[[], None] = lambda: None
    ) -> None:
        self._loop = loop
        self._source = source
        self._target = target
        self._buffer = b""
        self.copied = 0
        self._on_end = on_end
        os.set_blocking(source, False)
        os.set_blocking(target, False)
        loop.watch(source, READ, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._source, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a pty whose last slave is closed answers EIO
        if not data:
            self.close()
            return
        self._buffer = data
        self._write()

    def _write(self) -> None:
        try:
            done = os.write(self._target, self._buffer)
        except BlockingIOError:
            done = 0
        except OSError:
            self.close()
            return
        self.copied += done
        self._buffer = self._buffer[done:]
        if self._buffer:
            self._loop.forget(self._source)
            self._loop.watch(self._target, WRITE, self._write)
        else:
            self._loop.forget(self._target)
            self._loop.watch(self._source, READ, self._read)

    def close(self) -> None:
        """Stop, and close both ends."""
        if self._source < 0:
            return
        for fd in (self._source, self._target):
            self._loop.forget(fd)
            os.close(fd)
        self._source = self._target = -1
        self._on_end()


class StdinPump(Pump):
    """Copies a FIFO, which has no end of its own."""

    def __init__(self, loop: Loop, source: int, target: int) -> None:
        super().__init__(loop, source, target)
        self._finishing = False

    def finish(self) -> None:
        """Copy what is there, then end: our client has said that this is all."""
        self._finishing = True
        while self._source >= 0 and not self._buffer:
            try:
                data = os.read(self._source, CHUNK)
            except BlockingIOError:
                data = b""
            if not data:
                self.close()
                return
            self._buffer = data
            self._write()

    def _write(self) -> None:
        super()._write()
        if self._finishing and self._source >= 0 and not self._buffer:
            self.finish()


class LogPump:
    """Records what comes from ``source``, to its end or until told to stop."""

    def __init__(
        self, loop: Loop, source: int, stream: bytes, writer: LogWriter, on_end: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._source = source
        self._stream = stream
        self._writer = writer
        self._on_end = on_end
        self.copied = 0
        os.set_blocking(source, False)
        loop.watch(source, READ, self._ready)

    def _ready(self) -> None:
        # one read, and then whoever else has something to say
        self._read()

    def _read(self) -> bool:
        """Record what is there; False where there is nothing now."""
        try:
            data = os.read(self._source, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # a pty whose last slave is closed answers EIO
        if not data:
            self._end()
            return False
        self.copied += len(data)
        self._writer.write(self._stream, data)
        return True

    def close(self) -> None:
        """Record what is there, and stop: somebody may hold the other end for ever."""
        for _ in range(LAST_READS):
            if self._source < 0 or not self._read():
                break
        self._end()

    def _end(self) -> None:
        if self._source < 0:
            return
        self._loop.forget(self._source)
        os.close(self._source)
        self._source = -1
        self._on_end()
