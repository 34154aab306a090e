"""ttrpc's frames and calls: bytes in pieces, frames too long, and peers that break the protocol."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kontti.errors import (
    CLASSES,
    Error,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unimplemented,
)
from kontti.wire.messages.google import Status
from kontti.wire.ttrpc import (
    DATA,
    HEADER,
    MAX_DATA,
    MAX_SKIPPED,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    ClientStreams,
    Decoder,
    Frame,
    KeyValue,
    Request,
    Response,
    encode_frame,
    encode_response,
    error_response,
)

Plain = tuple[int, int, int, bytes, bool]


def plain(frames: list[Frame]) -> list[Plain]:
    return [(f.stream, f.kind, f.flags, f.data, f.oversize) for f in frames]


def fed(*pieces: bytes) -> list[Plain]:
    decoder = Decoder()
    return plain([frame for piece in pieces for frame in decoder.feed(piece)])


def one(data: bytes) -> Frame:
    (frame,) = Decoder().feed(data)
    return frame


# --- frames


def test_bytes_of_a_frame() -> None:
    """Length, stream, type and flags, in network order."""
    frame = encode_frame(3, DATA, b"abc", REMOTE_CLOSED)
    assert frame == b"\0\0\0\x03" + b"\0\0\0\x03" + b"\x03" + b"\x01" + b"abc"


frames = st.tuples(
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=100),
    st.just(False),
)


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 50), max_size=30))
def test_frames_in_pieces(sent: list[Plain], cuts: list[int]) -> None:
    whole = b"".join(encode_frame(s, kind, data, flags) for s, kind, flags, data, _ in sent)
    pieces = []
    for cut in cuts:
        pieces.append(whole[:cut])
        whole = whole[cut:]
    assert fed(*pieces, whole) == sent


def test_byte_by_byte() -> None:
    whole = encode_frame(1, REQUEST, b"one") + encode_frame(3, REQUEST, b"")
    assert fed(*(whole[n : n + 1] for n in range(len(whole)))) == [
        (1, REQUEST, 0, b"one", False),
        (3, REQUEST, 0, b"", False),
    ]


def test_a_stream_of_data() -> None:
    sent = (
        encode_frame(1, REQUEST, b"r", REMOTE_OPEN)
        + encode_frame(1, DATA, b"1")
        + encode_frame(1, DATA, b"2", REMOTE_CLOSED)
        + encode_frame(1, DATA, b"", REMOTE_CLOSED | NO_DATA)
    )
    assert fed(sent) == [
        (1, REQUEST, REMOTE_OPEN, b"r", False),
        (1, DATA, 0, b"1", False),
        (1, DATA, REMOTE_CLOSED, b"2", False),
        (1, DATA, REMOTE_CLOSED | NO_DATA, b"", False),
    ]


@pytest.mark.parametrize("flags", [0x08, 0x80, 0xFF])
def test_unknown_flags_and_types_are_handed_on(flags: int) -> None:
    assert fed(encode_frame(1, 77, b"x", flags)) == [(1, 77, flags, b"x", False)]


@pytest.mark.parametrize("length", [0, 1, 9, 10, 12])
def test_what_is_cut_short_is_waited_for(length: int) -> None:
    whole = encode_frame(1, REQUEST, b"abc")
    decoder = Decoder()
    assert plain(list(decoder.feed(whole[:length]))) == []
    assert plain(list(decoder.feed(whole[length:]))) == [(1, REQUEST, 0, b"abc", False)]


def test_the_longest_frame() -> None:
    data = bytes(MAX_DATA)
    assert one(encode_frame(1, REQUEST, data)).data == data
    with pytest.raises(ResourceExhausted, match="message length 4194305 exceed maximum") as caught:
        encode_frame(1, REQUEST, data + b"x")
    assert caught.value.message.endswith(": resource exhausted")


def test_a_frame_too_long_is_thrown_away_and_the_next_is_read() -> None:
    body = bytes(MAX_DATA + 1)
    long = HEADER.pack(len(body), 1, REQUEST, 0)
    decoder = Decoder()
    # known when it begins: whoever waits for it need not wait for its end
    begun = list(decoder.feed(long))
    assert plain(begun) == [(1, REQUEST, 0, b"", True)]
    with pytest.raises(ResourceExhausted, match="exceeds maximum size of 4194304 bytes"):
        begun[0].request()
    assert list(decoder.feed(body[:-1])) == []
    rest = list(decoder.feed(body[-1:] + encode_frame(3, REQUEST, b"next")))
    assert plain(rest) == [(3, REQUEST, 0, b"next", False)]


def test_a_length_that_never_comes_keeps_nothing() -> None:
    decoder = Decoder()
    list(decoder.feed(HEADER.pack(MAX_SKIPPED, 1, REQUEST, 0)))
    for _ in range(10):
        assert list(decoder.feed(bytes(1 << 20))) == []
    assert len(decoder._buffer) == 0


@pytest.mark.parametrize("data", [b"\xff" * 1000, HEADER.pack(MAX_SKIPPED + 1, 1, RESPONSE, 0)])
def test_a_length_that_no_frame_has_is_garbage(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="ttrpc frame of type"):
        list(Decoder().feed(data))


@given(st.binary(max_size=200))
@example(b"\0\0\0\0" * 10)
def test_any_bytes_are_frames_or_waited_for(data: bytes) -> None:
    decoder = Decoder()
    taken = 0
    with contextlib.suppress(InvalidArgument):
        for frame in decoder.feed(data):
            taken += HEADER.size + len(frame.data)
            with contextlib.suppress(InvalidArgument, ResourceExhausted):
                frame.request()
    assert taken <= len(data)


# --- requests and responses

texts = st.text(max_size=30)


@given(
    st.builds(
        Request,
        service=texts,
        method=texts,
        payload=st.binary(max_size=50),
        timeout_nano=st.integers(-(1 << 63), (1 << 63) - 1),
        metadata=st.lists(st.builds(KeyValue, key=texts, value=texts), max_size=4),
    )
)
def test_requests(request_: Request) -> None:
    assert one(encode_frame(1, REQUEST, request_.encode())).request() == request_


def test_bytes_of_a_request() -> None:
    """Field numbers, by hand."""
    pair = KeyValue(key="k", value="v")
    request = Request(service="s", method="m", payload=b"p", timeout_nano=5, metadata=[pair])
    wanted = b"\x0a\x01s\x12\x01m\x1a\x01p\x20\x05\x2a\x06\x0a\x01k\x12\x01v"
    assert request.encode() == wanted
    assert Response(status=Status(code=5), payload=b"p").encode() == b"\x0a\x02\x08\x05\x12\x01p"


@pytest.mark.parametrize(
    "data", [b"\x0a", b"\x0a\x05abc", b"\x0a\x01\xff", b"\xff" * 11, b"\x2a\x02\x0a\x05"]
)
def test_requests_that_are_none(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        one(encode_frame(1, REQUEST, data)).request()


def test_the_namespace() -> None:
    key = "containerd-namespace-ttrpc"
    blue, red = KeyValue(key=key, value="blue"), KeyValue(key=key, value="red")
    assert Request(metadata=[KeyValue(key="other", value="x"), blue, red]).namespace() == "blue"
    assert Request(metadata=[KeyValue(key="containerd-namespace", value="x")]).namespace() == ""


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_keep_their_class(kind: type[Error]) -> None:
    sent = error_response(kind("task x"))
    received = Response.decode(one(encode_response(1, sent)).data)
    with pytest.raises(kind) as caught:
        received.result()
    assert type(caught.value) is kind
    assert caught.value.message == kind("task x").message


def test_a_status_of_zero_is_success() -> None:
    assert Response(status=Status(message="fine"), payload=b"p").result() == b"p"
    assert Response(payload=b"p").result() == b"p"


def test_a_response_too_long_becomes_an_error() -> None:
    for response in (
        Response(payload=bytes(MAX_DATA)),
        error_response(NotFound("x" * MAX_DATA)),
    ):
        frame = one(encode_response(7, response))
        assert (frame.stream, frame.kind) == (7, RESPONSE)
        with pytest.raises(ResourceExhausted, match="exceeds maximum size"):
            Response.decode(frame.data).result()


# --- a client's calls


def answer(stream: int, payload: bytes = b"") -> Frame:
    return one(encode_response(stream, Response(payload=payload)))


def test_calls_have_odd_numbers_and_their_own_answers() -> None:
    streams = ClientStreams()
    calls = [streams.call("t.T/Echo", b"%d" % n, {"k": "v"}, 9) for n in range(3)]
    assert [stream for stream, _ in calls] == [1, 3, 5]
    for n, (stream, data) in enumerate(calls):
        frame = one(data)
        assert (frame.stream, frame.kind, frame.flags) == (stream, REQUEST, 0)
        assert frame.request() == Request(
            service="t.T",
            method="Echo",
            payload=b"%d" % n,
            timeout_nano=9,
            metadata=[KeyValue(key="k", value="v")],
        )
    for stream in (5, 1, 3):
        response = streams.answer(answer(stream, b"%d" % stream))
        assert response is not None
        assert response.result() == b"%d" % stream
        # the second answer is nobody's
        assert streams.answer(answer(stream)) is None


def test_answers_that_nobody_waits_for() -> None:
    streams = ClientStreams()
    stream, _ = streams.call("t.T/Echo", b"", {})
    streams.forget(stream)
    streams.forget(stream)
    for late in (stream, 0, 2, 99):
        assert streams.answer(answer(late)) is None


def test_data_is_not_an_answer() -> None:
    streams = ClientStreams()
    stream, _ = streams.call("t.T/Echo", b"", {})
    assert streams.answer(one(encode_frame(stream, DATA, b"x", REMOTE_CLOSED))) is None
    assert streams.answer(answer(stream)) is not None


@pytest.mark.parametrize("kind", [0, REQUEST, 4, 255])
def test_a_server_that_sends_what_only_clients_send(kind: int) -> None:
    streams = ClientStreams()
    stream, _ = streams.call("t.T/Echo", b"", {})
    with pytest.raises(InvalidArgument, match=f"frame of type {kind} from a server"):
        streams.answer(one(encode_frame(stream, kind, b"")))


def test_an_answer_too_long() -> None:
    streams = ClientStreams()
    stream, _ = streams.call("t.T/Echo", b"", {})
    long = HEADER.pack(MAX_DATA + 1, stream, RESPONSE, 0) + bytes(MAX_DATA + 1)
    response = streams.answer(one(long))
    assert response is not None
    with pytest.raises(ResourceExhausted, match="exceeds maximum size"):
        response.result()


def test_an_answer_that_is_garbage() -> None:
    streams = ClientStreams()
    stream, _ = streams.call("t.T/Echo", b"", {})
    with pytest.raises(InvalidArgument):
        streams.answer(one(encode_frame(stream, RESPONSE, b"\xff")))
    # and that was the answer
    assert streams.answer(answer(stream)) is None


def test_a_call_too_long_leaves_nothing_behind() -> None:
    streams = ClientStreams()
    with pytest.raises(ResourceExhausted):
        streams.call("t.T/Echo", bytes(MAX_DATA), {})
    stream, _ = streams.call("t.T/Echo", b"", {})
    assert stream == 1


def test_an_error_of_the_server() -> None:
    streams = ClientStreams()
    stream, _ = streams.call("t.T/Echo", b"", {})
    response = streams.answer(
        one(encode_response(stream, error_response(Unimplemented("service x"))))
    )
    assert response is not None
    with pytest.raises(Unimplemented, match=r"^service x: not implemented$"):
        response.result()
