"""Events leave the shim in order, whatever the daemon does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from kontti.shim import publisher as module
from kontti.shim.loop import Loop
from kontti.shim.publisher import Publisher
from kontti.wire.messages.events.task import TaskStart
from kontti.wire.messages.services.ttrpc.events.v1.events import ForwardRequest
from kontti.wire.ttrpc import Decoder
from tests.support.hand import Hand
from tests.support.shims import short_folder


class Daemon:
    """Who listens."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._peer: socket.socket | None = None
        self._decoder = Decoder()

    def read(self) -> list[int]:
        """The pids of the events that have come, in order."""
        if self._peer is None:
            self._peer, _ = self._listener.accept()
            self._decoder = Decoder()
        self._peer.setblocking(False)
        found = []
        try:
            while data := self._peer.recv(65536):
                for frame in self._decoder.feed(data):
                    envelope = ForwardRequest.decode(frame.request().payload).envelope
                    assert envelope is not None
                    assert envelope.event is not None
                    assert (envelope.namespace, envelope.topic) == ("n", "/tasks/start")
                    found.append(TaskStart.decode(envelope.event.value).pid)
        except BlockingIOError:
            pass
        return found

    def hang_up(self) -> None:
        if self._peer is not None:
            self._peer.close()
        self._peer = None

    def close(self) -> None:
        self.hang_up()
        self._listener.close()


@pytest.fixture
def path() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder / "events.sock"


@pytest.fixture
def daemon(path: Path) -> Iterator[Daemon]:
    made = Daemon(path)
    yield made
    made.close()


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def publisher(path: Path, hand: Hand) -> Iterator[Publisher]:
    made = Publisher(cast(Loop, hand), str(path), "n")
    yield made
    made._lost()


def publish(publisher: Publisher, *pids: int) -> None:
    for pid in pids:
        publisher.publish("/tasks/start", TaskStart(container_id="one", pid=pid))


def test_at_once_and_in_order(daemon: Daemon, publisher: Publisher) -> None:
    publish(publisher, 1, 2, 3)
    assert publisher.idle
    assert daemon.read() == [1, 2, 3]


def test_to_nobody(hand: Hand) -> None:
    publisher = Publisher(cast(Loop, hand), "", "n")
    publish(publisher, 1)
    assert publisher.idle
    assert hand.timers == []


def test_kept_until_there_is_a_daemon(path: Path, hand: Hand, publisher: Publisher) -> None:
    publish(publisher, 1, 2)
    assert hand.timers
    # patience grows, up to a bound, and one timer at a time
    assert [hand.tick() for _ in range(6)] == [0.05, 0.2, 1.0, 5.0, 5.0, 5.0]
    daemon = Daemon(path)
    publish(publisher, 3)
    hand.tick()
    assert daemon.read() == [1, 2, 3]
    assert hand.timers == []
    daemon.close()


def test_the_oldest_are_dropped_past_the_bound(
    path: Path, hand: Hand, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 3)
    publish(publisher, 1, 2, 3, 4, 5)
    daemon = Daemon(path)
    hand.tick()
    assert daemon.read() == [3, 4, 5]
    daemon.close()


def test_a_daemon_that_hangs_up_is_found_again(
    daemon: Daemon, hand: Hand, publisher: Publisher
) -> None:
    publish(publisher, 1)
    assert daemon.read() == [1]
    daemon.hang_up()
    hand.turn()
    publish(publisher, 2)
    assert daemon.read() == [2]


def test_a_daemon_that_does_not_read_gets_all_of_it_later(
    daemon: Daemon, hand: Hand, publisher: Publisher
) -> None:
    sent = 0
    while publisher.idle:
        sent += 1
        publish(publisher, sent)
    assert sent > 10
    sent += 1
    publish(publisher, sent)
    found = daemon.read()
    while len(found) < sent:
        hand.turn()
        found += daemon.read()
    assert found == list(range(1, sent + 1))


def test_an_event_that_was_cut_off_is_sent_again_whole(
    daemon: Daemon, hand: Hand, publisher: Publisher
) -> None:
    sent = 0
    while publisher.idle:
        sent += 1
        publish(publisher, sent)
    daemon.read()
    daemon.hang_up()
    hand.turn()
    hand.tick()
    assert daemon.read()[-1:] == [sent]
