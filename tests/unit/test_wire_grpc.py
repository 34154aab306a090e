"""The client's side of gRPC against grpcio's server, and against answers made by hand."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import (
    AlreadyExists,
    Canceled,
    Conflict,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    Internal,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from kontti.wire.grpc import MAX_MESSAGE, CallEnded, ClientConnection, MessageReceived
from kontti.wire.hpack import encode
from kontti.wire.http2_frames import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, RST_STREAM
from tests.support.http2 import Frame, frames
from tests.support.shims import short_folder

SECONDS = 10.0
LARGE = bytes(range(256)) * (8 << 12)
Server = tuple[str, "Service"]


class Service:
    """What the server does, by method; messages are plain bytes."""

    def __init__(self) -> None:
        self.heard: dict[str, str | bytes] = {}
        self.started = threading.Event()
        self.ended = threading.Event()

    def service(
        self, details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        self.heard = dict(details.invocation_metadata)
        kinds: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "/t.T/Echo": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
            "/t.T/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "/t.T/Wait": grpc.unary_unary_rpc_method_handler(self.wait),
            "/t.T/Count": grpc.unary_stream_rpc_method_handler(self.count),
            "/t.T/Tire": grpc.unary_stream_rpc_method_handler(self.tire),
            "/t.T/Mirror": grpc.stream_stream_rpc_method_handler(self.mirror),
            "/t.T/Early": grpc.stream_stream_rpc_method_handler(self.early),
        }
        return kinds.get(details.method)

    def fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        number, _, message = request.partition(b" ")
        code = next(c for c in grpc.StatusCode if c.value[0] == int(number))
        context.set_trailing_metadata((("grpc-status-details-bin", b"\x08\x05\xff\0"),))
        context.abort(code, message.decode())
        raise AssertionError

    def wait(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if not context.add_callback(self.ended.set):
            self.ended.set()
        self.started.set()
        assert self.ended.wait(SECONDS)
        return request

    def count(self, request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    def tire(self, _request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"one"
        context.abort(grpc.StatusCode.UNAVAILABLE, "tired")

    def mirror(self, requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from requests

    def early(self, _requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"enough"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    service = Service()
    size = [("grpc.max_receive_message_length", 16 << 20)]
    with short_folder() as folder, ThreadPoolExecutor(4) as pool:
        made = grpc.server(pool, options=size)
        made.add_generic_rpc_handlers((service,))  # type: ignore[arg-type]
        made.add_insecure_port(f"unix:{folder}/s")
        made.start()
        yield f"{folder}/s", service
        service.ended.set()
        made.stop(0).wait()


class Talk:
    """A connection to the server, read until a call has what is waited for."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        self.socket.connect(address)
        self.connection = ClientConnection()
        self.messages: dict[int, list[bytes]] = {}
        self.ends: dict[int, Error | None] = {}

    def call(self, method: str, *metadata: tuple[str, str]) -> int:
        stream = self.connection.start_call(f"/t.T/{method}", metadata)
        self.messages[stream] = []
        return stream

    def unary(self, method: str, request: bytes, *metadata: tuple[str, str]) -> int:
        stream = self.call(method, *metadata)
        self.connection.send_message(stream, request, end=True)
        self.finish(stream)
        return stream

    def step(self) -> None:
        self.socket.sendall(self.connection.data_to_send())
        data = self.socket.recv(1 << 16)
        assert data, "the server hung up"
        for event in self.connection.receive(data):
            if isinstance(event, MessageReceived):
                assert event.stream_id not in self.ends
                self.messages[event.stream_id].append(event.data)
            else:
                self.ends[event.stream_id] = event.error

    def finish(self, stream: int) -> None:
        while stream not in self.ends:
            self.step()

    def message(self, stream: int) -> bytes:
        while not self.messages[stream]:
            assert stream not in self.ends, self.ends
            self.step()
        return self.messages[stream].pop(0)


@pytest.fixture
def talk(server: Server) -> Iterator[Talk]:
    talk = Talk(server[0])
    with contextlib.closing(talk.socket):
        yield talk


def result(talk: Talk, stream: int) -> tuple[list[bytes], Error | None]:
    return talk.messages[stream], talk.ends[stream]


# --- against grpcio


@pytest.mark.parametrize("request_", [b"", b"x", LARGE], ids=["empty", "small", "8 MiB"])
def test_unary(talk: Talk, request_: bytes) -> None:
    assert result(talk, talk.unary("Echo", request_)) == ([request_], None)


def test_metadata_goes_with_the_call(talk: Talk, server: Server) -> None:
    talk.unary("Echo", b"", ("containerd-namespace", "blue"), ("containerd-lease", "l 1"))
    heard = server[1].heard
    assert (heard["containerd-namespace"], heard["containerd-lease"]) == ("blue", "l 1")


