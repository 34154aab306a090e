"""The client's side of an HTTP/2 connection (RFC 9113), as far as gRPC needs it. No socket."""

from __future__ import annotations

from kontti.errors import (
    Canceled,
    Error,
    Internal,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from kontti.wire.hpack import Decoder, Header, HeaderError, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM = ACK = 1
END_HEADERS, PADDED, HAS_PRIORITY = 4, 8, 32
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, ENABLE_PUSH = 4, 5, 2
DEFAULT_WINDOW = 65535
OUR_WINDOW = 4 << 20
OUR_FRAME = 1 << 20
MAX_WINDOW = (1 << 31) - 1
FRAME_SIZES = range(1 << 14, 1 << 24)
REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY = 7, 8, 11, 12
MAX_BLOCK = 256 << 10


class Received:
    """Something that arrived for a stream: headers, data, or its end with ``error`` or without."""

    __slots__ = ("data", "ended", "error", "headers", "stream")

    def __init__(
        self,
        stream: int,
        *,
        headers: list[Header] | None = None,
        data: bytes = b"",
        ended: bool = False,
        error: Error | None = None,
    ) -> None:
        self.stream = stream
        self.headers = headers
        self.data = data
        self.ended = ended
        self.error = error


class Http2Connection:
    """Streams opened by us. ``data_to_send`` after each call; ``receive`` what the peer sent."""

    def __init__(self) -> None:
        settings = _setting(ENABLE_PUSH, 0) + _setting(INITIAL_WINDOW_SIZE, OUR_WINDOW)
        settings += _setting(MAX_FRAME_SIZE, OUR_FRAME)
        self._out = bytearray(PREFACE + _frame(SETTINGS, 0, 0, settings))
        self._out += _frame(WINDOW_UPDATE, 0, 0, (OUR_WINDOW - DEFAULT_WINDOW).to_bytes(4, "big"))
        self._in = bytearray()
        self._headers = Decoder()
        self._next = 1
        self._peer_window = DEFAULT_WINDOW
        self._peer_initial = DEFAULT_WINDOW
        self._peer_frame = 16384
        self._windows: dict[int, int] = {}
        self._unsent: dict[int, list[tuple[memoryview, bool]]] = {}
        self._consumed: dict[int, int] = {}
        self._consumed_all = 0
        self._block: tuple[int, bool, bytearray] | None = None
        self._ended_by: Error | None = None

    def open(self, headers: Iterable[Header]) -> int:
        """Start a stream; raises Unavailable where the peer takes no more."""
        if self._ended_by is not None:
            raise self._ended_by
        block = encode(headers)
        stream = self._next
        self._next += 2
        self._windows[stream] = self._peer_initial
        self._consumed[stream] = 0
        self._out += _frame(HEADERS, END_HEADERS, stream, block)
        return stream

    def send(self, stream: int, data: bytes, *, end: bool) -> None:
        """Queue data on a stream, sent as far as the peer's window goes."""
        if stream in self._windows:
            self._unsent.setdefault(stream, []).append((memoryview(data), end))
            self._push(stream)

    def pending(self, stream: int) -> int:
        """Bytes that wait for the peer's window."""
        return sum(len(data) for data, _ in self._unsent.get(stream, ()))

    def reset(self, stream: int) -> None:
        """Give a stream up."""
        if self._windows.pop(stream, None) is not None:
            self._unsent.pop(stream, None)
            self._consumed.pop(stream, None)
            self._out += _frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big"))

    def data_to_send(self) -> bytes:
        """What is to be written to the socket now."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> list[Received]:
        """What arrived with ``data``; raises Unavailable where the peer breaks the protocol."""
        self._in += data
        found: list[Received] = []
        try:
            for kind, flags, stream, body in self._frames():
                found += self._take(kind, flags, stream, body)
        except HeaderError as error:
            raise Unavailable(f"http2: {error.message}") from None
        return found

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while len(self._in) >= 9:
            length = int.from_bytes(self._in[:3], "big")
            if length > OUR_FRAME:
                raise Unavailable("http2: frame is too large")
            if len(self._in) < 9 + length:
                return
            kind, flags = self._in[3], self._in[4]
            stream = int.from_bytes(self._in[5:9], "big") & 0x7FFFFFFF
            body = bytes(self._in[9 : 9 + length])
            del self._in[: 9 + length]
            yield kind, flags, stream, body

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> list[Received]:
        if self._block is not None and kind != CONTINUATION:
            raise Unavailable("http2: header block is interrupted")
        _check_length(kind, len(body))
        if kind == DATA:
            return self._take_data(flags, stream, body)
        if kind in (HEADERS, CONTINUATION):
            return self._take_headers(kind, flags, stream, body)
        if kind == RST_STREAM:
            return self._take_reset(stream, body)
        if kind == GOAWAY:
            return self._take_goaway(body)
        if kind == SETTINGS:
            self._take_settings(flags, body)
        elif kind == PING and not flags & ACK:
            self._out += _frame(PING, ACK, 0, body)
        elif kind == WINDOW_UPDATE:
            self._take_window(stream, body)
        elif kind == PUSH_PROMISE:
            raise Unavailable("http2: the peer pushes, though it may not")
        return []

    def _take_data(self, flags: int, stream: int, body: bytes) -> list[Received]:
        self._consumed_all += len(body)
        if self._consumed_all > OUR_WINDOW // 2:
            self._out += _frame(WINDOW_UPDATE, 0, 0, self._consumed_all.to_bytes(4, "big"))
            self._consumed_all = 0
        if stream not in self._windows:
            return []
        self._consumed[stream] += len(body)
        ended = bool(flags & END_STREAM)
        if self._consumed[stream] > OUR_WINDOW // 2 and not ended:
            self._out += _frame(WINDOW_UPDATE, 0, stream, self._consumed[stream].to_bytes(4, "big"))
            self._consumed[stream] = 0
        if ended:
            self._forget(stream)
        return [Received(stream, data=_unpadded(flags, body), ended=ended)]

    def _take_headers(self, kind: int, flags: int, stream: int, body: bytes) -> list[Received]:
        if kind == HEADERS:
            block = _without_priority(flags, _unpadded(flags, body))
            self._block = (stream, bool(flags & END_STREAM), bytearray(block))
        elif self._block is None or self._block[0] != stream:
            raise Unavailable("http2: continuation of nothing")
        elif not body and not flags & END_HEADERS:
            # frames that add nothing could go on for ever
            raise Unavailable("http2: continuation without anything in it")
        else:
            self._block[2].extend(body)
        if len(self._block[2]) > MAX_BLOCK:
            raise Unavailable("http2: header block is too large")
        if not flags & END_HEADERS:
            return []
        _, ended, whole = self._block
        self._block = None
        headers = self._headers.decode(bytes(whole))
        if stream not in self._windows:
            return []
        if ended:
            self._forget(stream)
        return [Received(stream, headers=headers, ended=ended)]

    def _take_reset(self, stream: int, body: bytes) -> list[Received]:
        if stream not in self._windows:
            return []
        self._forget(stream)
        return [Received(stream, ended=True, error=_reset_error(int.from_bytes(body, "big")))]

    def _take_goaway(self, body: bytes) -> list[Received]:
        last = int.from_bytes(body[:4], "big") & 0x7FFFFFFF
        why = body[8:].decode(errors="replace")
        self._ended_by = Unavailable(f"http2: the peer goes away: {why or 'no reason given'}")
        lost = [stream for stream in self._windows if stream > last]
        for stream in lost:
            self._forget(stream)
        return [Received(stream, ended=True, error=self._ended_by) for stream in lost]

    def _take_settings(self, flags: int, body: bytes) -> None:
        if flags & ACK:
            return
        if len(body) % 6:
            raise Unavailable("http2: settings are cut short")
        for pos in range(0, len(body), 6):
            name = int.from_bytes(body[pos : pos + 2], "big")
            self._take_setting(name, int.from_bytes(body[pos + 2 : pos + 6], "big"))
        self._out += _frame(SETTINGS, ACK, 0, b"")
        self._push_all()

    def _take_setting(self, name: int, value: int) -> None:
        if name == INITIAL_WINDOW_SIZE:
            change = value - self._peer_initial
            self._peer_initial = _checked_window(value)
            for stream in self._windows:
                self._windows[stream] = _checked_window(self._windows[stream] + change)
        elif name == MAX_FRAME_SIZE:
            if value not in FRAME_SIZES:
                raise Unavailable(f"http2: frames cannot be of {value} bytes")
            self._peer_frame = value

    def _take_window(self, stream: int, body: bytes) -> None:
        more = int.from_bytes(body, "big") & 0x7FFFFFFF
        if not more:
            raise Unavailable("http2: window grows by nothing")
        if stream == 0:
            self._peer_window = _checked_window(self._peer_window + more)
            self._push_all()
        elif stream in self._windows:
            self._windows[stream] = _checked_window(self._windows[stream] + more)
            self._push(stream)

    def _push_all(self) -> None:
        for stream in list(self._unsent):
            self._push(stream)

    def _push(self, stream: int) -> None:
        """Send what a stream has queued, as far as its window and the connection's go."""
        queue = self._unsent.get(stream, [])
        while queue:
            data, end = queue[0]
            room = min(self._peer_window, self._windows[stream], self._peer_frame)
            if data and room <= 0:
                return
            piece, rest = (data[:room], data[room:]) if data else (data, data)
            flags = END_STREAM if end and not rest else 0
            self._out += _frame(DATA, flags, stream, piece)
            self._peer_window -= len(piece)
            self._windows[stream] -= len(piece)
            if rest:
                queue[0] = (rest, end)
            else:
                queue.pop(0)
        self._unsent.pop(stream, None)

    def _forget(self, stream: int) -> None:
        self._windows.pop(stream, None)
        self._unsent.pop(stream, None)
        self._consumed.pop(stream, None)


def _frame(kind: int, flags: int, stream: int, body: bytes | memoryview) -> bytes:
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


def _setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + value.to_bytes(4, "big")


def _unpadded(flags: int, body: bytes) -> bytes:
    if not flags & PADDED:
        return body
    if not body or body[0] >= len(body):
        raise Unavailable("http2: padding is longer than its frame")
    return body[1 : len(body) - body[0]]


def _without_priority(flags: int, body: bytes) -> bytes:
    if not flags & HAS_PRIORITY:
        return body
    if len(body) < 5:
        raise Unavailable("http2: headers are cut short")
    return body[5:]


def _check_length(kind: int, length: int) -> None:
    wanted = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}.get(kind, length)
    if length != wanted or (kind == GOAWAY and length < 8):
        raise Unavailable(f"http2: frame of type {kind} has {length} bytes")


def _checked_window(size: int) -> int:
    if size > MAX_WINDOW:
        raise Unavailable("http2: window is too large")
    return size


def _reset_error(code: int) -> Error:
    """A reset's error as gRPC tells them apart (PROTOCOL-HTTP2.md, "Errors")."""
    known: dict[int, type[Error]] = {
        REFUSED_STREAM: Unavailable,
        CANCEL: Canceled,
        ENHANCE_YOUR_CALM: ResourceExhausted,
        INADEQUATE_SECURITY: PermissionDenied,
    }
    return known.get(code, Internal)(f"http2: stream was reset with code {code}")
