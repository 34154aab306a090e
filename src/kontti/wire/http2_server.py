"""The server's side of an HTTP/2 connection (RFC 9113), as far as gRPC needs it. No socket.

Every stream has a window that is given back as what it brought is used up (``used``); the
connection's own is given back at once, so that one stream that waits does not hold up another.
"""

from __future__ import annotations

import time

from kontti.errors import Canceled
from kontti.wire import http2_frames as h2
from kontti.wire.http2_frames import (
    ACK,
    BlockReader,
    ConnectionFault,
    FrameReader,
    Outflow,
    Received,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kontti.wire.hpack import Header

MAX_STREAMS = 10_000
"""A client may wait for each of its containers on one connection: a call for each."""
MAX_HEADER_LIST = 64 << 10
STREAM_WINDOW = 4 << 20
OUR_WINDOW = 16 << 20
PATIENCE = 10_000
PATIENCE_A_SECOND = 100
"""Frames that make work and bring nothing (pings, settings, resets) are taken as long as there is
patience: it comes back with time, and with what is answered."""


class _Stream:
    """The receiving half: ``room`` is left of its window, ``used`` not given back yet."""

    __slots__ = ("ended", "room", "used")

    def __init__(self, ended: bool) -> None:
        self.ended = ended
        self.room = STREAM_WINDOW
        self.used = 0


class Http2Server:
    """Streams opened by the peer. ``data_to_send`` after each call; ``receive`` what it sent."""

    def __init__(
        self, *, max_streams: int = MAX_STREAMS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.out = Outflow()
        self.last = 0
        self.closing = False
        self._clock = clock
        self._max = max_streams
        self._frames = FrameReader()
        self._blocks = BlockReader()
        self._greeting = h2.PREFACE
        self.settled = False
        self._room = OUR_WINDOW
        self._streams: dict[int, _Stream] = {}
        # what the peer may have sent before it knew that a stream is over
        self._given_up: dict[int, None] = {}
        self._patience = PATIENCE
        self._patient_since = clock()
        settings = (
            h2.setting(h2.MAX_STREAMS, max_streams)
            + h2.setting(h2.INITIAL_WINDOW_SIZE, STREAM_WINDOW)
            + h2.setting(h2.MAX_FRAME_SIZE, h2.OUR_FRAME)
            + h2.setting(h2.MAX_HEADER_LIST, MAX_HEADER_LIST)
        )
        self.out.put(h2.frame(h2.SETTINGS, 0, 0, settings))
        self.out.put(h2.grow(0, OUR_WINDOW - h2.DEFAULT_WINDOW))

    def receive(self, data: bytes) -> list[Received]:
        """What arrived with ``data``. Raises ConnectionFault, the farewell being ready to send."""
        found: list[Received] = []
        try:
            if self._greeting:
                data = self._greet(data)
            for kind, flags, stream, body in self._frames.feed(data):
                received = self._take(kind, flags, stream, body)
                if received is not None:
                    found.append(received)
        except ConnectionFault as fault:
            self.go_away(fault.reason, fault.message)
            raise
        return found

    def data_to_send(self) -> bytes:
        """What is to be written to the socket now."""
        return self.out.data_to_send()

    def finish(self, stream: int, frames: bytes) -> None:
        """Send the last frames of a stream, after its data."""
        known = self._streams.pop(stream, None)
        if known is not None and not known.ended:
            # the rest of the request is not wanted (RFC 9113, 8.1)
            frames += h2.reset(stream, h2.NO_ERROR)
            self._give_up(stream)
        self.out.finish(stream, frames)

    def used(self, stream: int, size: int) -> None:
        """Give back a stream's window for what it has brought."""
        known = self._streams.get(stream)
        if known is None or known.ended:
            return
        known.used += size
        if known.used > STREAM_WINDOW // 2:
            self.out.put(h2.grow(stream, known.used))
            known.room += known.used
            known.used = 0

    def go_away(self, reason: int = h2.NO_ERROR, why: str = "") -> None:
        """Take no new streams; those under way go on where there is no error."""
        self.closing = True
        body = self.last.to_bytes(4, "big") + reason.to_bytes(4, "big") + why.encode()[:200]
        self.out.put(h2.frame(h2.GOAWAY, 0, 0, body))

    def _greet(self, data: bytes) -> bytes:
        """What follows the preface in ``data``."""
        size = min(len(self._greeting), len(data))
        if data[:size] != self._greeting[:size]:
            raise ConnectionFault("the peer does not speak HTTP/2")
        self._greeting = self._greeting[size:]
        return data[size:]

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> Received | None:
        self._blocks.check(kind)
        if kind == h2.DATA:
            return self._take_data(flags, stream, body)
        if kind in (h2.HEADERS, h2.CONTINUATION):
            return self._take_headers(kind, flags, stream, body)
        if kind == h2.WINDOW_UPDATE:
            self._check_known(stream)
            self.out.take_window(stream, body)
            return None
        if kind == h2.RST_STREAM:
            return self._take_reset(stream)
        self._tire()
        if kind == h2.PING and not flags & ACK:
            self.out.put(h2.frame(h2.PING, ACK, 0, body))
        elif kind == h2.SETTINGS:
            self._take_settings(flags, body)
        elif kind == h2.PUSH_PROMISE:
            raise ConnectionFault("a client cannot push")
        return None

    def _take_settings(self, flags: int, body: bytes) -> None:
        self.settled = True
        if not flags & ACK:
            # one that changes the windows has a look at every stream
            self._tire(1 + len(self.out.windows) // 16)
            self.out.take_settings(body)
        elif body:
            raise ConnectionFault("an acknowledgement has no settings", h2.FRAME_SIZE_ERROR)

    def _take_headers(self, kind: int, flags: int, stream: int, body: bytes) -> Received | None:
        whole = self._blocks.take(kind, flags, stream, body)
        if whole is None:
            return None
        headers, ended = whole
        if stream > self.last:
            return self._open(stream, headers, ended)
        known = self._streams.get(stream)
        if known is None:
            if stream not in self._given_up:
                raise ConnectionFault(f"stream {stream} is closed", h2.STREAM_CLOSED)
            self._tire()
            return None
        if known.ended or not ended:
            return self.give_up(stream, h2.STREAM_CLOSED if known.ended else h2.PROTOCOL_ERROR)
        known.ended = True
        return Received(stream, ended=True)

    def _open(self, stream: int, headers: list[Header], ended: bool) -> Received | None:
        if not stream & 1:
            raise ConnectionFault(f"stream {stream} is not a client's")
        if not self.settled:
            raise ConnectionFault("no settings after the preface")
        if not self.closing:
            self.last = stream
        if self.closing or len(self.out.windows) >= self._max:
            self._tire()
            self._give_up(stream)
            self.out.put(h2.reset(stream, h2.REFUSED_STREAM))
            return None
        self._streams[stream] = _Stream(ended)
        self.out.open(stream)
        return Received(stream, headers=headers, ended=ended)

    def _take_data(self, flags: int, stream: int, body: bytes) -> Received | None:
        size = len(body)
        self._take_room(size)
        known = self._streams.get(stream)
        if known is None:
            self._take_late(stream)
            return None
        if known.ended:
            return self.give_up(stream, h2.STREAM_CLOSED)
        known.room -= size
        if known.room < 0:
            raise ConnectionFault("stream's window is exceeded", h2.FLOW_CONTROL_ERROR)
        data = h2.unpadded(flags, body)
        ended = known.ended = bool(flags & h2.END_STREAM)
        if len(data) != size:
            self.used(stream, size - len(data))
        if not data and not ended:
            self._tire()
            return None
        return Received(stream, data=data, ended=ended)

    def _take_room(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise ConnectionFault("connection's window is exceeded", h2.FLOW_CONTROL_ERROR)
        if self._room < OUR_WINDOW // 2:
            self.out.put(h2.grow(0, OUR_WINDOW - self._room))
            self._room = OUR_WINDOW

    def _take_late(self, stream: int) -> None:
        """Data for a stream that is not open."""
        self._check_known(stream)
        self._tire()
        if stream not in self._given_up:
            self.out.put(h2.reset(stream, h2.STREAM_CLOSED))

    def _take_reset(self, stream: int) -> Received | None:
        self._check_known(stream)
        self._tire()
        self._streams.pop(stream, None)
        if not self.out.forget(stream):
            return None
        return Received(stream, ended=True, error=Canceled("http2: stream was reset"))

    def give_up(self, stream: int, code: int) -> Received | None:
        """Reset a stream, and tell who waits for it."""
        self._tire()
        self._streams.pop(stream, None)
        if not self.out.forget(stream):
            return None
        self._give_up(stream)
        self.out.put(h2.reset(stream, code))
        return Received(stream, ended=True, error=Canceled("http2: stream was given up"))

    def _give_up(self, stream: int) -> None:
        self._given_up[stream] = None
        if len(self._given_up) > self._max:
            del self._given_up[next(iter(self._given_up))]

    def _check_known(self, stream: int) -> None:
        """A stream that nobody has opened has no frames but PRIORITY."""
        if stream > self.last and not (self.closing and stream in self._given_up):
            raise ConnectionFault(f"stream {stream} is idle")

    def _tire(self, much: int = 1) -> None:
        self._patience -= much
        if self._patience >= 0:
            return
        now = self._clock()
        # a client may ping once for each piece of data, to measure the way
        more = 2 * self.out.answers + int((now - self._patient_since) * PATIENCE_A_SECOND)
        self._patience = min(self._patience + more, PATIENCE)
        self._patient_since, self.out.answers = now, 0
        if self._patience < 0:
            raise ConnectionFault("too many frames that ask for nothing", h2.ENHANCE_YOUR_CALM)


def well_formed(headers: list[Header]) -> bool:
    """Whether a request's headers are as RFC 9113, 8.2 and 8.3 have them."""
    seen = {}
    for name, value in headers:
        if name.startswith(":"):
            if name in seen or "" in seen or name not in _PSEUDO:
                return False
            seen[name] = value
        elif name in _OF_HTTP1 or name != name.lower() or not name:
            return False
        else:
            seen[""] = ""
    return bool(seen.get(":method") and seen.get(":scheme") and seen.get(":path"))


_PSEUDO = frozenset((":method", ":scheme", ":path", ":authority"))
_OF_HTTP1 = frozenset(
    ("connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade")
)
