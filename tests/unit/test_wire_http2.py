"""The client's side of HTTP/2, against a peer that is played frame by frame (RFC 9113)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import (
    Canceled,
    Error,
    Internal,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from kontti.wire.hpack import Decoder, encode
from kontti.wire.http2 import Http2Connection
from kontti.wire.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_BLOCK,
    MAX_FRAME_SIZE,
    OUR_FRAME,
    OUR_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Received,
)
from tests.support.http2 import Frame, frames

REQUEST = [(":method", "POST"), (":path", "/s/m"), ("containerd-namespace", "blue")]
ANSWER = [(":status", "200"), ("content-type", "application/grpc")]
WINDOW = 65535


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def settings(**values: int) -> Frame:
    known = {"window": INITIAL_WINDOW_SIZE, "frame": MAX_FRAME_SIZE, "unknown": 0xFFFF}
    body = b"".join(known[n].to_bytes(2, "big") + number(v) for n, v in values.items())
    return Frame(SETTINGS, 0, 0, body)


def grow(stream: int, size: int) -> Frame:
    return Frame(WINDOW_UPDATE, 0, stream, number(size))


class Talk:
    """A connection after its greeting, and its first stream."""

    def __init__(self) -> None:
        self.connection = Http2Connection()
        self.greeting = self.connection.data_to_send()
        self.stream = self.connection.open(REQUEST)
        self.opening = self.sent()

    def sent(self) -> list[Frame]:
        return frames(self.connection.data_to_send())

    def hear(self, *heard: Frame) -> list[Received]:
        return self.connection.receive(b"".join(f.encode() for f in heard))

    def posted(self) -> bytes:
        """The data that is sent now, frame headers taken off."""
        return b"".join(f.body for f in self.sent() if f.kind == DATA)


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_greeting(talk: Talk) -> None:
    assert talk.greeting.startswith(PREFACE)
    first, second = frames(talk.greeting[len(PREFACE) :])
    assert (first.kind, first.flags, first.stream) == (SETTINGS, 0, 0)
    told = {first.body[n : n + 2][1]: first.body[n + 2 : n + 6] for n in range(0, 18, 6)}
    assert told == {2: number(0), 4: number(OUR_WINDOW), 5: number(OUR_FRAME)}
    assert second == grow(0, OUR_WINDOW - WINDOW)


def test_streams_have_odd_numbers(talk: Talk) -> None:
    assert [talk.stream, *(talk.connection.open(REQUEST) for _ in range(3))] == [1, 3, 5, 7]
    (frame,) = talk.opening
    assert (frame.kind, frame.flags, frame.stream) == (HEADERS, END_HEADERS, 1)
    assert Decoder().decode(frame.body) == REQUEST


def test_a_whole_answer_byte_by_byte(talk: Talk) -> None:
    whole = b"".join(
        frame.encode()
        for frame in (
            settings(window=1 << 20),
            Frame(HEADERS, END_HEADERS, 1, encode(ANSWER)),
            Frame(DATA, 0, 1, b"hello"),
            Frame(HEADERS, END_HEADERS | END_STREAM, 1, encode([("grpc-status", "0")])),
        )
    )
    found = [r for n in range(len(whole)) for r in talk.connection.receive(whole[n : n + 1])]
    assert [(r.stream, r.headers, r.data, r.ended) for r in found] == [
        (1, ANSWER, b"", False),
        (1, None, b"hello", False),
        (1, [("grpc-status", "0")], b"", True),
    ]
    assert [r.error for r in found] == [None, None, None]
    assert talk.sent() == [Frame(SETTINGS, ACK, 0, b"")]


def test_settings_and_pings_are_answered(talk: Talk) -> None:
    talk.hear(settings(unknown=7), Frame(PING, 0, 0, b"12345678"))
    assert talk.sent() == [Frame(SETTINGS, ACK, 0, b""), Frame(PING, ACK, 0, b"12345678")]
    # answers are not answered
    talk.hear(Frame(SETTINGS, ACK, 0, b""), Frame(PING, ACK, 0, b"12345678"))
    assert talk.sent() == []


def test_unknown_frames_are_passed_over(talk: Talk) -> None:
    assert talk.hear(Frame(0xFA, 0xFF, 9, b"?"), Frame(PRIORITY, 0, 1, b"12345")) == []
    assert talk.sent() == []


def test_the_reserved_bit_is_passed_over(talk: Talk) -> None:
    (found,) = talk.hear(Frame(DATA, 0, 1 | 1 << 31, b"x"))
    assert (found.stream, found.data) == (1, b"x")


# --- what we send, and the peer's windows


def test_data_waits_for_the_streams_window(talk: Talk) -> None:
    data = bytes(range(256)) * 1000
    talk.connection.send(1, data, end=True)
    posted = talk.sent()
    assert all(f.kind == DATA and not f.flags and len(f.body) <= 16384 for f in posted)
    assert b"".join(f.body for f in posted) == data[:WINDOW]
    assert talk.connection.pending(1) == len(data) - WINDOW
    # the connection's window is used up, too
    talk.hear(grow(1, len(data)))
    assert talk.sent() == []
    talk.hear(grow(0, len(data)))
    rest = talk.sent()
    assert b"".join(f.body for f in rest) == data[WINDOW:]
    assert [f.flags for f in rest] == [0] * (len(rest) - 1) + [END_STREAM]
    assert talk.connection.pending(1) == 0


def test_a_window_that_settings_open_and_close(talk: Talk) -> None:
    talk.hear(settings(window=10))
    talk.sent()
    talk.connection.send(1, b"x" * 30, end=False)
    assert talk.posted() == b"x" * 10
    # 10 used of 5: the window is at -5, and 4 more do not open it
    talk.hear(settings(window=5), grow(1, 4))
    assert talk.posted() == b""
    talk.hear(grow(1, 3))
    assert talk.posted() == b"x" * 2
    talk.hear(settings(window=1000))
    assert talk.posted() == b"x" * 18
    # and one opened now starts with all of it
    other = talk.connection.open(REQUEST)
    talk.connection.send(other, b"y" * 2000, end=True)
    assert talk.posted() == b"y" * 1000


def test_one_full_stream_does_not_hold_up_another(talk: Talk) -> None:
    talk.hear(settings(window=10))
    other = talk.connection.open(REQUEST)
    talk.connection.send(1, b"x" * 11, end=True)
    talk.connection.send(other, b"y" * 10, end=True)
    assert [f.stream for f in talk.sent() if f.kind == DATA] == [1, other]


def test_the_end_alone_needs_no_window(talk: Talk) -> None:
    talk.hear(settings(window=0))
    talk.sent()
    talk.connection.send(1, b"", end=True)
    assert talk.sent() == [Frame(DATA, END_STREAM, 1, b"")]


def test_frames_as_large_as_the_peer_takes_them(talk: Talk) -> None:
    talk.hear(settings(frame=20000), grow(1, 1 << 20), grow(0, 1 << 20))
    talk.sent()
    talk.connection.send(1, b"x" * 50000, end=False)
    assert [len(f.body) for f in talk.sent()] == [20000, 20000, 10000]


steps = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 40000)),
    st.tuples(st.just("stream"), st.integers(1, 50000)),
    st.tuples(st.just("connection"), st.integers(1, 50000)),
    st.tuples(st.just("window"), st.integers(0, 100000)),
    st.tuples(st.just("frame"), st.integers(16384, 70000)),
)


@given(st.lists(steps, max_size=30))
def test_no_window_is_ever_exceeded(plan: list[tuple[str, int]]) -> None:
    talk = Talk()
    room = {"stream": WINDOW, "connection": WINDOW, "window": WINDOW, "frame": 16384}
    given_data = received = b""
    for what, size in plan:
        if what == "send":
            piece = bytes([size % 256]) * size
            given_data += piece
            talk.connection.send(1, piece, end=False)
        elif what in ("stream", "connection"):
            room[what] += size
            talk.hear(grow(1 if what == "stream" else 0, size))
        else:
            room["stream"] += size - room["window"] if what == "window" else 0
            room[what] = size
            talk.hear(settings(**{what: size}))
        sent = [f for f in talk.sent() if f.kind == DATA]
        assert all(len(f.body) <= room["frame"] for f in sent)
        new = b"".join(f.body for f in sent)
        received += new
        room["stream"] -= len(new)
        room["connection"] -= len(new)
        assert not new or min(room["stream"], room["connection"]) >= 0
        assert talk.connection.pending(1) == len(given_data) - len(received)
        # what can go, goes
        waits = len(received) < len(given_data)
        assert not waits or min(room["stream"], room["connection"]) <= 0
    assert given_data.startswith(received)


# --- what we receive, and our windows


def test_windows_are_given_back(talk: Talk) -> None:
    piece = b"x" * (1 << 20)
    other = talk.connection.open(REQUEST)
    talk.sent()
    for _ in range(3):
        talk.hear(Frame(DATA, 0, 1, piece))
    assert talk.sent() == [grow(0, 3 << 20), grow(1, 3 << 20)]
    # what nobody waits for counts on the connection still
    talk.connection.reset(other)
    talk.sent()
    for _ in range(3):
        assert talk.hear(Frame(DATA, 0, other, piece)) == []
    assert talk.sent() == [grow(0, 3 << 20)]


def test_padding_counts_and_is_taken_off(talk: Talk) -> None:
    body = b"\xff" + b"hello" + bytes(255)
    (found,) = talk.hear(Frame(DATA, PADDED, 1, body))
    assert found.data == b"hello"
    for _ in range(OUR_WINDOW // 2 // len(body)):
        talk.hear(Frame(DATA, PADDED, 1, body))
    assert [f.kind for f in talk.sent()] == [WINDOW_UPDATE, WINDOW_UPDATE]


def test_padding_and_nothing_else(talk: Talk) -> None:
    (found,) = talk.hear(Frame(DATA, PADDED, 1, b"\x02\0\0"))
    assert found.data == b""


@pytest.mark.parametrize("kind", [DATA, HEADERS])
@pytest.mark.parametrize("body", [b"", b"\x01", b"\xff" + bytes(100)])
def test_padding_longer_than_its_frame(talk: Talk, kind: int, body: bytes) -> None:
    with pytest.raises(Unavailable, match="padding is longer than its frame"):
        talk.hear(Frame(kind, PADDED | END_HEADERS, 1, body))


def test_headers_with_padding_priority_and_continuations(talk: Talk) -> None:
    block = encode([*ANSWER, ("x", "y" * 100)])
    padded = b"\x03" + bytes(5) + block[:10] + bytes(3)
    (found,) = talk.hear(
        Frame(HEADERS, PADDED | HAS_PRIORITY | END_STREAM, 1, padded),
        Frame(CONTINUATION, 0, 1, block[10:50]),
        Frame(CONTINUATION, END_HEADERS, 1, block[50:]),
    )
    assert found.headers == [*ANSWER, ("x", "y" * 100)]
    assert found.ended


def test_headers_for_nobody_still_change_the_table(talk: Talk) -> None:
    """A block of a stream that is given up is decoded: the next refers to it."""
    other = talk.connection.open(REQUEST)
    talk.connection.reset(other)
    new = b"\x40\x01n\x01v"
    assert talk.hear(Frame(HEADERS, END_HEADERS, other, new)) == []
    (found,) = talk.hear(Frame(HEADERS, END_HEADERS, 1, b"\xbe"))
    assert found.headers == [("n", "v")]


# --- ends


def test_an_ended_stream_is_forgotten(talk: Talk) -> None:
    talk.connection.send(1, b"x" * 100_000, end=False)
    talk.sent()
    (found,) = talk.hear(Frame(DATA, END_STREAM, 1, b"bye"))
    assert (found.data, found.ended, found.error) == (b"bye", True, None)
    assert talk.connection.pending(1) == 0
    # a reset after the end says only that the rest is not wanted
    assert talk.hear(Frame(RST_STREAM, 0, 1, number(0)), grow(1, 1), grow(0, 1)) == []
    talk.connection.send(1, b"late", end=True)
    talk.connection.reset(1)
    assert talk.sent() == []


def test_giving_up(talk: Talk) -> None:
    talk.connection.reset(1)
    assert talk.sent() == [Frame(RST_STREAM, 0, 1, number(8))]
    assert talk.hear(Frame(DATA, END_STREAM, 1, b"late")) == []
    talk.connection.reset(1)
    assert talk.sent() == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (0, Internal),
        (2, Internal),
        (7, Unavailable),
        (8, Canceled),
        (11, ResourceExhausted),
        (12, PermissionDenied),
        (0xFFFFFFFF, Internal),
    ],
)
def test_resets(talk: Talk, code: int, kind: type[Error]) -> None:
    (found,) = talk.hear(Frame(RST_STREAM, 0, 1, number(code)))
    assert found.ended
    assert type(found.error) is kind
    assert f"reset with code {code}:" in str(found.error)


def test_a_peer_that_goes_away(talk: Talk) -> None:
    late = talk.connection.open(REQUEST)
    (lost,) = talk.hear(Frame(GOAWAY, 0, 0, number(1) + number(0) + b"max_age"))
    assert lost.stream == late
    assert lost.ended
    assert isinstance(lost.error, Unavailable)
    assert "goes away: max_age" in str(lost.error)
    # what it has taken on it finishes; it takes on no more
    (found,) = talk.hear(Frame(HEADERS, END_HEADERS | END_STREAM, 1, encode(ANSWER)))
    assert found.headers == ANSWER
    with pytest.raises(Unavailable, match="goes away: max_age"):
        talk.connection.open(REQUEST)


def test_going_away_in_two_steps(talk: Talk) -> None:
    assert talk.hear(Frame(GOAWAY, 0, 0, number((1 << 31) - 1) + number(0))) == []
    (lost,) = talk.hear(Frame(GOAWAY, 0, 0, number(0) + number(0) + b"\xff"))
    assert lost.stream == 1


# --- a peer that breaks the protocol

START = Frame(HEADERS, 0, 1, b"\x00")
HOSTILE = {
    "frame is too large": (Frame(DATA, 0, 1, bytes(OUR_FRAME + 1)),),
    "frame of type 3 has 3 bytes": (Frame(RST_STREAM, 0, 1, bytes(3)),),
    "frame of type 6 has 9 bytes": (Frame(PING, 0, 0, bytes(9)),),
    "frame of type 7 has 7 bytes": (Frame(GOAWAY, 0, 0, bytes(7)),),
    "frame of type 8 has 0 bytes": (Frame(WINDOW_UPDATE, 0, 0, b""),),
    "settings are cut short": (Frame(SETTINGS, 0, 0, bytes(7)),),
    "frames cannot be of 0 bytes": (settings(frame=0),),
    "frames cannot be of 16777216 bytes": (settings(frame=1 << 24),),
    "window is too large": (settings(window=1 << 31),),
    "window is too large ": (grow(1, (1 << 31) - 1),),
    "window is too large  ": (grow(0, (1 << 31) - 1),),
    "window is too large   ": (grow(1, (1 << 31) - 1 - WINDOW), settings(window=WINDOW + 1)),
    "window grows by nothing": (grow(0, 0),),
    "though it may not": (Frame(PUSH_PROMISE, END_HEADERS, 1, number(2) + encode(REQUEST)),),
    "headers are cut short": (Frame(HEADERS, END_HEADERS | HAS_PRIORITY, 1, bytes(4)),),
    "continuation of nothing": (Frame(CONTINUATION, END_HEADERS, 1, b""),),
    "continuation of nothing ": (START, Frame(CONTINUATION, END_HEADERS, 3, b"")),
    "header block is interrupted": (START, Frame(DATA, 0, 1, b"")),
    "header block is interrupted ": (START, START),
    "hpack: no entry 62": (Frame(HEADERS, END_HEADERS, 1, b"\xbe"),),
    "hpack: truncated string": (START, Frame(CONTINUATION, END_HEADERS, 1, b"\x05a")),
}


@pytest.mark.parametrize("why", HOSTILE)
def test_a_peer_that_breaks_the_protocol(talk: Talk, why: str) -> None:
    with pytest.raises(Unavailable, match=f"http2: .*{why.strip()}.*: unavailable$"):
        talk.hear(*HOSTILE[why])


def test_a_frame_too_large_is_refused_before_it_is_there(talk: Talk) -> None:
    with pytest.raises(Unavailable, match="frame is too large"):
        talk.connection.receive(b"\xff\xff\xff\0\0\0\0\0\1")


def test_a_peer_that_speaks_http1(talk: Talk) -> None:
    with pytest.raises(Unavailable, match="frame is too large"):
        talk.connection.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_a_block_without_end(talk: Talk) -> None:
    with pytest.raises(Unavailable, match="header block is too large"):
        talk.hear(START, *(Frame(CONTINUATION, 0, 1, bytes(1024)) for _ in range(MAX_BLOCK >> 10)))


def test_a_flood_of_continuations_that_say_nothing(talk: Talk) -> None:
    with pytest.raises(Unavailable, match="continuation without anything in it"):
        talk.hear(START, *(Frame(CONTINUATION, 0, 1, b"") for _ in range(1000)))


def test_headers_that_cannot_be_sent_open_no_stream(talk: Talk) -> None:
    with pytest.raises(UnicodeEncodeError):
        talk.connection.open([("n", "\ud800")])
    assert talk.sent() == []
    assert talk.connection.open(REQUEST) == 3


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    talk = Talk()
    try:
        talk.connection.receive(data)
    except Unavailable:
        return
    talk.sent()


a_frame = st.builds(
    Frame,
    kind=st.integers(0, 11),
    flags=st.sampled_from([0, 1, 4, 5, 8, 12, 32, 44]),
    stream=st.sampled_from([0, 1, 2, 3, 5]),
    body=st.binary(max_size=30),
)


@given(st.lists(a_frame, max_size=10))
def test_any_frames_are_taken_or_refused(heard: list[Frame]) -> None:
    talk = Talk()
    talk.connection.send(1, bytes(100_000), end=True)
    try:
        talk.hear(*heard)
    except Unavailable:
        return
    frames(talk.connection.data_to_send())
