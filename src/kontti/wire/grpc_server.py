"""The server's side of gRPC over HTTP/2: calls, messages and their status. No socket.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Where that leaves a choice, and in
its wording, it does as grpc-go does: what clients of containerd know.
"""

from __future__ import annotations

from kontti.errors import Error
from kontti.wire import http2_frames as h2
from kontti.wire.hpack import encode
from kontti.wire.http2_server import Http2Server, well_formed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kontti.wire.hpack import Header
    from kontti.wire.http2_frames import Received

MAX_MESSAGE = 16 << 20
MAX_HELD = 256 << 20
"""Bytes of requests, and of answers, that one connection may have us keep."""
KNOWN_REQUESTS = 64
INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 3, 4, 8, 12, 13
NANOSECOND = 1e-9
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": NANOSECOND}
_OF_PROTOCOL = frozenset(("content-type", "te", "grpc-encoding", "grpc-timeout"))

_CONTENT_TYPE = ("content-type", "application/grpc")
_OPEN = encode([(":status", "200"), _CONTENT_TYPE])
_OK = encode([("grpc-status", "0")])


class Refused(Error):
    """A call that the protocol itself ends, with status ``code`` and this very text."""

    def __init__(self, code: int, message: str, http_status: int = 200) -> None:
        super().__init__(message)
        self.code = code
        self.http_status = http_status


class Request:
    """What a call's headers say. ``timeout`` in seconds, None without one."""

    __slots__ = ("encoding", "metadata", "path", "refused", "timeout", "well_formed")

    def __init__(self, headers: list[Header]) -> None:
        self.well_formed = well_formed(headers)
        self.metadata: Mapping[str, str] = _first(headers)
        self.path = self.metadata.get(":path", "")
        self.encoding = self.metadata.get("grpc-encoding", "identity")
        self.timeout: float | None = None
        self.refused: Refused | None = None
        try:
            self._check()
        except Refused as refused:
            self.refused = refused

    def _check(self) -> None:
        kind = self.metadata.get("content-type", "")
        if kind != "application/grpc" and not kind.startswith(
            ("application/grpc+", "application/grpc;")
        ):
            text = f'invalid gRPC request content-type "{kind}"'
            raise Refused(INVALID_ARGUMENT, text, 415)
        if "grpc-timeout" in self.metadata:
            self.timeout = _seconds(self.metadata["grpc-timeout"])
        if (method := self.metadata.get(":method", "")) != "POST":
            text = f'Received a HEADERS frame with :method "{method}" which should be POST'
            raise Refused(INTERNAL, text, 405)
        if self.encoding not in ("identity", "gzip", ""):
            text = f'grpc: Decompressor is not installed for grpc-encoding "{self.encoding}"'
            raise Refused(UNIMPLEMENTED, text)


def _first(headers: list[Header]) -> dict[str, str]:
    """Of a name that comes more than once, the first value."""
    found = dict(headers)
    return found if len(found) == len(headers) else dict(reversed(headers))


def _seconds(text: str) -> float:
    """A grpc-timeout; raises Refused."""
    digits, unit = text[:-1], _UNITS.get(text[-1:])
    if unit is None or not 1 <= len(digits) <= 8 or not digits.isascii() or not digits.isdigit():
        raise Refused(INTERNAL, f'malformed grpc-timeout: "{text}"', 400)
    return int(digits) * unit


class Event:
    """What came for a call: its start, a message, the end of its messages, or that it is gone."""

    __slots__ = ("ended", "gone", "message", "request", "stream")

    def __init__(
        self,
        stream: int,
        request: Request | None = None,
        message: bytes | None = None,
        ended: bool = False,
        gone: bool = False,
    ) -> None:
        self.stream = stream
        self.request = request
        self.message = message
        self.ended = ended
        self.gone = gone


class _Call:
    """A call's requests: bytes of a message that is not whole, and what is ``waiting``."""

    __slots__ = ("buffer", "encoding", "held", "owed", "started", "waiting")

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding
        self.started = False
        self.buffer = bytearray()
        self.waiting = 0  # messages that nobody has taken
        self.held = 0  # bytes of those and of the buffer
        self.owed = 0  # bytes whose window was not given back


