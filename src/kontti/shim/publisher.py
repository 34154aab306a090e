"""Events to the daemon: in order, never waiting for it, kept (up to a bound) while it is away."""

from __future__ import annotations

import socket
import time

from kontti.shim.loop import READ, WRITE
from kontti.wire.messages.google import Any, Timestamp
from kontti.wire.messages.services.ttrpc.events.v1.events import ForwardRequest
from kontti.wire.messages.types.event import Envelope
from kontti.wire.ttrpc import NAMESPACE_KEY, ClientStreams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kontti.shim.loop import Loop
    from kontti.wire.protobuf import Message

METHOD = "containerd.services.events.ttrpc.v1.Events/Forward"
MAX_QUEUED = 2048
RETRY_SECONDS = (0.05, 0.2, 1.0, 5.0)


class Publisher:
    """Forwards events to the ttrpc socket ``address``; "" for nobody to hear them."""

    def __init__(self, loop: Loop, address: str, namespace: str) -> None:
        self._loop = loop
        self._address = address.removeprefix("unix://")
        self._namespace = namespace
        self._streams = ClientStreams()
        self._queue: list[bytes] = []
        self._unsent = b""
        self._socket: socket.socket | None = None
        self._failures = 0
        self._retrying = False
        self.on_idle: Callable[[], None] = lambda: None

    def publish(self, topic: str, event: Message) -> None:
        """Queue an event; past the bound the oldest is dropped."""
        if not self._address:
            return
        now = time.time_ns()
        envelope = Envelope(
            timestamp=Timestamp(seconds=now // 10**9, nanos=now % 10**9),
            namespace=self._namespace,
            topic=topic,
            event=Any(type_url=event.NAME, value=event.encode()),
        )
        self._queue.append(ForwardRequest(envelope=envelope).encode())
        if len(self._queue) > MAX_QUEUED:
            del self._queue[0]
        if not self._retrying:
            self._send()

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._queue and not self._unsent

    def _send(self) -> None:
        if self._socket is None and not self._connect():
            return
        while self._queue or self._unsent:
            if not self._unsent:
                stream, self._unsent = self._streams.call(
                    METHOD, self._queue[0], {NAMESPACE_KEY: self._namespace}
                )
                self._streams.forget(stream)
            try:
                sent = self._socket.send(self._unsent) if self._socket else 0
            except BlockingIOError:
                self._watch(READ | WRITE)
                return
            except OSError:
                self._lost()
                return
            self._unsent = self._unsent[sent:]
            if not self._unsent:
                self._queue.pop(0)
        self._watch(READ)
        self.on_idle()

    def _connect(self) -> bool:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        found.setblocking(False)
        try:
            found.connect(self._address)
        except OSError:
            found.close()
            self._retry()
            return False
        self._socket = found
        self._failures = 0
        return True

    def _watch(self, events: int) -> None:
        if self._socket is not None:
            self._loop.watch(self._socket.fileno(), events, self._ready)

    def _ready(self) -> None:
        # answers carry nothing that matters: they are read so that the daemon can go on writing
        try:
            alive = self._socket is not None and bool(self._socket.recv(65536))
        except BlockingIOError:
            alive = True
        except OSError:
            alive = False
        if not alive:
            self._lost()
        elif not self.idle:
            self._send()

    def _lost(self) -> None:
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
        self._socket = None
        self._unsent = b""  # the event at the head of the queue is sent again, whole
        if self._queue:
            self._retry()

    def _retry(self) -> None:
        if self._retrying:
            return
        self._retrying = True
        delay = RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)]
        self._failures += 1
        self._loop.later(delay, self._again)

    def _again(self) -> None:
        self._retrying = False
        if self._queue:
            self._send()
