"""The server's side of gRPC: against our own client, and against requests made by hand."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kontti.errors import Error
from kontti.wire.grpc import CallEnded, ClientConnection, MessageReceived
from kontti.wire.grpc_server import Event, Refused, Request, ServerConnection, quote
from kontti.wire.hpack import Decoder, Header, encode
from kontti.wire.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from kontti.wire.http2_server import STREAM_WINDOW
from tests.support.http2 import Frame, frames

LIMIT = 1 << 16
REQUEST: list[Header] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t.T/Echo"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


def message(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(data).to_bytes(4, "big") + data


class Talk:
    """A connection whose client is played frame by frame, after its greeting."""

    def __init__(self, max_receive: int = LIMIT, max_send: int = LIMIT) -> None:
        self.server = ServerConnection(max_receive=max_receive, max_send=max_send)
        self.server.receive(PREFACE + Frame(SETTINGS, 0, 0, b"").encode())
        self.server.data_to_send()
        self.stream = -1
        self._decoder = Decoder()

    def open(self, *over: Header, ended: bool = False) -> list[Event]:
        """A call's headers; ``over`` replaces what it has by name."""
        self.stream += 2
        named = dict(over)
        headers = [(n, named.pop(n, v)) for n, v in REQUEST] + [(n, named[n]) for n in named]
        flags = END_HEADERS | (END_STREAM if ended else 0)
        return self.hear(Frame(HEADERS, flags, self.stream, encode(headers)))

    def data(self, data: bytes, *, ended: bool = False) -> list[Event]:
        """Data of the last call."""
        return self.hear(Frame(DATA, END_STREAM if ended else 0, self.stream, data))

    def hear(self, *heard: Frame) -> list[Event]:
        return self.server.receive(b"".join(f.encode() for f in heard))

    def sent(self) -> list[Frame]:
        return frames(self.server.data_to_send())

    def status(self) -> dict[str, str]:
        """The headers of what ends the last call; it is ended once."""
        last = [f for f in self.sent() if f.kind == HEADERS and f.stream == self.stream]
        ends = [f for f in last if f.flags & END_STREAM]
        blocks = [dict(self._decoder.decode(f.body)) for f in last]
        assert len(ends) == 1, last
        return blocks[-1]


@pytest.fixture
def talk() -> Talk:
    return Talk()


def shape(events: list[Event]) -> list[tuple[int, bytes | None, bool, bool]]:
    return [(e.stream, e.message, e.ended, e.gone) for e in events]


def test_a_call_and_its_answer(talk: Talk) -> None:
    (started,) = talk.open(("containerd-namespace", "blue"), ("x-bin", "AAE"))
    assert started.request is not None
    assert started.request.path == "/t.T/Echo"
    assert started.request.metadata["containerd-namespace"] == "blue"
    assert started.request.timeout is None
    assert shape(talk.data(message(b"hello"), ended=True)) == [(1, b"hello", True, False)]
    talk.server.answer(1, b"you")
    first, data, last = talk.sent()
    decoder = Decoder()
    assert decoder.decode(first.body) == [(":status", "200"), ("content-type", "application/grpc")]
    assert (data.body, data.flags) == (message(b"you"), 0)
    assert decoder.decode(last.body) == [("grpc-status", "0")]
    assert last.flags & END_STREAM
    # once only
    talk.server.answer(1, b"again")
    talk.server.finish(1, 5, "late")
    assert talk.sent() == []


def test_the_first_of_several_values_counts() -> None:
    request = Request([*REQUEST, ("containerd-namespace", "a"), ("containerd-namespace", "b")])
    assert request.metadata["containerd-namespace"] == "a"


def test_an_answer_that_waits_for_the_window(talk: Talk) -> None:
    window = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + (10).to_bytes(4, "big")
    talk.hear(Frame(SETTINGS, 0, 0, window))
    talk.open(ended=True)
    talk.sent()
    talk.server.answer(1, b"x" * 25)
    assert [f.kind for f in talk.sent()] == [HEADERS, DATA]
    assert talk.server.pending(1) == 20
    talk.hear(Frame(WINDOW_UPDATE, 0, 1, (20).to_bytes(4, "big")))
    assert [f.kind for f in talk.sent()] == [DATA, HEADERS]


