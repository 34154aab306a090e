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
from kontti.wire import http2_frames as h2
from kontti.wire.hpack import Header, encode
from kontti.wire.http2_frames import ACK, OUR_WINDOW, BlockReader, FrameReader, Outflow, Received

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Http2Connection:
    """Streams opened by us. ``data_to_send`` after each call; ``receive`` what the peer sent."""

    def __init__(self) -> None:
        settings = h2.setting(h2.ENABLE_PUSH, 0) + h2.setting(h2.INITIAL_WINDOW_SIZE, OUR_WINDOW)
        settings += h2.setting(h2.MAX_FRAME_SIZE, h2.OUR_FRAME)
        self._out = Outflow()
        self._out.put(h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0, settings))
        self._out.put(h2.grow(0, OUR_WINDOW - h2.DEFAULT_WINDOW))
        self._frames = FrameReader()
        self._blocks = BlockReader()
        self._next = 1
        self._consumed: dict[int, int] = {}
        self._consumed_all = 0
        self._ended_by: Error | None = None

    def open(self, headers: Iterable[Header]) -> int:
        """Start a stream; raises Unavailable where the peer takes no more."""
        if self._ended_by is not None:
            raise self._ended_by
        block = encode(headers)
        stream = self._next
        self._next += 2
        self._consumed[stream] = 0
        self._out.open(stream)
        self._out.put(self._out.headers(stream, block))
        return stream

    def send(self, stream: int, data: bytes, *, end: bool) -> None:
        """Queue data on a stream, sent as far as the peer's window goes."""
        self._out.send(stream, data, end=end)

    def pending(self, stream: int) -> int:
        """Bytes that wait for the peer's window."""
        return self._out.pending(stream)

    def reset(self, stream: int) -> None:
        """Give a stream up."""
        if self._forget(stream):
            self._out.put(h2.reset(stream, h2.CANCEL))

    def data_to_send(self) -> bytes:
        """What is to be written to the socket now."""
        return self._out.data_to_send()

    def receive(self, data: bytes) -> list[Received]:
        """What arrived with ``data``; raises Unavailable where the peer breaks the protocol."""
        found: list[Received] = []
        for kind, flags, stream, body in self._frames.feed(data):
            found += self._take(kind, flags, stream, body)
        return found

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> list[Received]:
        self._blocks.check(kind)
        if kind == h2.DATA:
            return self._take_data(flags, stream, body)
        if kind in (h2.HEADERS, h2.CONTINUATION):
            return self._take_headers(kind, flags, stream, body)
        if kind == h2.RST_STREAM:
            return self._take_reset(stream, body)
        if kind == h2.GOAWAY:
            return self._take_goaway(body)
        if kind == h2.SETTINGS and not flags & ACK:
            self._out.take_settings(body)
        elif kind == h2.PING and not flags & ACK:
            self._out.put(h2.frame(h2.PING, ACK, 0, body))
        elif kind == h2.WINDOW_UPDATE:
            self._out.take_window(stream, body)
        elif kind == h2.PUSH_PROMISE:
            raise h2.ConnectionFault("the peer pushes, though it may not")
        return []

    def _take_data(self, flags: int, stream: int, body: bytes) -> list[Received]:
        self._consumed_all += len(body)
        if self._consumed_all > OUR_WINDOW // 2:
            self._out.put(h2.grow(0, self._consumed_all))
            self._consumed_all = 0
        if stream not in self._consumed:
            return []
        self._consumed[stream] += len(body)
        ended = bool(flags & h2.END_STREAM)
        if self._consumed[stream] > OUR_WINDOW // 2 and not ended:
            self._out.put(h2.grow(stream, self._consumed[stream]))
            self._consumed[stream] = 0
        if ended:
            self._forget(stream)
        return [Received(stream, data=h2.unpadded(flags, body), ended=ended)]

    def _take_headers(self, kind: int, flags: int, stream: int, body: bytes) -> list[Received]:
        whole = self._blocks.take(kind, flags, stream, body)
        if whole is None or stream not in self._consumed:
            return []
        headers, ended = whole
        if ended:
            self._forget(stream)
        return [Received(stream, headers=headers, ended=ended)]

    def _take_reset(self, stream: int, body: bytes) -> list[Received]:
        if not self._forget(stream):
            return []
        return [Received(stream, ended=True, error=_reset_error(int.from_bytes(body, "big")))]

    def _take_goaway(self, body: bytes) -> list[Received]:
        last = int.from_bytes(body[:4], "big") & h2.MAX_ID
        why = body[8:].decode(errors="replace")
        self._ended_by = Unavailable(f"http2: the peer goes away: {why or 'no reason given'}")
        lost = [stream for stream in self._consumed if stream > last]
        for stream in lost:
            self._forget(stream)
        return [Received(stream, ended=True, error=self._ended_by) for stream in lost]

    def _forget(self, stream: int) -> bool:
        self._consumed.pop(stream, None)
        return self._out.forget(stream)


def _reset_error(code: int) -> Error:
    """A reset's error as gRPC tells them apart (PROTOCOL-HTTP2.md, "Errors")."""
    known: dict[int, type[Error]] = {
        h2.REFUSED_STREAM: Unavailable,
        h2.CANCEL: Canceled,
        h2.ENHANCE_YOUR_CALM: ResourceExhausted,
        h2.INADEQUATE_SECURITY: PermissionDenied,
    }
    return known.get(code, Internal)(f"http2: stream was reset with code {code}")
