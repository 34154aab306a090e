"""HTTP/2 as both sides of a connection speak it (RFC 9113): frames, header blocks, windows."""

from __future__ import annotations

from struct import Struct

from kontti.errors import Error, Unavailable
from kontti.wire.hpack import Decoder, Header, HeaderError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM = ACK = 1
END_HEADERS, PADDED, HAS_PRIORITY = 4, 8, 32
ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST = 2, 3, 4, 5, 6
DEFAULT_WINDOW = 65535
OUR_WINDOW = 4 << 20
OUR_FRAME = 1 << 20
MAX_WINDOW = (1 << 31) - 1
MAX_ID = (1 << 31) - 1
FRAME_SIZES = range(1 << 14, 1 << 24)
MAX_BLOCK = 256 << 10
# RFC 9113, 7
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 0, 1, 3, 5, 6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY = 7, 8, 9, 11, 12

_HEAD = Struct(">BHBBI")
_SIZES = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_OF_STREAMS = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION))
_OF_CONNECTIONS = frozenset((SETTINGS, PING, GOAWAY))


class ConnectionFault(Unavailable):
    """The peer broke the protocol. ``reason`` is the code to go away with."""

    def __init__(self, message: str, reason: int = PROTOCOL_ERROR) -> None:
        super().__init__(f"http2: {message}")
        self.reason = reason


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


class FrameReader:
    """Takes bytes as they come, gives whole frames: kind, flags, stream and body."""

    __slots__ = ("_rest", "_wanted")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._wanted = 9

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """The frames that are whole with ``data``; raises ConnectionFault."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data = bytes(self._rest)
            self._rest.clear()
        at, end = 0, len(data)
        self._wanted = 9
        while end - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            after = at + 9 + (high << 16 | low)
            if after - at - 9 > OUR_FRAME:
                raise ConnectionFault("frame is too large", FRAME_SIZE_ERROR)
            if after > end:
                self._wanted = after - at
                break
            stream &= MAX_ID
            _check(kind, stream, after - at - 9)
            yield kind, flags, stream, data[at + 9 : after]
            at = after
        if at < end:
            self._rest += data[at:]


def _check(kind: int, stream: int, length: int) -> None:
    wanted = _SIZES.get(kind, length)
    if length != wanted or (kind == GOAWAY and length < 8):
        raise ConnectionFault(f"frame of type {kind} has {length} bytes", FRAME_SIZE_ERROR)
    if kind in (_OF_CONNECTIONS if stream else _OF_STREAMS):
        raise ConnectionFault(f"frame of type {kind} is for stream {stream}")


class BlockReader:
    """Header blocks out of HEADERS and CONTINUATION frames."""

    __slots__ = ("_block", "_decoder")

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._block: tuple[int, bool, bytearray] | None = None

    def check(self, kind: int) -> None:
        """Raises ConnectionFault where a block is under way and a frame is not of it."""
        if self._block is not None and kind != CONTINUATION:
            raise ConnectionFault("header block is interrupted")

    def take(
        self, kind: int, flags: int, stream: int, body: bytes
    ) -> tuple[list[Header], bool] | None:
        """A whole block's headers and whether its stream ends; raises ConnectionFault."""
        if kind == HEADERS:
            block = _without_priority(flags, unpadded(flags, body))
            ended = bool(flags & END_STREAM)
            if flags & END_HEADERS:
                return self._decode(block), ended
            self._block = (stream, ended, bytearray(block))
        elif self._block is None or self._block[0] != stream:
            raise ConnectionFault("continuation of nothing")
        elif not body and not flags & END_HEADERS:
            # frames that add nothing could go on for ever
            raise ConnectionFault("continuation without anything in it", ENHANCE_YOUR_CALM)
        else:
            self._block[2].extend(body)
        if len(self._block[2]) > MAX_BLOCK:
            raise ConnectionFault("header block is too large", ENHANCE_YOUR_CALM)
        if not flags & END_HEADERS:
            return None
        _, ended, whole = self._block
        self._block = None
        return self._decode(bytes(whole)), ended

    def _decode(self, block: bytes) -> list[Header]:
        if len(block) > MAX_BLOCK:
            raise ConnectionFault("header block is too large", ENHANCE_YOUR_CALM)
        try:
            return self._decoder.decode(block)
        except HeaderError as error:
            raise ConnectionFault(error.message, COMPRESSION_ERROR) from None


