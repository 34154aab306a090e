"""The shim's ttrpc server: answers in any order, and peers that misbehave."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from kontti.errors import Error, NotFound
from kontti.shim import server as module
from kontti.shim.loop import Loop
from kontti.shim.server import SERVICES, Connection
from kontti.wire.messages.google import Empty
from kontti.wire.protobuf import Message
from kontti.wire.ttrpc import DATA, HEADER, MAX_DATA, REQUEST, ClientStreams, Decoder, encode_frame
from tests.support.hand import Hand

Answer = Callable[[Message | Error], None]
TASK = "containerd.task.v3.Task/"


class Served:
    """One connection, its peer, and what was asked for."""

    def __init__(self) -> None:
        self.hand = Hand()
        self.peer, ours = socket.socketpair()
        self.peer.settimeout(5)
        ours.setblocking(False)
        self.siblings: set[Connection] = set()
        self.connection = Connection(
            cast(Loop, self.hand), ours, dict.fromkeys(SERVICES, self.handle), self.siblings
        )
        self.siblings.add(self.connection)
        self.held: list[Answer] = []
        self.streams = ClientStreams()
        self.decoder = Decoder()

    def handle(self, method: str, _payload: bytes, answer: Answer) -> None:
        if method == "Hold":
            self.held.append(answer)
        elif method == "Fail":
            raise NotFound("thing")
        elif method == "Break":
            raise ZeroDivisionError("a mistake")
        else:
            answer(Empty())

    def ask(self, method: str) -> int:
        """Send a request, and let the server read it."""
        stream, frame = self.streams.call(TASK + method if "/" not in method else method, b"", {})
        self.send(frame)
        return stream

    def send(self, data: bytes) -> None:
        while data:
            data = data[self.peer.send(data[:32768]) :]
            self.hand.turn()

    def next(self) -> tuple[int, str]:
        """The next answer: its stream, and its error."""
        frames = list(self.decoder.feed(self.peer.recv(65536)))
        (frame,) = frames
        answer = self.streams.answer(frame)
        assert answer is not None
        try:
            answer.result()
        except Error as error:
            return frame.stream, error.message
        return frame.stream, ""

    def hung_up(self) -> bool:
        return self.peer.recv(1) == b"" and not self.siblings


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.connection.close()
    made.peer.close()


def test_answers_come_when_they_are_ready(served: Served) -> None:
    first, second = served.ask("Hold"), served.ask("Hold")
    third = served.ask("Quick")
    assert served.next() == (third, "")
    served.held[1](Empty())
    assert served.next() == (second, "")
    served.held[0](NotFound("gone"))
    assert served.next() == (first, "gone: not found")


def test_a_second_answer_is_none(served: Served) -> None:
    stream = served.ask("Hold")
    served.held[0](Empty())
    served.held[0](Empty())
    assert served.next() == (stream, "")
    other = served.ask("Quick")
    assert served.next() == (other, "")


def test_failures_are_answered(served: Served) -> None:
    served.ask("Fail")
    assert served.next()[1] == "thing: not found"
    served.ask("Break")
    assert served.next()[1] == "ZeroDivisionError: a mistake: internal"
    served.ask("containerd.task.v1.Task/Quick")
    assert served.next()[1] == "service containerd.task.v1.Task: not implemented"
    served.ask("containerd.task.v2.Task/Quick")
    assert served.next()[1] == ""


def test_frames_that_are_no_requests_are_passed_over(served: Served) -> None:
    served.send(encode_frame(1, DATA, b"data"))
    stream = served.ask("Quick")
    assert served.next() == (stream, "")


def test_a_request_that_cannot_be_read_is_answered(served: Served) -> None:
    served.send(encode_frame(1, REQUEST, b"\xff\xff\xff"))
    served.streams.call(TASK, b"", {})
    assert served.next()[0] == 1


def test_a_request_that_is_too_long_is_answered(served: Served) -> None:
    served.streams.call(TASK, b"", {})
    served.send(HEADER.pack(MAX_DATA + 1, 1, REQUEST, 0) + bytes(MAX_DATA + 1))
    stream, message = served.next()
    assert stream == 1
    assert message.endswith(": resource exhausted")


def test_who_hangs_up_is_forgotten(served: Served) -> None:
    served.ask("Hold")
    served.peer.shutdown(socket.SHUT_WR)
    served.hand.turn()
    assert served.hung_up()
    served.held[0](Empty())  # too late, and no error


def test_who_does_not_read_is_hung_up_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNSENT", 4096)
    for _ in range(100_000):
        if not served.siblings:
            break
        served.connection.send(bytes(1024))
    assert not served.siblings
