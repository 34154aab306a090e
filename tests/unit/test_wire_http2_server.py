"""The server's side of HTTP/2, against a peer that is played frame by frame (RFC 9113)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.wire.hpack import encode
from kontti.wire.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_BLOCK,
    MAX_FRAME_SIZE,
    NO_ERROR,
    OUR_FRAME,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    ConnectionFault,
    Received,
    frame,
)
from kontti.wire.http2_server import OUR_WINDOW, PATIENCE, STREAM_WINDOW, Http2Server, well_formed
from tests.support.http2 import Frame, frames

REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/s/m"), ("x", "y")]
BLOCK = encode(REQUEST)
COMPRESSION_ERROR = 9
WINDOW = 65535


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def settings(**values: int) -> Frame:
    known = {"push": 2, "window": INITIAL_WINDOW_SIZE, "frame": MAX_FRAME_SIZE, "unknown": 0xFFFF}
    body = b"".join(known[n].to_bytes(2, "big") + number(v) for n, v in values.items())
    return Frame(SETTINGS, 0, 0, body)


def headers(stream: int, flags: int = END_HEADERS, block: bytes = BLOCK) -> Frame:
    return Frame(HEADERS, flags, stream, block)


def grow(stream: int, size: int) -> Frame:
    return Frame(WINDOW_UPDATE, 0, stream, number(size))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Talk:
    """A connection after the client's greeting."""

    def __init__(self, *heard: Frame, max_streams: int = 100) -> None:
        self.clock = Clock()
        self.server = Http2Server(max_streams=max_streams, clock=self.clock)
        self.greeting = frames(self.server.data_to_send())
        self.server.receive(PREFACE)
        self.hear(settings(), *heard)
        self.sent()

    def sent(self) -> list[Frame]:
        return frames(self.server.data_to_send())

    def hear(self, *heard: Frame) -> list[Received]:
        return self.server.receive(b"".join(f.encode() for f in heard))

    def fault(self, *heard: Frame) -> int:
        """The code of the farewell that these are answered with."""
        with pytest.raises(ConnectionFault) as caught:
            self.hear(*heard)
        last = self.sent()[-1]
        assert (last.kind, last.stream) == (GOAWAY, 0)
        assert int.from_bytes(last.body[:4], "big") == self.server.last
        assert last.body[8:].decode().startswith("http2: ")
        code = int.from_bytes(last.body[4:8], "big")
        assert code == caught.value.reason
        return code

    def resets(self) -> list[tuple[int, int]]:
        """The streams that are given up now, and why."""
        sent = self.sent()
        return [(f.stream, int.from_bytes(f.body, "big")) for f in sent if f.kind == RST_STREAM]


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_the_settings_come_first() -> None:
    """Clients wait for them before they send a request."""
    first, second = Talk().greeting
    assert (first.kind, first.flags, first.stream) == (SETTINGS, 0, 0)
    told = {first.body[n + 1]: first.body[n + 2 : n + 6] for n in range(0, 24, 6)}
    assert told == {
        3: number(100),
        4: number(STREAM_WINDOW),
        5: number(OUR_FRAME),
        6: number(1 << 16),
    }
    assert second == grow(0, OUR_WINDOW - WINDOW)


def test_a_request_byte_by_byte() -> None:
    server = Http2Server()
    heard = (settings(), headers(1), Frame(DATA, 0, 1, b"hello"), Frame(DATA, END_STREAM, 1, b""))
    whole = PREFACE + b"".join(f.encode() for f in heard)
    found = [r for n in range(len(whole)) for r in server.receive(whole[n : n + 1])]
    assert [(r.stream, r.headers, r.data, r.ended) for r in found] == [
        (1, REQUEST, b"", False),
        (1, None, b"hello", False),
        (1, None, b"", True),
    ]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\0" * 100, b"PRI * HTTP/1.1\r\n\r\n"])
def test_a_peer_that_does_not_speak_http2(data: bytes) -> None:
    server = Http2Server()
    server.data_to_send()
    with pytest.raises(ConnectionFault, match="does not speak HTTP/2"):
        server.receive(data)
    assert [f.kind for f in frames(server.data_to_send())] == [GOAWAY]


def test_settings_and_pings_are_answered(talk: Talk) -> None:
    talk.hear(settings(unknown=7), Frame(PING, 0, 0, b"12345678"))
    assert talk.sent() == [Frame(SETTINGS, ACK, 0, b""), Frame(PING, ACK, 0, b"12345678")]
    talk.hear(Frame(SETTINGS, ACK, 0, b""), Frame(PING, ACK, 0, b"12345678"))
    assert talk.sent() == []


