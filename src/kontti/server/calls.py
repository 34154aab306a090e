"""One gRPC call: its requests as they come, its handler, its answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from kontti.errors import Canceled, DeadlineExceeded, Error
from kontti.services.rpc import Method
from kontti.wire.grpc_server import INTERNAL, Refused, Request, ServerConnection
from kontti.wire.http2_frames import CANCEL

log = logging.getLogger(__name__)
LARGE = 64 << 10
BURST = 32
UNKNOWN = 2


class Owner(Protocol):
    """The connection of a call. ``room`` waits until the peer has taken what a call has sent."""

    wire: ServerConnection

    def flush(self) -> None: ...
    def flush_soon(self) -> None: ...
    def track(self, task: asyncio.Task[None]) -> None: ...
    async def room(self, stream: int) -> None: ...
    def forget(self, call: Call) -> None: ...


class Requests:
    """A client's messages, one after another."""

    __slots__ = ("_call", "_ended", "_queue", "_waiter")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._queue: deque[bytes] = deque()
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Any:
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._call.take(self._queue.popleft())

    def put(self, data: bytes) -> None:
        """One more."""
        self._queue.append(data)
        self._wake()

    def end(self) -> None:
        """No more."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Call:
    """A call under way; the ``Context`` of its handler."""

    __slots__ = (
        "_message", "_method", "_owner", "_requests", "_task", "_timeout", "_timer", "metadata",
        "stream",
    )  # fmt: skip

    def __init__(self, owner: Owner, stream: int, method: Method, request: Request) -> None:
        self.stream = stream
        self.metadata: Mapping[str, str] = request.metadata
        self._owner = owner
        self._method = method
        self._timeout = request.timeout
        self._message: bytes | None = None
        self._requests: Requests | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Start the handler, if it takes its requests as they come."""
        if self._method.client_streaming:
            self._requests = Requests(self)
            self._run(self._requests)

    def start(self) -> None:
        """Send the call's headers now."""
        self._owner.wire.start(self.stream)
        self._owner.flush_soon()

    def message(self, data: bytes) -> None:
        """A request has come."""
        if self._requests is not None:
            self._requests.put(data)
        elif self._message is None:
            self._message = data
        else:
            text = "received multiple request messages for non-client-streaming RPC"
            self.finish(INTERNAL, f"cardinality violation: {text}")

    def end(self) -> None:
        """No more requests come."""
        if self._requests is not None:
            self._requests.end()
        elif self._message is None:
            text = "received no request message from non-client-streaming RPC"
            self.finish(INTERNAL, f"cardinality violation: {text}")
        else:
            self._run_with(self._message)

    def take(self, data: bytes) -> Any:
        """A request to use now."""
        self._owner.wire.taken(self.stream, data)
        self._owner.flush_soon()
        return self._parse(data)

    def finish(self, code: int = 0, message: str = "") -> None:
        """Answer the status, unless there was one, and have the handler end."""
        self._owner.wire.finish(self.stream, code, message)
        self._owner.flush_soon()
        self.cancel()

    def cancel(self) -> None:
        """Have the handler end: nobody waits for the answer."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
        self._owner.forget(self)

    def _run_with(self, data: bytes) -> None:
        try:
            request = self._parse(data)
        except Refused as refused:
            self.finish(refused.code, refused.message)
            return
        self._run(request)

    def _parse(self, data: bytes) -> Any:
        try:
            return self._method.parse(data)
        except DecodeError as error:
            raise Refused(INTERNAL, f"grpc: error unmarshalling request: {error}") from None

    def _run(self, request: Any) -> None:
        if self._method.quick:
            self._answer_now(request)
        elif self._timeout is not None and self._timeout <= 0:
            self._expire()
        else:
            self._begin(lambda: self._method.function(request, self))

    def _begin(self, work: Callable[[], Any]) -> None:
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._handle(work))
        self._owner.track(self._task)
        if self._timeout is not None:
            self._timer = loop.call_later(self._timeout, self._expire)

    def _answer_now(self, request: Any) -> None:
        try:
            answer = self._method.function(request, self)
            if isinstance(answer, AsyncGenerator | Coroutine):
                self._begin(lambda: answer)
                return
            self._owner.wire.answer(self.stream, self._method.serialize(answer))
        except Exception as error:  # noqa: BLE001 every failure becomes a status
            self._fail(error)
        self._owner.forget(self)

    def _expire(self) -> None:
        if self._owner.wire.pending(self.stream):
            # no status can come after a part of a message
            self._owner.wire.reset(self.stream, CANCEL)
        self.finish(DeadlineExceeded.code, DeadlineExceeded.wording)

    async def _handle(self, work: Callable[[], Any]) -> None:
        try:
            if self._method.server_streaming:
                await self._stream(work())
            else:
                answer = await work()
                self._owner.wire.answer(self.stream, self._method.serialize(answer))
        except asyncio.CancelledError:
            # where it was not we who cancelled, somebody waits
            self._owner.wire.finish(self.stream, Canceled.code, Canceled.wording)
            raise
        except Exception as error:  # noqa: BLE001 every failure becomes a status
            self._fail(error)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._owner.flush_soon()
            self._owner.forget(self)

    async def _stream(self, work: AsyncGenerator[Any, None]) -> None:
        wire, stream, sent = self._owner.wire, self.stream, 0
        async with contextlib.aclosing(work) as answers:
            async for answer in answers:
                data = self._method.serialize(answer)
                wire.send_message(stream, data)
                if len(data) < LARGE:
                    self._owner.flush_soon()
                else:
                    self._owner.flush()
                await self._owner.room(stream)
                sent += 1
                if not sent % BURST:
                    # a handler that never waits must not hold up the others
                    await asyncio.sleep(0)
        wire.finish(stream)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, Error):
            self._owner.wire.finish(self.stream, error.code, error.message)
            return
        log.error("%s failed", self._method.name, exc_info=error)
        self._owner.wire.finish(self.stream, UNKNOWN, str(error) or type(error).__name__)
