"""What talks to a shim: its client, who hears its events, and a FIFO's other end."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from pathlib import Path
from typing import TypeVar

from kontti.wire.messages.google import Status
from kontti.wire.messages.services.ttrpc.events.v1.events import ForwardRequest
from kontti.wire.messages.types.event import Envelope
from kontti.wire.protobuf import Message
from kontti.wire.ttrpc import ClientStreams, Decoder, Response, encode_response

M = TypeVar("M", bound=Message)
SECONDS = 10.0


class Client:
    """A blocking ttrpc client of one shim; answers may come in any order."""

    def __init__(self, address: str, version: int = 3) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(SECONDS)
        self._socket.connect(address.removeprefix("unix://"))
        self._service = f"containerd.task.v{version}.Task/"
        self._streams = ClientStreams()
        self._decoder = Decoder()
        self._answers: dict[int, Response] = {}

    def send(self, method: str, request: Message) -> int:
        """Ask; the stream that will carry the answer. Of another service with its name and /."""
        name = method if "/" in method else self._service + method
        stream, frame = self._streams.call(name, request.encode(), {})
        self._socket.sendall(frame)
        return stream

    def send_raw(self, data: bytes) -> None:
        """Send bytes that need not be frames."""
        self._socket.sendall(data)

    def receive(self, stream: int, response: type[M], seconds: float = SECONDS) -> M:
        """The answer to ``stream``; raises what the shim answered, TimeoutError."""
        deadline = time.monotonic() + seconds
        while stream not in self._answers:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the shim hung up")
            for frame in self._decoder.feed(data):
                answer = self._streams.answer(frame)
                if answer is not None:
                    self._answers[frame.stream] = answer
        return response.decode(self._answers.pop(stream).result())

    def call(self, method: str, request: Message, response: type[M]) -> M:
        """Ask, and wait for the answer."""
        return self.receive(self.send(method, request), response)

    def closed(self) -> bool:
        """Whether the shim hangs up without another word."""
        self._socket.settimeout(SECONDS)
        return self._socket.recv(1) == b""

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class Events:
    """A daemon's event socket. It reads when it is asked: a shim never waits for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[Envelope] = []
        self._peers: dict[socket.socket, Decoder] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)

    def _pump(self, seconds: float) -> None:
        for ready in select.select([self._listener, *self._peers], [], [], seconds)[0]:
            if ready is self._listener:
                self._peers[self._listener.accept()[0]] = Decoder()
                continue
            data = ready.recv(65536)
            if not data:
                del self._peers[ready]
                ready.close()
                continue
            for frame in self._peers[ready].feed(data):
                self._hear(ForwardRequest.decode(frame.request().payload))
                with contextlib.suppress(BrokenPipeError):  # the shim ends when it has told all
                    ready.sendall(encode_response(frame.stream, Response(status=Status())))

    def _hear(self, request: ForwardRequest) -> None:
        if request.envelope is not None:
            self.heard.append(request.envelope)

    def until(self, topic: str, event: type[M]) -> M:
        """The first event of a topic, when it has come."""
        deadline = time.monotonic() + SECONDS
        while True:
            for envelope in self.heard:
                if envelope.topic == f"/tasks/{topic}" and envelope.event is not None:
                    return event.decode(envelope.event.value)
            assert time.monotonic() < deadline, f"no {topic}: {self.topics()}"
            self._pump(deadline - time.monotonic())

    def topics(self) -> list[str]:
        """What was heard, by topic."""
        return [envelope.topic.removeprefix("/tasks/") for envelope in self.heard]

    def close(self) -> None:
        """Go away."""
        for one in (self._listener, *self._peers):
            one.close()


class Fifo:
    """A FIFO with a client's end of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self.reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.data = b""

    def read(self, size: int = 65536) -> bytes:
        """What comes next; nothing at the end."""
        ready = select.select([self.reader], [], [], SECONDS)[0]
        assert ready, f"nothing more after {self.data[-200:]!r}"
        found = os.read(self.reader, size)
        self.data += found
        return found

    def all(self) -> bytes:
        """Everything until the last writer has closed it."""
        while self.read():
            pass
        return self.data

    def until(self, text: bytes) -> bytes:
        """Everything until ``text`` has come."""
        while text not in self.data:
            assert self.read(), f"ended with {self.data[-200:]!r}"
        return self.data

    def close(self) -> None:
        """Close our end."""
        os.close(self.reader)