class Outflow:
    """What goes to the peer: control frames at once, data as far as the peer's windows go.

    ``held`` keeps data back whatever the windows say, for a socket that takes no more.
    """

    __slots__ = (
        "_frame",
        "_initial",
        "_out",
        "_unsent",
        "_window",
        "answers",
        "held",
        "waiting",
        "windows",
    )

    def __init__(self) -> None:
        self.windows: dict[int, int] = {}
        self.held = False
        self.answers = 0  # data and ends of streams that were sent
        self.waiting = 0  # bytes of all streams that wait for the windows
        self._out: list[bytes | memoryview] = []
        self._window = DEFAULT_WINDOW
        self._initial = DEFAULT_WINDOW
        self._frame = 1 << 14
        # data and whether it is the stream's last, or None and frames that need no window
        self._unsent: dict[int, list[tuple[memoryview | None, bool, bytes]]] = {}

    def open(self, stream: int) -> None:
        """Have a window for a stream."""
        self.windows[stream] = self._initial

    def put(self, data: bytes) -> None:
        """Send frames at once."""
        self._out.append(data)

    def headers(self, stream: int, block: bytes, flags: int = 0) -> bytes:
        """The frames of a header block, as large as the peer takes them."""
        if len(block) <= self._frame:
            return frame(HEADERS, flags | END_HEADERS, stream, block)
        frames = frame(HEADERS, flags, stream, block[: self._frame])
        for at in range(self._frame, len(block), self._frame):
            last = END_HEADERS if at + self._frame >= len(block) else 0
            frames += frame(CONTINUATION, last, stream, block[at : at + self._frame])
        return frames

    def send(self, stream: int, data: bytes, *, end: bool) -> None:
        """Queue data on a stream, sent as far as the windows go."""
        if self.takes(stream, len(data)):
            self._out.append(frame_head(len(data), DATA, END_STREAM if end else 0, stream))
            self._out.append(data)
        elif stream in self.windows:
            self.waiting += len(data)
            self._unsent.setdefault(stream, []).append((memoryview(data), end, b""))
            self.push(stream)

    def takes(self, stream: int, size: int) -> bool:
        """Whether data can go in one frame now; it then counts as gone."""
        room = self.windows.get(stream, -1)
        if not size <= room or size > self._window or size > self._frame:
            return False
        if self.held or stream in self._unsent:
            return False
        self._window -= size
        self.windows[stream] = room - size
        self.answers += 1
        return True

    def finish(self, stream: int, frames: bytes) -> None:
        """Send ``frames`` after a stream's data, and forget the stream."""
        self.answers += 1
        if stream in self._unsent:
            self._unsent[stream].append((None, True, frames))
            self.push(stream)
        elif self.windows.pop(stream, None) is not None:
            self._out.append(frames)

    def pending(self, stream: int) -> int:
        """Bytes of a stream that wait for the windows."""
        waiting = self._unsent.get(stream)
        return sum(len(data or b"") for data, _, _ in waiting) if waiting else 0

    def forget(self, stream: int) -> bool:
        """Drop a stream with what it has queued; False where there is none."""
        self.waiting -= self.pending(stream)
        self._unsent.pop(stream, None)
        return self.windows.pop(stream, None) is not None

    def data_to_send(self) -> bytes:
        """What is to be written to the socket now."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def take_settings(self, body: bytes) -> None:
        """The peer's settings, and our answer; raises ConnectionFault."""
        if len(body) % 6:
            raise ConnectionFault("settings are cut short", FRAME_SIZE_ERROR)
        for pos in range(0, len(body), 6):
            name = int.from_bytes(body[pos : pos + 2], "big")
            self._take_setting(name, int.from_bytes(body[pos + 2 : pos + 6], "big"))
        self._out.append(frame(SETTINGS, ACK, 0, b""))
        self.push_all()

    def _take_setting(self, name: int, value: int) -> None:
        if name == INITIAL_WINDOW_SIZE:
            change = value - self._initial
            self._initial = _checked_window(value)
            for stream in self.windows:
                self.windows[stream] = _checked_window(self.windows[stream] + change)
        elif name == MAX_FRAME_SIZE:
            if value not in FRAME_SIZES:
                raise ConnectionFault(f"frames cannot be of {value} bytes")
            self._frame = value
        elif name == ENABLE_PUSH and value > 1:
            raise ConnectionFault("push is neither on nor off")

    def take_window(self, stream: int, body: bytes) -> None:
        """More window; raises ConnectionFault."""
        more = int.from_bytes(body, "big") & MAX_WINDOW
        if not more:
            raise ConnectionFault("window grows by nothing")
        if stream == 0:
            self._window = _checked_window(self._window + more)
            self.push_all()
        elif stream in self.windows:
            self.windows[stream] = _checked_window(self.windows[stream] + more)
            self.push(stream)

    def push_all(self) -> None:
        """Send what all streams have queued, as far as it goes."""
        for stream in list(self._unsent):
            self.push(stream)

    def push(self, stream: int) -> None:
        """Send what a stream has queued, as far as its window and the connection's go."""
        queue = self._unsent.get(stream, [])
        while queue:
            data, end, frames = queue[0]
            if data is None:
                self._out.append(frames)
                self.forget(stream)
                return
            rest = self._push_data(stream, data, end)
            if rest is None:
                return
            if rest:
                queue[0] = (rest, end, b"")
            else:
                queue.pop(0)
        self._unsent.pop(stream, None)

    def _push_data(self, stream: int, data: memoryview, end: bool) -> memoryview | None:
        """Send a frame of it; what is left of it, None where it has to wait."""
        room = min(self._window, self.windows[stream], self._frame)
        if data and (room <= 0 or self.held):
            return None
        piece, rest = (data[:room], data[room:]) if data else (data, data)
        flags = END_STREAM if end and not rest else 0
        self.answers += 1
        self._out.append(frame_head(len(piece), DATA, flags, stream))
        self._out.append(piece)
        self.waiting -= len(piece)
        self._window -= len(piece)
        self.windows[stream] -= len(piece)
        return rest


