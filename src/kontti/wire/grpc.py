"""The client's side of gRPC over HTTP/2: calls, messages and their status. No socket.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

from kontti.errors import Error, Internal, Unavailable, from_code
from kontti.wire.http2 import Http2Connection
from kontti.wire.http2_frames import Received

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kontti.wire.hpack import Header

MAX_MESSAGE = 64 << 20


class MessageReceived:
    """A message of a call."""

    __slots__ = ("data", "stream_id")

    def __init__(self, stream_id: int, data: bytes) -> None:
        self.stream_id = stream_id
        self.data = data


class CallEnded:
    """A call is over: ``error`` None where it went well."""

    __slots__ = ("error", "stream_id")

    def __init__(self, stream_id: int, error: Error | None) -> None:
        self.stream_id = stream_id
        self.error = error


Event = MessageReceived | CallEnded


class ClientConnection:
    """Calls on one connection."""

    def __init__(self) -> None:
        self._http = Http2Connection()
        self._buffers: dict[int, bytearray] = {}

    def start_call(self, path: str, metadata: Iterable[Header]) -> int:
        """Open a call of ``/package.Service/Method``; gives its stream's number."""
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *metadata,
        ]
        stream = self._http.open(headers)
        self._buffers[stream] = bytearray()
        return stream

    def send_message(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Send a message, the last one where ``end``."""
        self._http.send(stream_id, b"\0" + len(data).to_bytes(4, "big") + data, end=end)

    def end(self, stream_id: int) -> None:
        """Send no more messages."""
        self._http.send(stream_id, b"", end=True)

    def pending(self, stream_id: int) -> int:
        """Bytes of a call that wait for the peer's window."""
        return self._http.pending(stream_id)

    def cancel(self, stream_id: int) -> None:
        """Give a call up."""
        self._buffers.pop(stream_id, None)
        self._http.reset(stream_id)

    def data_to_send(self) -> bytes:
        """What is to be written to the socket now."""
        return self._http.data_to_send()

    def receive(self, data: bytes) -> list[Event]:
        """What ``data`` brought; raises Unavailable where the peer breaks the protocol."""
        events: list[Event] = []
        for received in self._http.receive(data):
            if received.stream in self._buffers:
                self._take(received, events)
        return events

    def _take(self, received: Received, events: list[Event]) -> None:
        stream = received.stream
        problem = received.error
        if received.data and problem is None:
            problem = self._messages(stream, received.data, events)
        if problem is None and received.headers is not None:
            status = dict(received.headers)
            if received.ended:
                problem = _status(status) or self._cut_short(stream)
            elif status.get(":status") != "200":
                problem = Unavailable(f"http status {status.get(':status')}")
        if received.ended or problem is not None:
            if received.headers is None and problem is None:
                problem = Internal("the call ended without a status")
            if not received.ended:
                self._http.reset(stream)
            self._buffers.pop(stream, None)
            events.append(CallEnded(stream, problem))

    def _cut_short(self, stream: int) -> Error | None:
        return Internal("the call ended inside a message") if self._buffers[stream] else None

    def _messages(self, stream: int, data: bytes, events: list[Event]) -> Error | None:
        buffer = self._buffers[stream]
        buffer += data
        while len(buffer) >= 5:
            size = int.from_bytes(buffer[1:5], "big")
            if buffer[0] or size > MAX_MESSAGE:
                return Internal("a message is compressed, or too large")
            if len(buffer) < 5 + size:
                break
            events.append(MessageReceived(stream, bytes(buffer[5 : 5 + size])))
            del buffer[: 5 + size]
        return None


def _status(headers: dict[str, str]) -> Error | None:
    """The error in a call's last headers, None for success."""
    text = headers.get("grpc-status")
    if text is None:
        return Unavailable(f"no gRPC status, http status {headers.get(':status', 'unknown')}")
    code = int(text) if len(text) < 4 and text.isascii() and text.isdigit() else 2
    return from_code(code, _unquote(headers.get("grpc-message", ""))) if code else None


def _unquote(text: str) -> str:
    """Percent-decoding of grpc-message; what is malformed stays as it is."""
    if "%" not in text:
        return text.encode("latin-1").decode("utf-8", "replace")
    out = bytearray()
    pos = 0
    while pos < len(text):
        digits = text[pos + 1 : pos + 3]
        if text[pos] == "%" and len(digits) == 2 and _is_hex(digits):
            out.append(int(digits, 16))
            pos += 3
        else:
            out += text[pos].encode("latin-1")
            pos += 1
    return out.decode("utf-8", "replace")


def _is_hex(digits: str) -> bool:
    return all(c in "0123456789abcdefABCDEF" for c in digits)