def test_what_means_nothing_is_passed_over(talk: Talk) -> None:
    odd = (Frame(0xFA, 0xFF, 9, b"?"), Frame(PRIORITY, 0, 7, b"12345"))
    farewell = Frame(GOAWAY, 0, 0, number(0) + number(0) + b"bye")
    assert talk.hear(*odd, farewell, headers(1 | 1 << 31, END_HEADERS | END_STREAM))[0].stream == 1
    assert talk.sent() == []


def test_headers_with_padding_priority_and_continuations(talk: Talk) -> None:
    (found,) = talk.hear(
        headers(1, PADDED | HAS_PRIORITY | END_STREAM, b"\x03" + bytes(5) + BLOCK[:3] + bytes(3)),
        Frame(CONTINUATION, 0, 1, BLOCK[3:9]),
        Frame(CONTINUATION, END_HEADERS, 1, BLOCK[9:]),
    )
    assert (found.headers, found.ended) == (REQUEST, True)


# --- ends


def test_an_answer(talk: Talk) -> None:
    talk.hear(headers(1, END_HEADERS | END_STREAM))
    talk.server.out.send(1, b"data", end=False)
    talk.server.finish(1, frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x88"))
    assert [(f.kind, f.flags) for f in talk.sent()] == [(DATA, 0), (HEADERS, 5)]
    # late frames that are no harm
    assert talk.hear(grow(1, 5), Frame(RST_STREAM, 0, 1, number(8))) == []
    assert talk.sent() == []


def test_an_answer_before_the_request_is_whole(talk: Talk) -> None:
    talk.hear(headers(1))
    talk.server.finish(1, frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x88"))
    assert [f.kind for f in talk.sent()] == [HEADERS, RST_STREAM]
    # what was under way is dropped, and its window given back
    data = [Frame(DATA, 0, 1, bytes(1 << 20))] * 20
    assert talk.hear(*data, Frame(DATA, END_STREAM, 1, b""), headers(1)) == []
    assert {(f.kind, f.stream) for f in talk.sent()} == {(WINDOW_UPDATE, 0)}


def test_the_end_waits_for_the_data(talk: Talk) -> None:
    talk.hear(settings(window=10), headers(1, END_HEADERS | END_STREAM))
    talk.sent()
    talk.server.out.send(1, b"x" * 25, end=False)
    talk.server.finish(1, b"".join([frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x88")]))
    assert [f.kind for f in talk.sent()] == [DATA]
    assert talk.server.out.pending(1) == 15
    talk.hear(grow(1, 10))
    assert [f.kind for f in talk.sent()] == [DATA]
    talk.hear(grow(1, 5))
    assert [f.kind for f in talk.sent()] == [DATA, HEADERS]
    assert talk.server.out.windows == {}


def test_a_socket_that_takes_no_more_holds_data_back(talk: Talk) -> None:
    talk.hear(headers(1))
    talk.server.out.held = True
    talk.server.out.send(1, b"x", end=False)
    talk.hear(Frame(PING, 0, 0, bytes(8)), grow(1, 5))
    assert [f.kind for f in talk.sent()] == [PING]
    talk.server.out.held = False
    talk.server.out.push_all()
    assert [f.kind for f in talk.sent()] == [DATA]


def test_a_reset(talk: Talk) -> None:
    talk.hear(headers(1))
    talk.server.out.send(1, bytes(100_000), end=False)
    (found,) = talk.hear(Frame(RST_STREAM, 0, 1, number(8)))
    assert (found.stream, found.ended) == (1, True)
    assert found.error is not None
    talk.sent()
    talk.hear(grow(0, 100_000))
    assert talk.sent() == []
    talk.hear(Frame(DATA, 0, 1, b"late"))
    assert talk.resets() == [(1, STREAM_CLOSED)]


def test_trailers_end_a_request(talk: Talk) -> None:
    talk.hear(headers(1))
    (found,) = talk.hear(headers(1, END_HEADERS | END_STREAM, encode([("x", "y")])))
    assert (found.ended, found.headers, found.error) == (True, None, None)


@pytest.mark.parametrize(
    ("late", "code"),
    [(Frame(DATA, 0, 1, b"x"), STREAM_CLOSED), (headers(1, 5), STREAM_CLOSED)],
    ids=["data", "headers"],
)
def test_what_comes_after_the_end_loses_the_stream(talk: Talk, late: Frame, code: int) -> None:
    talk.hear(headers(1, END_HEADERS | END_STREAM))
    (found,) = talk.hear(late)
    assert found.error is not None
    assert talk.resets() == [(1, code)]


def test_trailers_that_do_not_end(talk: Talk) -> None:
    talk.hear(headers(1))
    (found,) = talk.hear(headers(1))
    assert found.error is not None
    assert talk.resets() == [(1, PROTOCOL_ERROR)]


def test_more_streams_than_there_may_be() -> None:
    talk = Talk(max_streams=2)
    found = talk.hear(headers(1), headers(3), headers(5), Frame(DATA, 0, 5, b"x"))
    assert [r.stream for r in found] == [1, 3]
    assert talk.resets() == [(5, REFUSED_STREAM)]
    talk.hear(Frame(RST_STREAM, 0, 1, number(8)))
    assert [r.stream for r in talk.hear(headers(7))] == [7]


def test_going_away(talk: Talk) -> None:
    talk.hear(headers(1))
    talk.server.go_away()
    assert talk.sent() == [Frame(GOAWAY, 0, 0, number(1) + number(NO_ERROR))]
    assert talk.hear(headers(3), Frame(DATA, END_STREAM, 3, b"x"), grow(3, 1)) == []
    assert talk.resets() == [(3, REFUSED_STREAM)]
    # what was under way goes on
    (found,) = talk.hear(Frame(DATA, END_STREAM, 1, b"rest"))
    assert (found.data, found.ended) == (b"rest", True)


# --- windows


def test_a_streams_window_is_given_back_as_it_is_used(talk: Talk) -> None:
    talk.hear(headers(1), headers(3))
    half = STREAM_WINDOW // 2
    assert len(talk.hear(*filled(1))) == 4
    assert talk.sent() == []
    talk.server.used(1, half)
    assert talk.sent() == []
    talk.server.used(1, 1)
    assert talk.sent() == [grow(1, half + 1)]
    # each has its own, and the connection's is open again and again
    for stream in (3, 5, 7, 9, 11):
        opening = [] if stream == 3 else [headers(stream)]
        talk.hear(*opening, *filled(stream))
    assert [f.stream for f in talk.sent() if f.kind == WINDOW_UPDATE] == [0, 0]


def filled(stream: int) -> list[Frame]:
    """All that a stream's window takes."""
    return [Frame(DATA, 0, stream, bytes(1 << 20))] * (STREAM_WINDOW >> 20)


def test_padding_is_given_back_at_once(talk: Talk) -> None:
    talk.hear(headers(1))
    body = b"\xff" + b"hello" + bytes(255)
    for _ in range(STREAM_WINDOW // len(body)):
        (found,) = talk.hear(Frame(DATA, PADDED, 1, body))
        assert found.data == b"hello"
    assert any(f.stream == 1 for f in talk.sent())


def test_a_client_that_exceeds_a_window(talk: Talk) -> None:
    more = Frame(DATA, 0, 1, b"x")
    assert talk.fault(headers(1), *filled(1), more) == FLOW_CONTROL_ERROR


def test_long_header_blocks_are_split(talk: Talk) -> None:
    talk.hear(headers(1))
    block = encode([("grpc-message", "x" * 40_000)])
    sent = frames(talk.server.out.headers(1, block, END_STREAM))
    assert [(f.kind, f.flags) for f in sent] == [
        (HEADERS, END_STREAM),
        (CONTINUATION, 0),
        (CONTINUATION, END_HEADERS),
    ]
    assert b"".join(f.body for f in sent) == block


# --- a peer that breaks the protocol

START = headers(1, 0, b"\x00")
HOSTILE = {
    "no settings": (PROTOCOL_ERROR, (headers(1),)),
    "large frame": (FRAME_SIZE_ERROR, (Frame(DATA, 0, 1, bytes(OUR_FRAME + 1)),)),
    "short reset": (FRAME_SIZE_ERROR, (headers(1), Frame(RST_STREAM, 0, 1, bytes(3)))),
    "long ping": (FRAME_SIZE_ERROR, (Frame(PING, 0, 0, bytes(9)),)),
    "short priority": (FRAME_SIZE_ERROR, (Frame(PRIORITY, 0, 1, bytes(4)),)),
    "short goaway": (FRAME_SIZE_ERROR, (Frame(GOAWAY, 0, 0, bytes(7)),)),
    "empty window": (FRAME_SIZE_ERROR, (Frame(WINDOW_UPDATE, 0, 0, b""),)),
    "cut settings": (FRAME_SIZE_ERROR, (Frame(SETTINGS, 0, 0, bytes(7)),)),
    "settings in an ack": (FRAME_SIZE_ERROR, (Frame(SETTINGS, ACK, 0, bytes(6)),)),
    "settings of a stream": (PROTOCOL_ERROR, (Frame(SETTINGS, 0, 1, b""),)),
    "ping of a stream": (PROTOCOL_ERROR, (Frame(PING, 0, 1, bytes(8)),)),
    "goaway of a stream": (PROTOCOL_ERROR, (Frame(GOAWAY, 0, 1, bytes(8)),)),
    "data of no stream": (PROTOCOL_ERROR, (Frame(DATA, 0, 0, b""),)),
    "headers of no stream": (PROTOCOL_ERROR, (headers(0),)),
    "priority of no stream": (PROTOCOL_ERROR, (Frame(PRIORITY, 0, 0, bytes(5)),)),
    "reset of no stream": (PROTOCOL_ERROR, (Frame(RST_STREAM, 0, 0, bytes(4)),)),
    "frames of 0": (PROTOCOL_ERROR, (settings(frame=0),)),
    "frames of 16 MiB": (PROTOCOL_ERROR, (settings(frame=1 << 24),)),
    "push of 2": (PROTOCOL_ERROR, (settings(push=2),)),
    "window of 2 GiB": (FLOW_CONTROL_ERROR, (settings(window=1 << 31),)),
    "stream overflows": (FLOW_CONTROL_ERROR, (headers(1), grow(1, (1 << 31) - 1))),
    "connection overflows": (FLOW_CONTROL_ERROR, (grow(0, (1 << 31) - 1),)),
    "growth of nothing": (PROTOCOL_ERROR, (grow(0, 0),)),
    "push": (PROTOCOL_ERROR, (Frame(PUSH_PROMISE, END_HEADERS, 1, number(2)),)),
    "cut headers": (FRAME_SIZE_ERROR, (headers(1, END_HEADERS | HAS_PRIORITY, bytes(4)),)),
    "long padding": (PROTOCOL_ERROR, (headers(1, END_HEADERS | PADDED, b"\x01"),)),
    "long padding of data": (PROTOCOL_ERROR, (headers(1), Frame(DATA, PADDED, 1, b""))),
    "continuation of nothing": (PROTOCOL_ERROR, (Frame(CONTINUATION, END_HEADERS, 1, b""),)),
    "continuation of another": (PROTOCOL_ERROR, (START, Frame(CONTINUATION, 4, 3, b""))),
    "interrupted": (PROTOCOL_ERROR, (START, Frame(DATA, 0, 1, b""))),
    "interrupted by a ping": (PROTOCOL_ERROR, (START, Frame(PING, 0, 0, bytes(8)))),
    "interrupted by headers": (PROTOCOL_ERROR, (START, START)),
    "bad hpack": (COMPRESSION_ERROR, (headers(1, END_HEADERS, b"\xbe"),)),
    "even stream": (PROTOCOL_ERROR, (headers(2),)),
    "a stream again": (STREAM_CLOSED, (headers(3), Frame(RST_STREAM, 0, 3, bytes(4)), headers(3))),
    "a lower stream": (STREAM_CLOSED, (headers(3), headers(1))),
    "data of an idle stream": (PROTOCOL_ERROR, (Frame(DATA, 0, 1, b"x"),)),
    "reset of an idle stream": (PROTOCOL_ERROR, (Frame(RST_STREAM, 0, 1, bytes(4)),)),
    "window of an idle stream": (PROTOCOL_ERROR, (grow(1, 1),)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_peer_that_breaks_the_protocol(what: str) -> None:
    code, heard = HOSTILE[what]
    talk = Talk()
    if what == "no settings":
        talk.server = Http2Server()
        talk.server.receive(PREFACE)
    assert talk.fault(*heard) == code


def test_a_frame_too_large_is_refused_before_it_is_there(talk: Talk) -> None:
    with pytest.raises(ConnectionFault, match="frame is too large"):
        talk.server.receive(b"\xff\xff\xff\0\0\0\0\0\1")


def test_a_block_without_end(talk: Talk) -> None:
    pieces = [Frame(CONTINUATION, 0, 1, bytes(1024)) for _ in range(MAX_BLOCK >> 10)]
    assert talk.fault(START, *pieces) == ENHANCE_YOUR_CALM


def test_a_flood_of_continuations_that_say_nothing(talk: Talk) -> None:
    assert talk.fault(START, Frame(CONTINUATION, 0, 1, b"")) == ENHANCE_YOUR_CALM


FLOODS = {
    "pings": lambda _n: (Frame(PING, 0, 0, bytes(8)),),
    "answers to no ping": lambda _n: (Frame(PING, ACK, 0, bytes(8)),),
    "settings": lambda _n: (settings(window=5),),
    "priorities": lambda _n: (Frame(PRIORITY, 0, 1, bytes(5)),),
    "unknown frames": lambda _n: (Frame(0xAA, 0, 1, b""),),
    "empty data": lambda _n: (Frame(DATA, 0, 1, b""),),
    "rapid resets": lambda n: (headers(2 * n + 3), Frame(RST_STREAM, 0, 2 * n + 3, number(8))),
    "refused streams": lambda n: (headers(2 * n + 3),),
}


def flood(talk: Talk, what: str) -> None:
    for n in range(PATIENCE + 10):
        talk.hear(*FLOODS[what](n))
        talk.sent()


@pytest.mark.parametrize("what", FLOODS)
def test_floods(what: str) -> None:
    with pytest.raises(ConnectionFault, match="ask for nothing") as caught:
        flood(Talk(headers(1), max_streams=2), what)
    assert caught.value.reason == ENHANCE_YOUR_CALM


def test_patience_comes_back_with_time(talk: Talk) -> None:
    """A client that pings every second does so for ever."""
    for _ in range(3 * PATIENCE):
        talk.clock.now += 1
        talk.hear(Frame(PING, 0, 0, bytes(8)))
        talk.sent()


def test_patience_comes_back_with_what_is_answered(talk: Talk) -> None:
    """grpc-go pings once for each piece of data that it gets, to measure the way."""
    talk.hear(headers(1))
    for _ in range(3 * PATIENCE):
        talk.server.out.send(1, b"x", end=False)
        talk.hear(Frame(PING, 0, 0, bytes(8)), grow(1, 1), grow(0, 1))
        assert [f.kind for f in talk.sent()] == [DATA, PING]


def test_streams_that_were_given_up_are_forgotten_in_the_end() -> None:
    talk = Talk(max_streams=5)
    for stream in range(1, 101, 2):
        talk.hear(headers(stream))
        talk.server.finish(stream, b"")
    assert talk.hear(Frame(DATA, 0, 99, b"late"), Frame(DATA, 0, 91, b"late")) == []
    talk.sent()
    talk.hear(Frame(DATA, 0, 89, b"much too late"))
    assert talk.resets() == [(89, STREAM_CLOSED)]


@pytest.mark.parametrize(
    ("wrong", "good"),
    [
        ([], True),
        ([(":authority", "h")], True),
        ([("UPPER", "x")], False),
        ([("", "x")], False),
        ([("connection", "close")], False),
        ([("upgrade", "h2c")], False),
        ([(":late", "x")], False),
        ([("a", "b"), (":authority", "x")], False),
        ([(":path", "/again")], False),
        ([(":status", "200")], False),
    ],
)
def test_requests_that_are_well_formed(wrong: list[tuple[str, str]], good: bool) -> None:
    pseudo = REQUEST[:3]
    assert well_formed([*pseudo, *wrong]) == good
    for name in range(3):
        assert not well_formed([*pseudo[:name], *pseudo[name + 1 :]])


# --- anything at all


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    talk = Talk()
    try:
        talk.server.receive(data)
    except ConnectionFault:
        assert talk.sent()[-1].kind == GOAWAY
        return
    talk.sent()


a_frame = st.builds(
    Frame,
    kind=st.integers(0, 11),
    flags=st.sampled_from([0, 1, 4, 5, 8, 12, 32, 44]),
    stream=st.sampled_from([0, 1, 2, 3, 5]),
    body=st.binary(max_size=30) | st.just(BLOCK),
)


@given(st.lists(a_frame, max_size=10))
def test_any_frames_are_taken_or_refused(heard: list[Frame]) -> None:
    talk = Talk(headers(1))
    talk.server.out.send(1, bytes(100_000), end=False)
    try:
        for received in talk.hear(*heard):
            talk.server.used(received.stream, len(received.data))
    except ConnectionFault:
        assert talk.sent()[-1].kind == GOAWAY
        return
    talk.sent()
    # no stream is kept that can neither send nor receive
    assert set(talk.server._streams) <= set(talk.server.out.windows)