def frame_head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes before a frame's body."""
    return _HEAD.pack(length >> 16, length & 0xFFFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """A whole frame."""
    return _HEAD.pack(len(body) >> 16, len(body) & 0xFFFF, kind, flags, stream) + body


def setting(name: int, value: int) -> bytes:
    """One setting of a SETTINGS frame."""
    return name.to_bytes(2, "big") + value.to_bytes(4, "big")


def grow(stream: int, size: int) -> bytes:
    """A frame that gives the peer more window."""
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def reset(stream: int, code: int) -> bytes:
    """A frame that gives a stream up."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def unpadded(flags: int, body: bytes) -> bytes:
    """A frame's body without its padding; raises ConnectionFault."""
    if not flags & PADDED:
        return body
    if not body or body[0] >= len(body):
        raise ConnectionFault("padding is longer than its frame")
    return body[1 : len(body) - body[0]]


def _without_priority(flags: int, body: bytes) -> bytes:
    if not flags & HAS_PRIORITY:
        return body
    if len(body) < 5:
        raise ConnectionFault("headers are cut short", FRAME_SIZE_ERROR)
    return body[5:]


def _checked_window(size: int) -> int:
    if size > MAX_WINDOW:
        raise ConnectionFault("window is too large", FLOW_CONTROL_ERROR)
    return size
