"""ttrpc: the shims' protocol. Bytes in, frames out; no socket.

A frame is a header of ten bytes, big-endian (length, stream id, type, flags), and its data. A
unary call is one request frame on a new odd stream and one response frame on the same.
"""

from __future__ import annotations

from struct import Struct

from kontti.errors import Error, InvalidArgument, ResourceExhausted, from_code
from kontti.wire.messages.google import Status
from kontti.wire.protobuf import BYTES, INT64, STRING, Message, repeated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HEADER = Struct(">IIBB")
MAX_DATA = 4 << 20
MAX_SKIPPED = 64 << 20
REQUEST, RESPONSE, DATA = 1, 2, 3
REMOTE_CLOSED, REMOTE_OPEN, NO_DATA = 1, 2, 4
NAMESPACE_KEY = "containerd-namespace-ttrpc"


class KeyValue(Message):
    """ttrpc.KeyValue."""

    __slots__ = ("key", "value")
    NAME = "ttrpc.KeyValue"
    FIELDS = ((1, "key", STRING), (2, "value", STRING))

    def __init__(self, *, key: str = "", value: str = "") -> None:
        self.key = key
        self.value = value


class Request(Message):
    """ttrpc.Request. ``timeout_nano`` in ns, 0 for none."""

    __slots__ = ("metadata", "method", "payload", "service", "timeout_nano")
    NAME = "ttrpc.Request"
    FIELDS = (
        (1, "service", STRING),
        (2, "method", STRING),
        (3, "payload", BYTES),
        (4, "timeout_nano", INT64),
        (5, "metadata", repeated(KeyValue)),
    )

    def __init__(
        self,
        *,
        service: str = "",
        method: str = "",
        payload: bytes = b"",
        timeout_nano: int = 0,
        metadata: Sequence[KeyValue] = (),
    ) -> None:
        self.service = service
        self.method = method
        self.payload = payload
        self.timeout_nano = timeout_nano
        self.metadata = [*metadata]

    def namespace(self) -> str:
        """The namespace in the metadata, or ""."""
        for pair in self.metadata:
            if pair.key == NAMESPACE_KEY:
                return pair.value
        return ""


class Response(Message):
    """ttrpc.Response."""

    __slots__ = ("payload", "status")
    NAME = "ttrpc.Response"
    FIELDS = ((1, "status", Status), (2, "payload", BYTES))

    def __init__(self, *, status: Status | None = None, payload: bytes = b"") -> None:
        self.status = status
        self.payload = payload

    def result(self) -> bytes:
        """The payload; raises the error that the peer sent."""
        if self.status is not None and self.status.code:
            raise from_code(self.status.code, self.status.message)
        return self.payload


class Frame:
    """One frame. ``oversize`` marks one whose data was too long and was thrown away."""

    __slots__ = ("data", "flags", "kind", "oversize", "stream")

    def __init__(
        self, stream: int, kind: int, flags: int, data: bytes, oversize: bool = False
    ) -> None:
        self.stream = stream
        self.kind = kind
        self.flags = flags
        self.data = data
        self.oversize = oversize

    def request(self) -> Request:
        """What it carries; InvalidArgument, or ResourceExhausted where it was too long."""
        if self.oversize:
            raise ResourceExhausted(f"message exceeds maximum size of {MAX_DATA} bytes")
        return Request.decode(self.data)


def encode_frame(stream: int, kind: int, data: bytes, flags: int = 0) -> bytes:
    """A frame's bytes; raises ResourceExhausted where ``data`` is too long."""
    if len(data) > MAX_DATA:
        raise ResourceExhausted(
            f"message length {len(data)} exceed maximum message size of {MAX_DATA}"
        )
    return HEADER.pack(len(data), stream, kind, flags) + data


class Decoder:
    """Takes bytes as they come, gives whole frames; one that is too long as soon as it begins."""

    __slots__ = ("_buffer", "_header", "_skip")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header: tuple[int, int, int, int] | None = None
        self._skip = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole with ``data``.

        Raises InvalidArgument for a length that no frame has: what follows would be skipped as its.
        """
        self._buffer += data
        while True:
            if self._header is None:
                if len(self._buffer) < HEADER.size:
                    return
                self._header = HEADER.unpack_from(self._buffer)
                del self._buffer[: HEADER.size]
                length, stream, kind, flags = self._header
                if length > MAX_SKIPPED:
                    raise InvalidArgument(f"ttrpc frame of type {kind} and {length} bytes")
                if length > MAX_DATA:
                    self._skip = length
                    yield Frame(stream, kind, flags, b"", oversize=True)
            length, stream, kind, flags = self._header
            if self._skip:
                dropped = min(self._skip, len(self._buffer))
                del self._buffer[:dropped]
                self._skip -= dropped
                if self._skip:
                    return
                self._header = None
                continue
            if len(self._buffer) < length:
                return
            body = bytes(self._buffer[:length])
            del self._buffer[:length]
            self._header = None
            yield Frame(stream, kind, flags, body)


class ClientStreams:
    """Numbers a client's calls and pairs its answers. ``forget`` a call that timed out."""

    __slots__ = ("_next", "_open")

    def __init__(self) -> None:
        self._next = 1
        self._open: set[int] = set()

    def call(
        self,
        method: str,
        payload: bytes,
        metadata: Mapping[str, str],
        timeout_nano: int = 0,
    ) -> tuple[int, bytes]:
        """Stream id and bytes of a unary call; ``method`` is ``package.Service/Method``."""
        service, _, name = method.partition("/")
        request = Request(
            service=service,
            method=name,
            payload=payload,
            timeout_nano=timeout_nano,
            metadata=[KeyValue(key=k, value=v) for k, v in metadata.items()],
        )
        stream = self._next
        frame = encode_frame(stream, REQUEST, request.encode())
        self._next += 2
        self._open.add(stream)
        return stream, frame

    def answer(self, frame: Frame) -> Response | None:
        """The response in ``frame``, or None for a stream that nobody waits for.

        Raises InvalidArgument for a frame that a server must not send.
        """
        if frame.kind == DATA:
            return None
        if frame.kind != RESPONSE:
            raise InvalidArgument(f"ttrpc frame of type {frame.kind} from a server")
        if frame.stream not in self._open:
            return None
        self._open.discard(frame.stream)
        if frame.oversize:
            return error_response(
                ResourceExhausted(f"message exceeds maximum size of {MAX_DATA} bytes")
            )
        return Response.decode(frame.data)

    def forget(self, stream: int) -> None:
        """Nobody waits for this one any more."""
        self._open.discard(stream)


def error_response(error: Error) -> Response:
    """The answer that carries ``error``."""
    return Response(status=Status(code=error.code, message=error.message))


def encode_response(stream: int, response: Response) -> bytes:
    """The response's frame; one that is too long becomes the error that says so."""
    data = response.encode()
    if len(data) > MAX_DATA:
        problem = ResourceExhausted(f"message exceeds maximum size of {MAX_DATA} bytes")
        data = error_response(problem).encode()
    return encode_frame(stream, RESPONSE, data)