def test_headers_before_any_answer(talk: Talk) -> None:
    talk.open(ended=True)
    talk.server.start(1)
    talk.server.start(1)
    assert [f.kind for f in talk.sent()] == [HEADERS]
    talk.server.send_message(1, b"a")
    talk.server.finish(1, 5, "käyttäjä % gone")
    assert talk.status() == {
        "grpc-status": "5",
        "grpc-message": "k%C3%A4ytt%C3%A4j%C3%A4 %25 gone",
    }


def test_a_status_alone(talk: Talk) -> None:
    talk.open(ended=True)
    talk.server.finish(1, 5, "gone")
    assert talk.status() == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "5",
        "grpc-message": "gone",
    }


@given(st.text(max_size=60))
def test_messages_are_percent_encoded(text: str) -> None:
    told = quote(text)
    assert told.isascii()
    assert told.isprintable()
    client = ClientConnection()
    client.start_call("/t.T/Echo", [])
    block = encode([(":status", "200"), ("grpc-status", "2"), ("grpc-message", told)])
    (end,) = client.receive(Frame(HEADERS, END_HEADERS | END_STREAM, 1, block).encode())
    assert isinstance(end, CallEnded)
    assert end.error is not None
    assert end.error.message == (text or "unknown")


REFUSED: dict[str, tuple[Header, str, int, str]] = {
    "no gRPC": (("content-type", "text/html"), "415", 3, "content-type"),
    "nearly gRPC": (("content-type", "application/grpcx"), "415", 3, "content-type"),
    "another method": ((":method", "GET"), "405", 13, "should be POST"),
    "no unit": (("grpc-timeout", "1"), "400", 13, "malformed grpc-timeout"),
    "no number": (("grpc-timeout", "S"), "400", 13, "malformed grpc-timeout"),
    "negative": (("grpc-timeout", "-1S"), "400", 13, "malformed grpc-timeout"),
    "too long": (("grpc-timeout", "123456789S"), "400", 13, "malformed grpc-timeout"),
    "odd digits": (("grpc-timeout", "²S"), "400", 13, "malformed grpc-timeout"),
    "encoding": (
        ("grpc-encoding", "br"),
        "200",
        12,
        'grpc: Decompressor is not installed for grpc-encoding "br"',
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_requests_that_are_refused(talk: Talk, what: str) -> None:
    over, http, code, text = REFUSED[what]
    assert talk.open(over) == []
    status = talk.status()
    assert (status[":status"], status["grpc-status"]) == (http, str(code))
    assert text in status["grpc-message"]
    assert ("grpc-accept-encoding" in status) == (code == 12)
    # the rest of it is nobody's
    assert talk.data(message(b"x"), ended=True) == []


def test_a_malformed_request_loses_its_stream(talk: Talk) -> None:
    assert talk.open(("UPPER", "x")) == []
    assert [(f.kind, f.body) for f in talk.sent()] == [(RST_STREAM, (1).to_bytes(4, "big"))]
    assert len(talk.open()) == 1


@pytest.mark.parametrize("kind", ["application/grpc+proto", "application/grpc;charset=utf-8"])
def test_content_types(talk: Talk, kind: str) -> None:
    assert len(talk.open(("content-type", kind))) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1H", 3600), ("2M", 120), ("3S", 3), ("4m", 4e-3), ("5u", 5e-6), ("6n", 6e-9), ("0S", 0)],
)
def test_timeouts(talk: Talk, text: str, seconds: float) -> None:
    (started,) = talk.open(("grpc-timeout", text))
    assert started.request is not None
    assert started.request.timeout == pytest.approx(seconds)


# --- messages


@given(
    st.lists(st.binary(max_size=50), max_size=5),
    st.lists(st.integers(1, 60), max_size=10),
    st.booleans(),
)
def test_messages_in_pieces(sent: list[bytes], cuts: list[int], alone: bool) -> None:
    whole = b"".join(message(data) for data in sent)
    talk = Talk()
    found = talk.open()
    for cut in cuts:
        found += talk.data(whole[:cut])
        whole = whole[cut:]
    found += talk.data(whole, ended=not alone)
    if alone:
        found += talk.data(b"", ended=True)
    assert [e.message for e in found if e.message is not None] == sent
    assert [e.ended for e in found] == [False] * (len(found) - 1) + [True]


def test_a_compressed_message(talk: Talk) -> None:
    talk.open(("grpc-encoding", "gzip"))
    sent = message(gzip.compress(b"squeezed"), 1) + message(b"plain")
    assert shape(talk.data(sent, ended=True)) == [
        (1, b"squeezed", False, False),
        (1, b"plain", True, False),
    ]


BAD: dict[str, tuple[str, bytes, int, str]] = {
    "too large": (
        "identity",
        b"\0" + (LIMIT + 1).to_bytes(4, "big"),
        8,
        "grpc: received message larger than max (65537 vs. 65536)",
    ),
    "too large in one piece": (
        "identity",
        message(bytes(LIMIT + 1)),
        8,
        "grpc: received message larger than max (65537 vs. 65536)",
    ),
    "a bomb": (
        "gzip",
        message(gzip.compress(bytes(1 << 24)), 1),
        8,
        "grpc: received message after decompression larger than max 65536",
    ),
    "no gzip": ("gzip", message(b"plain", 1), 13, "grpc: failed to decompress the message"),
    "cut gzip": (
        "gzip",
        message(gzip.compress(b"x" * 100)[:-3], 1),
        13,
        "grpc: failed to decompress the message: unexpected EOF",
    ),
    "compressed and not said": (
        "identity",
        message(b"x", 1),
        13,
        "grpc: compressed flag set with identity or empty encoding",
    ),
    "odd flag": ("gzip", message(b"x", 2), 13, "grpc: received unexpected payload format 2"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_messages(talk: Talk, what: str) -> None:
    encoding, data, code, text = BAD[what]
    talk.open(("grpc-encoding", encoding))
    found = talk.data(message(b"good")) + talk.data(data)
    assert shape(found) == [(1, b"good", False, False), (1, None, False, True)]
    status = talk.status()
    assert status["grpc-status"] == str(code)
    assert status["grpc-message"].startswith(text)
    assert talk.data(message(b"x")) == []


def test_a_message_that_is_cut_short(talk: Talk) -> None:
    talk.open()
    assert shape(talk.data(message(b"abc")[:-1], ended=True)) == [(1, None, False, True)]
    status = talk.status()
    assert (status["grpc-status"], status["grpc-message"]) == ("13", "unexpected EOF")


def test_an_answer_that_is_too_large(talk: Talk) -> None:
    talk.open(ended=True)
    for send in (talk.server.answer, talk.server.send_message):
        with pytest.raises(Refused) as caught:
            send(1, bytes(LIMIT + 1))
        assert caught.value.code == 8
        assert caught.value.message == "trying to send message larger than max (65537 vs. 65536)"
    assert talk.sent() == []


def test_a_reset(talk: Talk) -> None:
    talk.open()
    found = talk.hear(Frame(RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
    assert shape(found) == [(1, None, False, True)]
    talk.server.start(1)
    talk.server.send_message(1, b"late")
    talk.server.finish(1)
    assert talk.sent() == []


# --- windows


def given_back(talk: Talk) -> int:
    """The window of the first stream that is given back now."""
    sent = [f for f in talk.sent() if f.kind == WINDOW_UPDATE and f.stream == 1]
    return sum(int.from_bytes(f.body, "big") for f in sent)


def test_a_message_larger_than_the_window_arrives() -> None:
    talk = Talk(max_receive=4 * STREAM_WINDOW)
    talk.open()
    sent = message(bytes(4 * STREAM_WINDOW))
    room, found = STREAM_WINDOW, []
    while sent:
        assert room > 0
        size = min(room, 1 << 14)
        found += talk.data(sent[:size])
        sent, room = sent[size:], room - size + given_back(talk)
    assert [len(e.message or b"") for e in found] == [4 * STREAM_WINDOW]


def deliver(talk: Talk, data: bytes) -> None:
    for at in range(0, len(data), 1 << 19):
        talk.data(data[at : at + (1 << 19)])


def test_messages_that_nobody_takes_close_the_window() -> None:
    talk = Talk(max_receive=4 * STREAM_WINDOW)
    talk.open()
    half = STREAM_WINDOW // 2
    deliver(talk, message(bytes(half - 5)))
    # of the next one, as much as there is room for
    deliver(talk, message(bytes(4 * STREAM_WINDOW))[:half])
    assert given_back(talk) == 0
    # there is no room for a single byte more
    assert talk.server.http._streams[1].room == 0
    talk.server.taken(1, bytes(half - 5))
    assert given_back(talk) == STREAM_WINDOW


def test_one_connection_cannot_hold_without_end(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kontti.wire.grpc_server.MAX_HELD", 200_000)
    for _ in range(4):
        talk.open()
        talk.data(message(bytes(60_000))[:50_000])
        assert not [f for f in talk.sent() if f.kind == HEADERS]
    talk.open()
    assert shape(talk.data(b"x" * 5)) == [(9, None, False, True)]
    assert talk.status()["grpc-status"] == "8"
    # what is given up is held no more
    talk.hear(Frame(RST_STREAM, 0, 1, bytes(4)))
    talk.open()
    assert shape(talk.data(message(bytes(45_000)))) == [(11, bytes(45_000), False, False)]


def test_answers_that_nobody_takes_are_bounded(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kontti.wire.grpc_server.MAX_HELD", 150_000)
    for _ in range(3):
        talk.open(ended=True)
        # of the first one, the window lets most go
        talk.server.answer(talk.stream, bytes(60_000))
    talk.open(ended=True)
    with pytest.raises(Refused, match="answers are not taken"):
        talk.server.answer(talk.stream, bytes(60_000))
    talk.hear(Frame(RST_STREAM, 0, talk.stream - 2, bytes(4)))
    talk.server.answer(talk.stream, bytes(60_000))
    # and all of them are taken in the end
    talk.hear(Frame(WINDOW_UPDATE, 0, 0, (1 << 20).to_bytes(4, "big")))
    assert talk.server.http.out.waiting == 0


# --- our client and our server


class Pair:
    """Both sides, and what each has heard; bytes go over in pieces."""

    def __init__(self, pieces: list[int]) -> None:
        self.client = ClientConnection()
        self.server = ServerConnection()
        self.heard: dict[int, list[bytes]] = {}
        self.answers: dict[int, list[bytes]] = {}
        self.ends: dict[int, Error | None] = {}
        self._pieces = pieces
        self._number = 0

    def cut(self, data: bytes) -> list[bytes]:
        found = []
        while data:
            size = self._pieces[self._number % len(self._pieces)]
            self._number += 1
            found.append(data[:size])
            data = data[size:]
        return found

    def exchange(self) -> bool:
        up, down = self.client.data_to_send(), self.server.data_to_send()
        for piece in self.cut(up):
            for event in self.server.receive(piece):
                self.serve(event)
        for piece in self.cut(down):
            for event in self.client.receive(piece):
                if isinstance(event, MessageReceived):
                    self.answers[event.stream_id].append(event.data)
                else:
                    self.ends[event.stream_id] = event.error
        return bool(up or down)

    def serve(self, event: Event) -> None:
        """Mirrors; a call whose last message is empty fails."""
        assert not event.gone
        heard = self.heard.setdefault(event.stream, [])
        if event.message is not None:
            heard.append(event.message)
            self.server.taken(event.stream, event.message)
            self.server.send_message(event.stream, event.message)
        if event.ended:
            failed = heard[-1:] == [b""]
            self.server.finish(event.stream, 5 if failed else 0, "x: not found" if failed else "")


calls = st.lists(
    st.lists(st.sampled_from([0, 1, 100, 20_000, 70_000, 1_200_000]), max_size=3), max_size=4
)
cuts = st.lists(st.integers(1, 300_000), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(calls, cuts)
def test_our_client_and_our_server(plan: list[list[int]], pieces: list[int]) -> None:
    pair = Pair([max(piece, 4000) for piece in pieces])
    for number, sizes in enumerate(plan):
        stream = pair.client.start_call("/t.T/Mirror", [("n", "v" * number)])
        pair.answers[stream] = []
        for size in sizes:
            pair.client.send_message(stream, bytes([number]) * size)
        pair.client.end(stream)
    while pair.exchange():
        pass
    for number, sizes in enumerate(plan):
        stream = 2 * number + 1
        assert pair.answers[stream] == [bytes([number]) * size for size in sizes]
        end = pair.ends[stream]
        assert (end is not None and end.code == 5) == (sizes[-1:] == [0])
    assert pair.server.http.out.windows == {}
    assert pair.server._held == 0


def test_our_client_and_our_server_byte_by_byte() -> None:
    pair = Pair([1])
    stream = pair.client.start_call("/t.T/Mirror", [])
    pair.answers[stream] = []
    pair.client.send_message(stream, b"hello", end=True)
    while pair.exchange():
        pass
    assert (pair.answers[stream], pair.ends[stream]) == ([b"hello"], None)
