"""The ttrpc server of a shim: frames in, calls to the service, answers out in any order."""

from __future__ import annotations

import os
import socket

from kontti.errors import Error, Internal, InvalidArgument, Unimplemented
from kontti.shim.loop import READ, WRITE
from kontti.wire.ttrpc import REQUEST, Decoder, Response, encode_response, error_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kontti.shim.loop import Loop
    from kontti.wire.protobuf import Message
    from kontti.wire.ttrpc import Frame

    Answer = Callable[[Message | Error], None]
    Handler = Callable[[str, bytes, Answer], None]

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
SANDBOX = "containerd.runtime.sandbox.v1.Sandbox"
READ_SIZE = 64 << 10
BACKLOG = 1024
MAX_UNSENT = 16 << 20
"""Bytes that wait for a peer that does not read, before it is hung up on."""


class Server:
    """Accepts on ``listener``; ``services`` do the calls, by the service's name."""

    def __init__(
        self, loop: Loop, listener: socket.socket, services: Mapping[str, Handler]
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._services = services
        self.connections: set[Connection] = set()
        listener.setblocking(False)
        loop.watch(listener.fileno(), READ, self._accept)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        peer.setblocking(False)
        self.connections.add(Connection(self._loop, peer, self._services, self.connections))

    def close(self) -> None:
        """Accept no more."""
        self._loop.forget(self._listener.fileno())
        self._listener.close()


class Connection:
    """One peer."""

    def __init__(
        self,
        loop: Loop,
        peer: socket.socket,
        services: Mapping[str, Handler],
        siblings: set[Connection],
    ) -> None:
        self._loop = loop
        self._peer = peer
        self._services = services
        self._siblings = siblings
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._open = True
        self._events = READ
        loop.watch(peer.fileno(), READ, self._ready)

    def _read(self) -> None:
        try:
            data = self._peer.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for frame in self._decoder.feed(data):
                self._dispatch(frame)
        except InvalidArgument:
            # what follows bytes that are no frames cannot be told from garbage
            self.close()

    def _dispatch(self, frame: Frame) -> None:
        if frame.kind != REQUEST:
            return
        answered = False

        def answer(result: Message | Error) -> None:
            nonlocal answered
            if answered:
                return
            answered = True
            failed = isinstance(result, Error)
            response = error_response(result) if failed else Response(payload=result.encode())  # type: ignore[arg-type,union-attr]
            self.send(encode_response(frame.stream, response))

        try:
            request = frame.request()
            handle = self._services.get(request.service)
            if handle is None:
                raise Unimplemented(f"service {request.service}")
            handle(request.method, request.payload, answer)
        except Error as error:
            answer(error)
        except Exception as error:  # noqa: BLE001 one call's failure must not end the containers' keeper
            answer(Internal(f"{type(error).__name__}: {error}"))

    def send(self, data: bytes) -> None:
        """Send now what the socket takes, the rest when it takes more."""
        if not self._open:
            return
        self._unsent += data
        self._write()
        if len(self._unsent) > MAX_UNSENT:
            self.close()

    def _write(self) -> None:
        try:
            sent = self._peer.send(self._unsent)
            del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        events = READ | WRITE if self._unsent else READ
        if events != self._events:
            self._events = events
            self._loop.watch(self._peer.fileno(), events, self._ready)

    def _ready(self) -> None:
        if self._unsent:
            self._write()
        if self._open:
            self._read()

    def flush(self) -> None:
        """Send everything, waiting at most a second: the process is about to end."""
        if self._open and self._unsent:
            self._peer.settimeout(1.0)
            try:
                self._peer.sendall(self._unsent)
            except OSError:
                return

    def close(self) -> None:
        """Hang up."""
        if self._open:
            self._open = False
            self._loop.forget(self._peer.fileno())
            self._peer.close()
            self._siblings.discard(self)


def listen(path: str) -> socket.socket:
    """A listening unix socket at ``path``, mode 0600; what was there before is replaced."""
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    return listener