def test_server_streaming(talk: Talk) -> None:
    stream = talk.unary("Count", b"1000")
    assert result(talk, stream) == ([b"%d" % n for n in range(1000)], None)


def test_server_streaming_of_nothing(talk: Talk) -> None:
    assert result(talk, talk.unary("Count", b"0")) == ([], None)


def test_both_sides_stream(talk: Talk) -> None:
    stream = talk.call("Mirror")
    for size in (0, 1, 16384, 65535, 65536, 1 << 20):
        talk.connection.send_message(stream, b"x" * size)
        assert talk.message(stream) == b"x" * size
    talk.connection.end(stream)
    talk.finish(stream)
    assert result(talk, stream) == ([], None)


def test_large_messages_both_ways(talk: Talk) -> None:
    stream = talk.call("Mirror")
    talk.connection.send_message(stream, LARGE)
    talk.connection.send_message(stream, LARGE[::-1], end=True)
    assert talk.connection.pending(stream) > 0
    talk.finish(stream)
    assert result(talk, stream) == ([LARGE, LARGE[::-1]], None)
    assert talk.connection.pending(stream) == 0


def test_many_calls_on_one_connection(talk: Talk) -> None:
    streams = [talk.call("Echo") for _ in range(50)]
    for stream in reversed(streams):
        talk.connection.send_message(stream, b"%d" % stream, end=True)
    for stream in streams:
        talk.finish(stream)
    assert talk.messages == {stream: [b"%d" % stream] for stream in streams}


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (5, 'container "x": not found', NotFound),
        (6, "snapshot: already exists", AlreadyExists),
        (9, "not ready", FailedPrecondition),
        (9, "row: conflict", Conflict),
        (8, "x" * 4000, ResourceExhausted),
        (2, "100 % of it\n\tis “odd”: %41 %zz % \U0001f433", Error),
        (2, "käyttäjä", Error),
    ],
)
def test_errors(talk: Talk, code: int, message: str, kind: type[Error]) -> None:
    messages, error = result(talk, talk.unary("Fail", f"{code} {message}".encode()))
    assert messages == []
    assert type(error) is kind
    assert error.message.startswith(message)
    assert error.message in (message, f"{message}: {kind.wording}")


def test_an_error_after_messages(talk: Talk) -> None:
    messages, error = result(talk, talk.unary("Tire", b""))
    assert messages == [b"one"]
    assert isinstance(error, Unavailable)
    assert error.message == "tired: unavailable"


def test_an_unknown_method(talk: Talk) -> None:
    _, error = result(talk, talk.unary("Nothing", b""))
    assert isinstance(error, Unimplemented)


def test_more_than_the_server_takes(talk: Talk) -> None:
    _, error = result(talk, talk.unary("Echo", bytes((16 << 20) + 1)))
    assert isinstance(error, ResourceExhausted)
    assert result(talk, talk.unary("Echo", b"next")) == ([b"next"], None)


def test_a_server_that_answers_before_it_has_heard_all(talk: Talk) -> None:
    stream = talk.call("Early")
    talk.connection.send_message(stream, LARGE)
    talk.finish(stream)
    assert result(talk, stream) == ([b"enough"], None)
    # what is sent after the end goes nowhere
    talk.connection.send_message(stream, LARGE, end=True)
    assert talk.connection.pending(stream) == 0
    assert result(talk, talk.unary("Echo", b"next")) == ([b"next"], None)


def test_a_deadline_that_the_server_is_told(talk: Talk, server: Server) -> None:
    server[1].ended.clear()
    messages, error = result(talk, talk.unary("Wait", b"", ("grpc-timeout", "20m")))
    assert messages == []
    assert isinstance(error, DeadlineExceeded | Canceled)


def test_giving_up_tells_the_server(talk: Talk, server: Server) -> None:
    server[1].started.clear()
    server[1].ended.clear()
    stream = talk.call("Wait")
    talk.connection.send_message(stream, b"", end=True)
    talk.socket.sendall(talk.connection.data_to_send())
    assert server[1].started.wait(SECONDS)
    talk.connection.cancel(stream)
    assert result(talk, talk.unary("Echo", b"next")) == ([b"next"], None)
    assert server[1].ended.wait(SECONDS)
    assert stream not in talk.ends


# --- against answers made by hand

OK = [("grpc-status", "0")]
OPEN = [(":status", "200"), ("content-type", "application/grpc")]


def headers(*fields: tuple[str, str], end: bool = False) -> Frame:
    return Frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), 1, encode(fields))


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


