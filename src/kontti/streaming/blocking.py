"""Streams of bytes for threads: what reads and writes files reads and writes these."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

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
        self._stall = stall
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
            self._left = _wait(self._loop, self._reader.read(), self._stall)
            self._over = not self._left
        piece, self._left = self._left[:size], self._left[size:]
        return piece

    def close(self) -> None:
        """Read no more."""
        self._loop.call_soon_threadsafe(self._reader.close)


class BlockingWriter:
    """``write`` of a file over a stream that lives on ``loop``, for one other thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, stream: Stream, stall: float = STALL_SECONDS
    ) -> None:
        self._loop = loop
        self._stall = stall
        self._writer = _wait(loop, _writer(stream), stall)

    def write(self, data: bytes) -> int:
        """All of ``data``; raises Canceled where the peer broke off, DeadlineExceeded."""
        _wait(self._loop, self._writer.write(data), self._stall)
        return len(data)

    def close(self) -> None:
        """That was all."""
        _wait(self._loop, self._writer.close(), self._stall)


async def _writer(stream: Stream) -> ByteWriter:
    return ByteWriter(stream)


def _wait(loop: asyncio.AbstractEventLoop, work: Coroutine[object, object, T], stall: float) -> T:
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result(stall)
    except TimeoutError:
        future.cancel()
        raise DeadlineExceeded("the peer of a stream stalls") from None
    except asyncio.CancelledError:
        raise Canceled("stream") from None
    except BaseException:
        future.cancel()
        raise