class ServerConnection:
    """Calls of one connection. ``data_to_send`` after each method; ``receive`` what came."""

    def __init__(
        self,
        http: Http2Server | None = None,
        *,
        max_receive: int = MAX_MESSAGE,
        max_send: int = MAX_MESSAGE,
    ) -> None:
        self.http = http or Http2Server()
        self._max_receive = max_receive
        self._max_send = max_send
        self._calls: dict[int, _Call] = {}
        self._requests: dict[tuple[Header, ...], Request] = {}
        self._held = 0

    def receive(self, data: bytes) -> list[Event]:
        """What ``data`` brought. Raises ConnectionFault, the farewell being ready to send."""
        events: list[Event] = []
        for received in self.http.receive(data):
            if received.headers is not None:
                self._start(received, events)
            elif received.stream in self._calls:
                self._take(received, events)
        return events

    def data_to_send(self) -> bytes:
        """What is to be written to the socket now."""
        return self.http.data_to_send()

    def taken(self, stream: int, message: bytes) -> None:
        """A message was used: there is room for more."""
        call = self._calls.get(stream)
        if call is None:
            return
        call.waiting -= 1
        size = len(message) + 5
        self._hold(call, -min(size, call.held))
        self._give_back(stream, call, min(size, call.owed) if call.waiting else call.owed)

    def start(self, stream: int) -> None:
        """Send a call's headers, if they are not sent yet."""
        call = self._calls.get(stream)
        if call is not None and not call.started:
            call.started = True
            self.http.out.put(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, _OPEN))

    def send_message(self, stream: int, data: bytes) -> None:
        """Send a message; raises Refused where it is too large."""
        self._check_size(data)
        self.start(stream)
        self.http.out.send(stream, b"\0" + len(data).to_bytes(4, "big") + data, end=False)

    def answer(self, stream: int, data: bytes) -> None:
        """Send a call's only message and its status, all well; raises Refused."""
        self._check_size(data)
        call = self._calls.get(stream)
        if call is None:
            return
        size = len(data) + 5
        if call.started or not self.http.out.takes(stream, size):
            self.send_message(stream, data)
            self.finish(stream)
            return
        self._forget(stream)
        head, prefix = h2.frame_head(size, h2.DATA, 0, stream), b"\0" + len(data).to_bytes(4, "big")
        first = h2.frame(h2.HEADERS, h2.END_HEADERS, stream, _OPEN)
        last = h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, stream, _OK)
        self.http.finish(stream, b"".join((first, head, prefix, data, last)))

    def finish(self, stream: int, code: int = 0, message: str = "") -> None:
        """End a call with a status."""
        call = self._forget(stream)
        if call is None:
            return
        status = [("grpc-status", str(code))]
        if message:
            status.append(("grpc-message", quote(message)))
        self._end(stream, status if call.started else [(":status", "200"), _CONTENT_TYPE, *status])

    def reset(self, stream: int, code: int) -> None:
        """Give a call up without a status."""
        self._forget(stream)
        self.http.give_up(stream, code)

    def pending(self, stream: int) -> int:
        """Bytes of a call that wait for the peer's window."""
        return self.http.out.pending(stream)

    def _end(self, stream: int, headers: list[Header]) -> None:
        block = encode(headers)
        self.http.finish(stream, self.http.out.headers(stream, block, h2.END_STREAM))

    def _start(self, received: Received, events: list[Event]) -> None:
        request = self._request(received.headers or [])
        stream = received.stream
        if not request.well_formed:
            self.http.give_up(stream, h2.PROTOCOL_ERROR)
        elif request.refused is not None:
            self._refuse(stream, request.refused)
        else:
            self._calls[stream] = _Call(request.encoding)
            events.append(Event(stream, request, None, received.ended))

    def _request(self, headers: list[Header]) -> Request:
        key = tuple(headers)
        request = self._requests.get(key)
        if request is None:
            if len(self._requests) >= KNOWN_REQUESTS:
                self._requests.clear()
            request = Request(headers)
            self._requests[key] = request
        return request

    def _refuse(self, stream: int, refused: Refused) -> None:
        accepted = [("grpc-accept-encoding", "identity,gzip")]
        self._end(
            stream,
            [
                (":status", str(refused.http_status)),
                _CONTENT_TYPE,
                ("grpc-status", str(refused.code)),
                ("grpc-message", quote(refused.message)),
                *(accepted if refused.code == UNIMPLEMENTED else ()),
            ],
        )

    def _take(self, received: Received, events: list[Event]) -> None:
        stream = received.stream
        if received.error is not None:
            self._forget(stream)
            events.append(Event(stream, gone=True))
            return
        before = len(events)
        try:
            self._messages(stream, self._calls[stream], received.data, events)
            if received.ended and self._calls[stream].buffer:
                raise Refused(INTERNAL, "unexpected EOF")
        except Refused as refused:
            self.finish(stream, refused.code, refused.message)
            events.append(Event(stream, gone=True))
            return
        if received.ended:
            if len(events) == before:
                events.append(Event(stream))
            events[-1].ended = True

    def _messages(self, stream: int, call: _Call, data: bytes, events: list[Event]) -> None:
        """The messages that are whole with ``data``; raises Refused."""
        self._hold(call, len(data))
        call.owed += len(data)
        if not call.buffer and data[:1] == b"\0" and _length(data) == len(data) - 5:
            # most messages come in one piece
            self._check_length(len(data) - 5)
            call.waiting += 1
            events.append(Event(stream, None, data[5:]))
            return
        buffer = call.buffer
        buffer += data
        while len(buffer) >= 5:
            size = _length(buffer)
            self._check_length(size)
            if len(buffer) < 5 + size:
                break
            message = self._plain(call, buffer[0], bytes(memoryview(buffer)[5 : 5 + size]))
            del buffer[: 5 + size]
            self._hold(call, len(message) - size)
            call.waiting += 1
            events.append(Event(stream, None, message))
        if not call.waiting:
            # the rest of a message that nobody can have yet
            self._give_back(stream, call, call.owed)

    def _plain(self, call: _Call, flag: int, data: bytes) -> bytes:
        if not flag:
            return data
        if flag != 1:
            raise Refused(INTERNAL, f"grpc: received unexpected payload format {flag}")
        if call.encoding != "gzip":
            text = "grpc: compressed flag set with identity or empty encoding"
            raise Refused(INTERNAL, text)
        return inflate(data, self._max_receive)

    def _hold(self, call: _Call, size: int) -> None:
        call.held += size
        self._held += size
        if self._held > MAX_HELD:
            raise Refused(RESOURCE_EXHAUSTED, "grpc: the connection's requests are too large")

    def _give_back(self, stream: int, call: _Call, size: int) -> None:
        call.owed -= size
        self.http.used(stream, size)

    def _check_length(self, size: int) -> None:
        if size > self._max_receive:
            text = f"grpc: received message larger than max ({size} vs. {self._max_receive})"
            raise Refused(RESOURCE_EXHAUSTED, text)

    def _check_size(self, data: bytes) -> None:
        if len(data) > self._max_send:
            text = f"trying to send message larger than max ({len(data)} vs. {self._max_send})"
            raise Refused(RESOURCE_EXHAUSTED, text)
        if self.http.out.waiting + len(data) > MAX_HELD:
            raise Refused(RESOURCE_EXHAUSTED, "grpc: the connection's answers are not taken")

    def _forget(self, stream: int) -> _Call | None:
        call = self._calls.pop(stream, None)
        if call is not None:
            self._held -= call.held
        return call


def _length(data: bytes | bytearray) -> int:
    return int.from_bytes(data[1:5], "big")


def inflate(data: bytes, limit: int) -> bytes:
    """A gzip message's contents; raises Refused for bad ones, and for more than ``limit`` bytes."""
    import zlib  # hardly any client compresses

    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        out = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise Refused(INTERNAL, f"grpc: failed to decompress the message: {error}") from None
    if len(out) > limit:
        text = f"grpc: received message after decompression larger than max {limit}"
        raise Refused(RESOURCE_EXHAUSTED, text)
    if not stream.eof or stream.unused_data:
        raise Refused(INTERNAL, "grpc: failed to decompress the message: unexpected EOF")
    return out


def quote(text: str) -> str:
    """``text`` as a grpc-message header has it: percent-encoded."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text
    data = text.encode("utf-8", "replace")
    return "".join(chr(b) if 32 <= b < 127 and b != 37 else f"%{b:02X}" for b in data)