class Played:
    """One call, and what comes of the frames that answer it."""

    def __init__(self) -> None:
        self.connection = ClientConnection()
        self.stream = self.connection.start_call("/t.T/Echo", [])
        assert self.connection.data_to_send().startswith(PREFACE)

    def hear(self, *heard: Frame) -> tuple[list[bytes], list[Error | None]]:
        events = self.connection.receive(b"".join(f.encode() for f in heard))
        assert {e.stream_id for e in events} <= {self.stream}
        return (
            [e.data for e in events if isinstance(e, MessageReceived)],
            [e.error for e in events if isinstance(e, CallEnded)],
        )

    def error(self, *heard: Frame) -> Error:
        """The error that ends the call, once."""
        _, (error,) = self.hear(*heard)
        assert error is not None
        assert self.hear(Frame(DATA, END_STREAM, 1, b"late")) == ([], [])
        return error

    def was_reset(self) -> bool:
        return any(f.kind == RST_STREAM for f in frames(self.connection.data_to_send()))


@given(st.lists(st.binary(max_size=50), max_size=5), st.lists(st.integers(1, 60), max_size=10))
def test_messages_in_pieces(sent: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(message(data) for data in sent)
    pieces = []
    for cut in cuts:
        pieces.append(whole[:cut])
        whole = whole[cut:]
    data = [Frame(DATA, 0, 1, piece) for piece in (*pieces, whole)]
    found, ends = Played().hear(headers(*OPEN), *data, headers(*OK, end=True))
    assert (found, ends) == (sent, [None])


@given(st.text(max_size=50))
def test_percent_encoded_messages(text: str) -> None:
    # a space stands for itself, like all that can be printed but the percent sign
    quoted = quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    for sent in (quoted, quoted.lower() if text.islower() else quoted, text.replace("%", "%25")):
        status = [("grpc-status", "2"), ("grpc-message", sent)]
        assert Played().error(headers(*OPEN, *status, end=True)).message == (text or "unknown")


@pytest.mark.parametrize("text", ["%", "%4", "100%", "%zz", "%%%", "%+1", "% 1"])
def test_malformed_percents_stay(text: str) -> None:
    status = [("grpc-status", "2"), ("grpc-message", text)]
    assert Played().error(headers(*OPEN, *status, end=True)).message == text


def test_bytes_that_are_no_text() -> None:
    status = [("grpc-status", "2"), ("grpc-message", "a%ff%80b")]
    assert Played().error(headers(*OPEN, *status, end=True)).message == "a��b"


@pytest.mark.parametrize("status", ["\udcb2", "", "-1", "x", "1" * 5000, "17", "999"])
def test_a_status_that_is_none(status: str) -> None:
    fields = [("grpc-status", status), ("grpc-message", "odd")]
    error = Played().error(headers(*OPEN, *fields, end=True))
    assert type(error) is Error
    assert error.message == "odd"


def test_no_status() -> None:
    error = Played().error(headers((":status", "404"), end=True))
    assert isinstance(error, Unavailable)
    assert "http status 404" in error.message
    played = Played()
    assert isinstance(played.error(headers(*OPEN), Frame(DATA, END_STREAM, 1, b"")), Internal)
    assert not played.was_reset()


def test_http_errors_are_not_waited_for() -> None:
    played = Played()
    error = played.error(headers((":status", "503")))
    assert isinstance(error, Unavailable)
    assert "http status 503" in error.message
    assert played.was_reset()


@pytest.mark.parametrize(
    "head", [b"\x01\0\0\0\x01", b"\xff\0\0\0\0", b"\0" + (MAX_MESSAGE + 1).to_bytes(4, "big")]
)
def test_messages_that_are_compressed_or_too_large(head: bytes) -> None:
    played = Played()
    found, (error,) = played.hear(headers(*OPEN), Frame(DATA, 0, 1, message(b"a") + head))
    assert found == [b"a"]
    assert isinstance(error, Internal)
    assert played.was_reset()


def test_a_message_that_is_cut_short() -> None:
    error = Played().error(
        headers(*OPEN), Frame(DATA, 0, 1, message(b"abc")[:-1]), headers(*OK, end=True)
    )
    assert isinstance(error, Internal)
    assert "inside a message" in error.message


def test_the_servers_own_error_counts_more_than_what_it_cut_short() -> None:
    status = [("grpc-status", "5"), ("grpc-message", "gone")]
    error = Played().error(
        headers(*OPEN), Frame(DATA, 0, 1, message(b"abc")[:-1]), headers(*status, end=True)
    )
    assert isinstance(error, NotFound)


def test_a_reset() -> None:
    error = Played().error(Frame(RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
    assert isinstance(error, Canceled)
