"""Bytes over a stream: containerd.types.transfer.Data one way, WindowUpdate the other.

Who reads says how much he takes, and says so again as he has read; who writes sends no more than
that. The end of the bytes is the end of the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from kontti.errors import Canceled, Error, InvalidArgument
from kontti.streaming.base import Stream
from kontti.values import AnyValue
from kontti.wire.messages.types.transfer.streaming import Data, WindowUpdate
from kontti.wire.protobuf import Message
from kontti.wire.typeurl import name_of

log = logging.getLogger(__name__)
CHUNK = 32 << 10
WINDOW = 2 * CHUNK
MAX_WINDOW = (1 << 31) - 1


class ByteReader:
    """Reads the bytes that a peer writes to ``stream``. For one task at a time."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._window = 0

    async def read(self) -> bytes:
        """The next piece, none at the end; raises Canceled where the peer broke off."""
        while True:
            await self._widen()
            message = await self._stream.recv()
            if message is None:
                self._stream.close()
                return b""
            if name_of(message.type_url) != Data.NAME:
                log.warning("unexpected %.100s on a stream of bytes", message.type_url)
                continue
            data = Data.decode(message.value).data
            self._window -= len(data)
            if data:
                return data

    async def _widen(self) -> None:
        if self._window >= WINDOW:
            return
        # one that has sent all and closed hears no more, and needs not to
        with contextlib.suppress(Canceled):
            await self._stream.send(pack(WindowUpdate(update=WINDOW)))
            self._window += WINDOW

    def close(self) -> None:
        """Read no more."""
        self._stream.close()


class ByteWriter:
    """Writes bytes for the peer that reads ``stream``. For one task at a time; to be closed."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._window = 0
        self._failure: Error | None = None
        self._changed = asyncio.Event()
        self._updates = asyncio.get_running_loop().create_task(self._hear())

    async def write(self, data: bytes) -> None:
        """Send all of ``data`` as the peer takes it; raises Canceled where it does not."""
        left = memoryview(data)
        while left:
            while self._window <= 0:
                if self._failure is not None:
                    raise self._failure
                self._changed.clear()
                await self._changed.wait()
            size = min(CHUNK, self._window, len(left))
            self._window -= size
            await self._stream.send(pack(Data(data=bytes(left[:size]))))
            left = left[size:]

    async def _hear(self) -> None:
        failure: Error = Canceled("the peer reads no more")
        try:
            while (message := await self._stream.recv()) is not None:
                self._update(message)
        except Error as error:
            failure = error
        finally:
            self._failure = failure
            self._changed.set()

    def _update(self, message: AnyValue) -> None:
        if name_of(message.type_url) != WindowUpdate.NAME:
            log.warning("unexpected %.100s on a stream of bytes", message.type_url)
            return
        update = WindowUpdate.decode(message.value).update
        if update < 0:
            raise InvalidArgument(f"window update of {update}")
        self._window = min(self._window + update, MAX_WINDOW)
        self._changed.set()

    async def close(self) -> None:
        """That was all."""
        self._stream.close()
        self._updates.cancel()
        await asyncio.wait([self._updates])


def pack(message: Message) -> AnyValue:
    """A message for a stream."""
    return AnyValue(message.NAME, message.encode())
