"""One client's connection: bytes from the socket to the codec, its events to calls, and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from kontti.errors import Unavailable
from kontti.server.calls import Call
from kontti.services.rpc import Method
from kontti.wire.grpc_server import MAX_MESSAGE, UNIMPLEMENTED, Event, Request, ServerConnection
from kontti.wire.http2_frames import REFUSED_STREAM, ConnectionFault
from kontti.wire.http2_server import MAX_STREAMS

log = logging.getLogger(__name__)
GREETING_SECONDS = 120.0
LINGER_SECONDS = 5.0
READ_SIZE = 256 << 10


@dataclass(slots=True)
class Service:
    """What all connections of a server share: the methods by path, the limits, one read buffer."""

    methods: Mapping[str, Method]
    max_receive: int = MAX_MESSAGE
    max_send: int = MAX_MESSAGE
    connections: set[Connection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    # what is read is used before anybody else reads
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(READ_SIZE)))

    def unknown(self, path: str) -> str:
        """Why ``path`` is not among the methods, in grpc-go's words."""
        service, slash, method = path.removeprefix("/").rpartition("/")
        if not slash:
            return f'malformed method name: "{path}"'
        if any(known.startswith(f"/{service}/") for known in self.methods):
            return f"unknown method {method} for service {service}"
        return f"unknown service {service}"


class Connection(asyncio.BufferedProtocol):
    """A connection, from when it is made until it is lost."""

    def __init__(self, service: Service) -> None:
        self.wire = ServerConnection(max_receive=service.max_receive, max_send=service.max_send)
        self._running = 0
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, Call] = {}
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._paused = False
        self._senders: dict[int, asyncio.Future[None]] = {}

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet: clients wait for the settings."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._service.connections.add(self)
        self._timer = self._loop.call_later(GREETING_SECONDS, self.close)
        self.flush()

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where to read to."""
        return self._service.buffer

    def buffer_updated(self, count: int) -> None:
        """Something was read."""
        self._flushing = True
        before = self._running
        try:
            events = self.wire.receive(bytes(self._service.buffer[:count]))
        except ConnectionFault as fault:
            log.debug("grpc connection ended: %s", fault)
            self.close()
            return
        for event in events:
            self._take(event)
        if self._timer is not None and self.wire.http.settled:
            self._timer.cancel()
            self._timer = None
        if self._senders:
            self._wake_senders()
        if self._running > before:
            # behind the first step of what has begun: its answer goes out with the rest
            self._loop.call_soon(self.flush)
        else:
            self.flush()

    def pause_writing(self) -> None:
        """The socket takes no more: data waits, and who sends it."""
        self._paused = self.wire.http.out.held = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._paused = self.wire.http.out.held = False
        self.wire.http.out.push_all()
        self._wake_senders()
        self.flush_soon()

    def connection_lost(self, _error: Exception | None) -> None:
        """Nobody waits for any answer."""
        self._transport = None
        self._service.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        for call in list(self._calls.values()):
            call.cancel()

    # the calls' side

    def flush_soon(self) -> None:
        """Write once in this turn of the loop, whatever else is sent in it."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is to be sent."""
        self._flushing = False
        data = self.wire.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
        if self.wire.http.closing and not self.wire.http.out.windows:
            self.close()

    async def room(self, stream: int) -> None:
        """Wait until the peer, and the socket, have taken what a call has sent."""
        while self._paused or self.wire.pending(stream):
            waiter = self._senders[stream] = self._loop.create_future()
            try:
                await waiter
            finally:
                self._senders.pop(stream, None)

    def track(self, task: asyncio.Task[None]) -> None:
        """A call's handler runs."""
        self._running += 1
        self._service.tasks.add(task)
        task.add_done_callback(self._untrack)

    def _untrack(self, task: asyncio.Task[None]) -> None:
        self._running -= 1
        self._service.tasks.discard(task)

    def forget(self, call: Call) -> None:
        """A call is over."""
        self._calls.pop(call.stream, None)

    # the server's side

    def go_away(self) -> None:
        """Take no new calls; hang up once those under way have ended."""
        self.wire.http.go_away()
        self.flush()

    def hang_up(self) -> None:
        """End every call now."""
        for call in list(self._calls.values()):
            call.finish(Unavailable.code, "the server is stopping: unavailable")
        self.close()

    def close(self) -> None:
        """Hang up, once what is to be sent is sent; soon, where the peer does not read."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(self.wire.data_to_send())
        transport.close()
        for call in list(self._calls.values()):
            call.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_SECONDS, transport.abort)

    def _take(self, event: Event) -> None:
        if event.request is not None:
            self._start(event.stream, event.request)
        call = self._calls.get(event.stream)
        if call is None:
            return
        if event.gone:
            call.cancel()
            return
        if event.message is not None:
            call.message(event.message)
        if event.ended and event.stream in self._calls:
            call.end()

    def _start(self, stream: int, request: Request) -> None:
        method = self._service.methods.get(request.path)
        if method is None:
            self.wire.finish(stream, UNIMPLEMENTED, self._service.unknown(request.path))
        elif self._running >= MAX_STREAMS:
            # calls that were given up count until they have ended
            self.wire.reset(stream, REFUSED_STREAM)
        else:
            call = self._calls[stream] = Call(self, stream, method, request)
            call.begin()

    def _wake_senders(self) -> None:
        for stream, waiter in list(self._senders.items()):
            if not (self._paused or self.wire.pending(stream) or waiter.done()):
                waiter.set_result(None)
