"""Streams of bytes for threads: what reads and writes files reads and writes these."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import TypeVar, cast

from kontti.errors import Canceled, DeadlineExceeded
from kontti.streaming.base import Stream
from kontti.streaming.bytes import ByteReader, ByteWriter

T = TypeVar("T")
STALL_SECONDS = 600.0
"""How long a peer may neither send nor take anything."""


class BlockingReader:
    """``read`` of a file over a stream that lives on ``loop``, for one other thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, stream: Stream, stall: float = STALL_SECONDS
    ) -> None:
        self._loop = loop
        self._reader = ByteReader(stream)
        self._waits = Waits(loop, stall)
        self._left = b""
        self._over = False

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, none at the end; all there are to come where it is negative.

        Raises Canceled where the peer broke off, DeadlineExceeded where it stalls.
        """
        if size < 0:
            pieces = []
            while piece := self.read(1 << 20):
                pieces.append(piece)
            return b"".join(pieces)
        if not self._left and not self._over and size:
            self._left = self._waits.wait(self._reader.read())
            self._over = not self._left
        piece, self._left = self._left[:size], self._left[size:]
        return piece

    def abort(self) -> None:
        """From another thread: what is read now, and after, raises Canceled."""
        self._waits.abort()

    def close(self) -> None:
        """Read no more."""
        self._loop.call_soon_threadsafe(self._reader.close)


class BlockingWriter:
    """``write`` of a file over a stream that lives on ``loop``, for one other thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, stream: Stream, stall: float = STALL_SECONDS
    ) -> None:
        self._waits = Waits(loop, stall)
        self._writer = self._waits.wait(_writer(stream))
        self._last = Waits(loop, stall)

    def write(self, data: bytes) -> int:
        """All of ``data``; raises Canceled where the peer broke off, DeadlineExceeded."""
        self._waits.wait(self._writer.write(data))
        return len(data)

    def abort(self) -> None:
        """From another thread: what is written now, and after, raises Canceled."""
        self._waits.abort()

    def close(self) -> None:
        """That was all. Twice is fine."""
        self._last.wait(self._writer.close())


async def _writer(stream: Stream) -> ByteWriter:
    return ByteWriter(stream)


class Waits:
    """Has work done on ``loop``, and waits for it, until another thread aborts."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stall: float) -> None:
        self._loop, self._stall = loop, stall
        self._lock = threading.Lock()
        self._future: Future[object] | None = None
        self._aborted = False

    def wait(self, work: Coroutine[object, object, T]) -> T:
        """What ``work`` gives; raises what it does, DeadlineExceeded, Canceled."""
        future = self._begin(work)
        try:
            return future.result(self._stall)
        except TimeoutError:
            future.cancel()
            raise DeadlineExceeded("the peer of a stream stalls") from None
        except (CancelledError, asyncio.CancelledError):
            raise Canceled("stream") from None
        except BaseException:
            future.cancel()
            raise

    def _begin(self, work: Coroutine[object, object, T]) -> Future[T]:
        with self._lock:
            if self._aborted:
                work.close()
                raise Canceled("stream")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._future = cast("Future[object]", future)
            return future

    def abort(self) -> None:
        """End what is waited for."""
        with self._lock:
            self._aborted = True
            if self._future is not None:
                self._future.cancel()
