"""ttrpc over unix sockets with asyncio: the client for shims, the server for their events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from kontti.errors import DeadlineExceeded, Error, Internal, Unavailable, Unimplemented
from kontti.wire.protobuf import Message
from kontti.wire.ttrpc import (
    NAMESPACE_KEY,
    REQUEST,
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
        self._failure: Error | None = None
        self.on_lost: Callable[[], None] = lambda: None
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, address: str, namespace: str, timeout: float) -> TtrpcClient:
        """Connect to ``unix://path``; raises Unavailable after ``timeout`` seconds."""
        path = address.removeprefix("unix://")
        try:
            opened = asyncio.open_unix_connection(path)
            reader, writer = await asyncio.wait_for(opened, timeout)
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"shim at {path}: {str(error) or 'did not accept in time'}") from None
        return cls(reader, writer, namespace)

    async def call(
        self, method: str, request: Message, response: type[M], timeout: float | None
    ) -> M:
        """Call ``package.Service/Method``; ``timeout`` in seconds, None for a wait without end.

        Raises what the peer answers, DeadlineExceeded, Unavailable where the connection breaks.
        """
        if self._failure is not None:
            raise self._failure
        nanos = int(timeout * 1e9) if timeout else 0
        stream, frame = self._streams.call(method, request.encode(), self._metadata, nanos)
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[stream] = future
        try:
            self._writer.write(frame)
            async with asyncio.timeout(timeout):
                await self._writer.drain()
                answer = await future
        except TimeoutError:
            raise DeadlineExceeded(f"{method} was not answered in {timeout:.0f} s") from None
        except OSError as error:
            raise Unavailable(f"shim connection: {error}") from None
        finally:
            self._waiting.pop(stream, None)
            self._streams.forget(stream)
        return response.decode(answer.result())

    async def _read(self) -> None:
        decoder = Decoder()
        failure: Error = Unavailable("ttrpc: closed")
        try:
            while data := await self._reader.read(READ_SIZE):
                for frame in decoder.feed(data):
                    self._answered(frame)
        except (OSError, Error) as error:
            failure = Unavailable(f"ttrpc: {error}")
        finally:
            self._fail(failure)

    def _answered(self, frame: Frame) -> None:
        answer = self._streams.answer(frame)
        future = self._waiting.pop(frame.stream, None)
        if answer is not None and future is not None and not future.done():
            future.set_result(answer)

    def _fail(self, failure: Error) -> None:
        if self._failure is not None:
            return
        self._failure = failure
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(failure)
        self._waiting.clear()
        self._writer.close()
        self.on_lost()

    async def close(self) -> None:
        """Hang up without telling ``on_lost``."""
        self.on_lost = lambda: None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await self._task
        self._writer.close()


class TtrpcServer:
    """Serves ``handlers`` by ``package.Service/Method`` on a unix socket."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._path = ""
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, path: str, uid: int, gid: int) -> None:
        """Listen at ``path``, mode 0660."""
        before = os.umask(0o117)
        try:
            self._server = await asyncio.start_unix_server(self._accepted, path)
        finally:
            os.umask(before)
        os.chown(path, uid, gid)
        self._path = path

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
        try:
            await self._serve(reader, writer)
        except (OSError, Error) as error:
            log.debug("ttrpc connection ended: %s", error)
        except asyncio.CancelledError:
            pass  # the server stops
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder()
        slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        async with asyncio.TaskGroup() as calls:
            while data := await reader.read(READ_SIZE):
                for frame in decoder.feed(data):
                    if frame.kind == REQUEST:
                        await slots.acquire()
                        call = calls.create_task(self._call(frame, writer))
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
