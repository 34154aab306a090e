"""ttrpc over unix sockets with asyncio: the client for shims, the server for their events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from kontti.errors import (
    DeadlineExceeded,
    Error,
    Internal,
    InvalidArgument,
    Unavailable,
    Unimplemented,
)
from kontti.runtime.dial import dial
from kontti.wire.protobuf import Message
from kontti.wire.ttrpc import (
    NAMESPACE_KEY,
    REQUEST,
    RESPONSE,
    ClientStreams,
    Decoder,
    Frame,
    Response,
    encode_response,
    error_response,
)

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
READ_SIZE = 64 << 10
MAX_IN_FLIGHT = 256
BACKLOG = 1024
"""Every shim connects again when a daemon starts."""
_CREDENTIALS = struct.Struct("3i")

Handler = Callable[[str, bytes], Awaitable[bytes]]
"""Takes the caller's namespace and the request's bytes, gives the response's."""


class TtrpcClient:
    """One connection; any number of calls at a time. ``on_lost`` is called once when it breaks."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, namespace: str
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._metadata = {NAMESPACE_KEY: namespace}
        self._streams = ClientStreams()
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._failure = ""
        self.on_lost: Callable[[], None] = lambda: None
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, address: str, namespace: str, timeout: float) -> TtrpcClient:
        """Connect as runtime.dial does, within ``timeout`` seconds."""
        reader, writer = await dial(address, timeout)
        return cls(reader, writer, namespace)

    @property
    def listener_pid(self) -> int:
        """Who called listen(2) on the other end (unix(7), SO_PEERCRED)."""
        peer = self._writer.get_extra_info("socket")
        packed = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, _, _ = _CREDENTIALS.unpack(packed)
        return int(pid)

    async def call(
        self, method: str, request: Message, response: type[M], timeout: float | None
    ) -> M:
        """Call ``package.Service/Method``; ``timeout`` in seconds, None for a wait without end.

        Raises what the peer answers, DeadlineExceeded, Unavailable where the connection breaks.
        """
        if self._failure:
            raise Unavailable(self._failure)
        nanos = int(timeout * 1e9) if timeout else 0
        stream, frame = self._streams.call(method, request.encode(), self._metadata, nanos)
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[stream] = future
        try:
            self._writer.write(frame)
            async with asyncio.timeout(timeout):
                # a broken connection is told by the reader alone: after on_lost, and to all alike
                with contextlib.suppress(OSError):
                    await self._writer.drain()
                answer = await future
        except TimeoutError:
            raise DeadlineExceeded(f"{method} was not answered in {timeout:.0f} s") from None
        finally:
            self._waiting.pop(stream, None)
            self._streams.forget(stream)
        payload = answer.result()
        try:
            return response.decode(payload)
        except InvalidArgument as error:
            # the caller's argument was right; it is the answer that is not
            raise Internal(f"{method} was answered with garbage: {error.message}") from None

    async def _read(self) -> None:
        decoder = Decoder()
        failure = "ttrpc: closed"
        try:
            while data := await self._reader.read(READ_SIZE):
                for frame in decoder.feed(data):
                    self._answered(frame)
        except (OSError, Error) as error:
            failure = f"ttrpc: {error}"
        finally:
            self._fail(failure)

    def _answered(self, frame: Frame) -> None:
        future = self._waiting.get(frame.stream)
        if frame.kind == RESPONSE and (future is None or future.done()):
            return
        try:
            answer = self._streams.answer(frame)
        except InvalidArgument as error:
            # one answer that cannot be read must not end the other calls; a wrong frame must
            if frame.kind != RESPONSE or future is None:
                raise
            future.set_exception(Internal(f"ttrpc: {error.message}"))
            return
        if answer is not None and future is not None:
            future.set_result(answer)

    def _fail(self, failure: str) -> None:
        if self._failure:
            return
        self._failure = failure
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable(failure))
        self._waiting.clear()
        self._writer.close()
        self.on_lost()

    async def close(self) -> None:
        """Hang up without telling ``on_lost``."""
        self.on_lost = lambda: None
        self._task.cancel()
        await asyncio.wait([self._task])
        # a reader that never ran has told nobody
        self._fail("ttrpc: closed")


class TtrpcServer:
    """Serves ``handlers`` by ``package.Service/Method`` on a unix socket."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._path = ""
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, path: str, uid: int, gid: int) -> None:
        """Listen at ``path``, mode 0660; raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            self._path = path
            # nobody can connect before listen(2), so there is no moment with other rights
            os.chmod(path, 0o660)
            os.chown(path, uid, gid)
            self._server = await asyncio.start_unix_server(
                self._accepted, sock=listener, backlog=BACKLOG
            )
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        """Accept no more, hang up, take the socket away."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._path and os.path.exists(self._path):
            os.unlink(self._path)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        calls: set[asyncio.Task[None]] = set()
        try:
            await self._serve(reader, writer, calls)
            await asyncio.gather(*calls)
        except (OSError, Error) as error:
            log.debug("ttrpc connection ended: %s", error)
        except asyncio.CancelledError:
            pass  # the server stops
        finally:
            for call in calls:
                call.cancel()
            writer.close()

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        calls: set[asyncio.Task[None]],
    ) -> None:
        """Until the peer hangs up; raises InvalidArgument where it sends what is no frame."""
        decoder = Decoder()
        slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        while data := await reader.read(READ_SIZE):
            for frame in decoder.feed(data):
                if frame.kind != REQUEST:
                    raise InvalidArgument(f"ttrpc frame of type {frame.kind} from a client")
                await slots.acquire()
                call = asyncio.create_task(self._call(frame, writer))
                calls.add(call)
                call.add_done_callback(calls.discard)
                call.add_done_callback(lambda _: slots.release())

    async def _call(self, frame: Frame, writer: asyncio.StreamWriter) -> None:
        try:
            request = frame.request()
            name = f"{request.service}/{request.method}"
            handler = self._handlers.get(name)
            if handler is None:
                raise Unimplemented(f"method {name}")
            response = Response(payload=await handler(request.namespace(), request.payload))
        except Error as error:
            response = error_response(error)
        except Exception as error:  # one call's failure must not end the connection
            log.exception("ttrpc call failed")
            response = error_response(Internal(str(error)))
        with contextlib.suppress(OSError):
            writer.write(encode_response(frame.stream, response))
            await writer.drain()
