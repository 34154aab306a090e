"""The blocking ttrpc client, before peers that do one thing wrong."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kontti.client.ttrpc import FOREVER, call, connect
from kontti.errors import DeadlineExceeded, Error, Internal, NotFound, Unavailable
from kontti.wire.messages.runtime.task.v2.shim import StateRequest, StateResponse
from kontti.wire.ttrpc import (
    HEADER,
    MAX_DATA,
    RESPONSE,
    Decoder,
    Request,
    Response,
    encode_frame,
    encode_response,
    error_response,
)

METHOD = "containerd.task.v3.Task/State"
Peer = Callable[[socket.socket, Request], None]


@contextlib.contextmanager
def answering(peer: Peer) -> Iterator[socket.socket]:
    """A connection to ``peer``, which gets the first request."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def run() -> None:
        decoder = Decoder()
        while data := theirs.recv(65536):
            for frame in decoder.feed(data):
                peer(theirs, frame.request())
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(10)
        theirs.close()


def state(peer: socket.socket, timeout: float = 10.0) -> StateResponse:
    return call(peer, "ns", METHOD, StateRequest(id="one"), StateResponse, timeout)


def answer(peer: socket.socket, response: Response, *, pieces: int = 1) -> None:
    data = encode_response(1, response)
    size = -(-len(data) // pieces)
    for start in range(0, len(data), size):
        peer.sendall(data[start : start + size])
        time.sleep(0.01)


@pytest.mark.parametrize("timeout", [10.0, FOREVER])
def test_a_call(timeout: float) -> None:
    seen: list[Request] = []

    def peer(theirs: socket.socket, request: Request) -> None:
        seen.append(request)
        # answers of calls that nobody made are passed over
        theirs.sendall(encode_response(7, Response(payload=b"\xff")))
        answer(theirs, Response(payload=StateResponse(id="one", pid=7).encode()), pieces=5)

    with answering(peer) as ours:
        found = state(ours, timeout)
    assert (found.id, found.pid) == ("one", 7)
    (request,) = seen
    assert (request.service, request.method) == ("containerd.task.v3.Task", "State")
    assert request.namespace() == "ns"
    assert request.timeout_nano == (0 if timeout == FOREVER else 10 * 10**9)


def cut(theirs: socket.socket) -> None:
    theirs.sendall(HEADER.pack(100, 1, RESPONSE, 0))
    theirs.shutdown(socket.SHUT_WR)


WRONG: dict[str, tuple[type[Error], str, Peer]] = {
    "an error": (
        NotFound,
        "container one: not found",
        lambda theirs, _: answer(theirs, error_response(NotFound("container one"))),
    ),
    "nothing": (Unavailable, "ttrpc: closed", lambda theirs, _: theirs.shutdown(socket.SHUT_WR)),
    "half a frame": (Unavailable, "ttrpc: closed", lambda theirs, _: cut(theirs)),
    "garbage": (Internal, "ttrpc frame", lambda theirs, _: theirs.sendall(b"\xff" * 1000)),
    "a request": (
        Internal,
        "ttrpc frame of type 1",
        lambda theirs, _: theirs.sendall(encode_frame(1, 1, b"")),
    ),
    "no message": (
        Internal,
        "was answered with garbage",
        lambda theirs, _: answer(theirs, Response(payload=b"\xff\xff")),
    ),
    "no response": (
        Internal,
        "ttrpc: ",
        lambda theirs, _: theirs.sendall(encode_frame(1, RESPONSE, b"\xff\xff")),
    ),
    "too much": (
        Error,
        "exceeds maximum size",
        lambda theirs, _: theirs.sendall(HEADER.pack(MAX_DATA + 1, 1, RESPONSE, 0)),
    ),
}


@pytest.mark.parametrize(("kind", "said", "peer"), WRONG.values(), ids=WRONG)
def test_a_wrong_answer(kind: type[Error], said: str, peer: Peer) -> None:
    with answering(peer) as ours, pytest.raises(kind, match=said):
        state(ours)


def test_no_answer() -> None:
    with (
        answering(lambda _peer, _request: None) as ours,
        pytest.raises(DeadlineExceeded, match=r"Task/State was not answered in 0.2 s"),
    ):
        state(ours, 0.2)


def test_one_that_trickles_has_no_more_time() -> None:
    def peer(theirs: socket.socket, _request: Request) -> None:
        data = encode_response(1, Response(payload=b"\x0a\x64" + b"x" * 100))
        with contextlib.suppress(OSError):
            for byte in data:
                theirs.sendall(bytes([byte]))
                time.sleep(0.02)

    began = time.monotonic()
    with answering(peer) as ours:
        with pytest.raises(DeadlineExceeded):
            state(ours, 0.3)
        assert 0.25 < time.monotonic() - began < 1.5


def test_one_that_does_not_accept(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with pytest.raises(Unavailable, match="No such file"):
        connect(path, 1.0)
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as others:
        listener.bind(path)
        with pytest.raises(Unavailable, match="refused"):
            connect(path, 1.0)
        listener.listen(0)
        others.enter_context(connect(path, 1.0))
        with pytest.raises(DeadlineExceeded, match=r"did not accept in 0\.2 s"):
            connect(path, 0.2)


@pytest.mark.parametrize("path", ["x" * 200, "a\0b", ""])
def test_paths_that_no_socket_has(path: str) -> None:
    with pytest.raises(Unavailable):
        connect(path, 1.0)
