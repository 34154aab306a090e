"""gRPC with asyncio, for shims that speak it: the client of runtime.ttrpc in other words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from kontti.errors import DeadlineExceeded, Error, Internal, InvalidArgument, Unavailable
from kontti.runtime.dial import dial
from kontti.wire.grpc import ClientConnection, Event, MessageReceived
from kontti.wire.protobuf import Message

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
NAMESPACE_HEADER = "containerd-namespace"
READ_SIZE = 64 << 10
MAX_TIMEOUT_MS = 99_999_999
"""grpc-timeout has room for eight digits."""


@dataclass(slots=True)
class _Call:
    """A call under way: its answer comes before the status, which decides."""

    ended: asyncio.Future[Error | None]
    messages: list[bytes] = field(default_factory=list)


class GrpcClient:
    """One connection; any number of calls at a time. ``on_lost`` is called once when it breaks."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, namespace: str
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._namespace = namespace
        self._connection = ClientConnection()
        self._calls: dict[int, _Call] = {}
        self._failure = ""
        self.on_lost: Callable[[], None] = lambda: None
        self._flush()
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, address: str, namespace: str, timeout: float) -> GrpcClient:
        """Connect as runtime.dial does, within ``timeout`` seconds."""
        reader, writer = await dial(address, timeout)
        return cls(reader, writer, namespace)

    async def call(
        self, method: str, request: Message, response: type[M], timeout: float | None
    ) -> M:
        """Call ``package.Service/Method``; ``timeout`` in seconds, None for a wait without end.

        Raises what the peer answers, DeadlineExceeded, Unavailable where the connection breaks.
        """
        if self._failure:
            raise Unavailable(self._failure)
        stream, call = self._begin(method, request, timeout)
        try:
            async with asyncio.timeout(timeout):
                # a broken connection is told by the reader alone: after on_lost, and to all alike
                with contextlib.suppress(OSError):
                    await self._writer.drain()
                error = await call.ended
        except TimeoutError:
            raise DeadlineExceeded(f"{method} was not answered in {timeout:.0f} s") from None
        finally:
            self._forget(stream)
        if error is not None:
            raise error
        return _decoded(method, call.messages, response)

    def _begin(self, method: str, request: Message, timeout: float | None) -> tuple[int, _Call]:
        metadata = [(NAMESPACE_HEADER, self._namespace)]
        if timeout is not None:
            milliseconds = min(max(int(timeout * 1000), 1), MAX_TIMEOUT_MS)
            metadata.append(("grpc-timeout", f"{milliseconds}m"))
        stream = self._connection.start_call(f"/{method}", metadata)
        call = _Call(asyncio.get_running_loop().create_future())
        self._calls[stream] = call
        self._connection.send_message(stream, request.encode(), end=True)
        self._flush()
        return stream, call

    def _forget(self, stream: int) -> None:
        call = self._calls.pop(stream, None)
        given_up = call is not None and (call.ended.cancelled() or not call.ended.done())
        if given_up and not self._failure:
            # the peer need not go on
            self._connection.cancel(stream)
            self._flush()

    def _flush(self) -> None:
        data = self._connection.data_to_send()
        if data:
            self._writer.write(data)

    async def _read(self) -> None:
        failure = "grpc: closed"
        try:
            while data := await self._reader.read(READ_SIZE):
                for event in self._connection.receive(data):
                    self._take(event)
                self._flush()
        except (OSError, Error) as error:
            failure = f"grpc: {error}"
        finally:
            self._fail(failure)

    def _take(self, event: Event) -> None:
        call = self._calls.get(event.stream_id)
        if call is None or call.ended.done():
            return
        if isinstance(event, MessageReceived):
            call.messages.append(event.data)
        else:
            call.ended.set_result(event.error)

    def _fail(self, failure: str) -> None:
        if self._failure:
            return
        self._failure = failure
        for call in self._calls.values():
            if not call.ended.done():
                call.ended.set_result(Unavailable(failure))
        self._calls.clear()
        self._writer.close()
        self.on_lost()

    async def close(self) -> None:
        """Hang up without telling ``on_lost``."""
        self.on_lost = lambda: None
        self._task.cancel()
        await asyncio.wait([self._task])
        # a reader that never ran has told nobody
        self._fail("grpc: closed")


def _decoded(method: str, messages: list[bytes], response: type[M]) -> M:
    if len(messages) != 1:
        raise Internal(f"{method} was answered with {len(messages)} messages")
    try:
        return response.decode(messages[0])
    except InvalidArgument as error:
        # the caller's argument was right; it is the answer that is not
        raise Internal(f"{method} was answered with garbage: {error.message}") from None
