"""Large blobs by several requests, slots, and hosts that are left for others."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest

from kontti.errors import Canceled, DeadlineExceeded, Error, NotFound
from kontti.registry.fetcher import Fetcher, Pace
from kontti.registry.hosts import Host
from kontti.registry.parallel import Chunking, Slots
from kontti.registry.reference import Reference
from kontti.registry.resolver import Resolver
from kontti.registry.retry import Retries
from kontti.registry.session import Session
from kontti.values import Descriptor, Digest
from tests.support.raw import drip, read_head, talking
from tests.support.registry import free_port
from tests.support.web import Answer, Asked, Repository, Web, serving

BLOB = random.Random(1).randbytes(1_000_003)
DIGEST = Digest("sha256:" + hashlib.sha256(BLOB).hexdigest())
LAYER = Descriptor("application/vnd.oci.image.layer.v1.tar", DIGEST, len(BLOB))
STEP = 100_000
NAME = Reference.parse("example.org/a/b:latest")


def serve_range(asked: Asked) -> Answer:
    """The blob, with ranges that have an end."""
    text = asked.headers.get("range", "").removeprefix("bytes=")
    if not text:
        return Answer(200, {}, BLOB)
    first, _, last = text.partition("-")
    end = int(last) + 1 if last else len(BLOB)
    headers = {"Content-Range": f"bytes {first}-{end - 1}/{len(BLOB)}"}
    return Answer(206, headers, BLOB[int(first) : end])


def session(*webs: Web) -> Session:
    hosts = [Host("http", web.host) for web in webs]
    return Session(lambda registry: hosts, retries=Retries(3, 0.01), sleep=lambda seconds: None)


def fetched(fetcher: Fetcher, offset: int = 0) -> bytes:
    with closing(fetcher.fetch(LAYER, offset)) as chunks:
        return b"".join(chunks)


def fetch(chunking: Chunking, *webs: Web, offset: int = 0) -> bytes:
    with session(*webs) as open_session:
        return fetched(Resolver(open_session).fetcher(NAME, chunking), offset)


@pytest.mark.parametrize("offset", [0, 1, 250_001, len(BLOB) - STEP - 1, len(BLOB) - 10])
def test_the_bytes_are_in_order(offset: int) -> None:
    with serving(serve_range) as web:
        assert fetch(Chunking(STEP, 4), web, offset=offset) == BLOB[offset:]
        asked = len(web.asked)
    assert asked == -(-(len(BLOB) - offset) // STEP)


def test_requests_run_at_once_and_no_more_than_asked_for() -> None:
    lock, now, most = threading.Lock(), 0, 0
    together = threading.Barrier(3, timeout=20)

    def counting(asked: Asked) -> Answer:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            third = len(web.asked) in (2, 3, 4)
        if third:
            # three at the least are there together, or this breaks
            together.wait()
        time.sleep(0.01)
        with lock:
            now -= 1
        return serve_range(asked)

    with serving(counting) as web:
        assert fetch(Chunking(STEP, 4), web) == BLOB
    assert 3 <= most <= 4


def test_what_waits_in_memory_is_bounded() -> None:
    with serving(serve_range) as web, session(web) as open_session:
        fetcher = Resolver(open_session).fetcher(NAME, Chunking(STEP, 3))
        with closing(fetcher.fetch(LAYER)) as chunks:
            next(chunks)
            deadline = time.monotonic() + 10
            while len(web.asked) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            assert len(web.asked) == 3


def test_a_server_without_ranges_is_asked_once() -> None:
    with serving(lambda asked: Answer(200, {}, BLOB)) as web:
        assert fetch(Chunking(STEP, 4), web) == BLOB
        assert len(web.asked) == 1
        assert fetch(Chunking(STEP, 4), web, offset=200_000) == BLOB[200_000:]
        assert len(web.asked) == 2


def test_a_server_that_sends_more_than_the_range() -> None:
    def generous(asked: Asked) -> Answer:
        first = asked.headers["range"].removeprefix("bytes=").partition("-")[0]
        headers = {"Content-Range": f"bytes {first}-{len(BLOB) - 1}/{len(BLOB)}"}
        return Answer(206, headers, BLOB[int(first) :])

    with serving(generous) as web:
        assert fetch(Chunking(STEP, 4), web) == BLOB


def test_a_server_that_sends_less_than_the_range() -> None:
    def stingy(asked: Asked) -> Answer:
        answer = serve_range(asked)
        first = answer.headers["Content-Range"].removeprefix("bytes ").partition("-")[0]
        part = answer.body[:60_000]
        headers = {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(BLOB)}"}
        return Answer(206, headers, part)

    with serving(stingy) as web:
        assert fetch(Chunking(STEP, 4), web) == BLOB


def test_connections_that_break_are_resumed_within_their_part() -> None:
    broken: set[str] = set()

    def breaks_once(asked: Asked) -> Answer:
        answer, wanted = serve_range(asked), asked.headers["range"]
        if len(answer.body) < 50_000 or wanted in broken:
            return answer
        broken.add(wanted)
        return Answer(206, answer.headers, answer.body[:40_000], len(answer.body))

    with serving(breaks_once) as web:
        assert fetch(Chunking(STEP, 4), web) == BLOB
    assert len(broken) > 5


def test_a_part_that_cannot_be_had_fails_the_blob() -> None:
    def lacks(asked: Asked) -> Answer:
        return Answer(404) if "=400000-" in asked.headers["range"] else serve_range(asked)

    with serving(lacks) as web, pytest.raises(NotFound):
        fetch(Chunking(STEP, 4), web)
    assert not [t for t in threading.enumerate() if t.name.startswith("chunk")]


def test_leaving_early_ends_the_requests() -> None:
    with serving(serve_range) as web, session(web) as open_session:
        fetcher = Resolver(open_session).fetcher(NAME, Chunking(STEP, 4))
        with closing(fetcher.fetch(LAYER)) as chunks:
            next(chunks)
        assert not [t for t in threading.enumerate() if t.name.startswith("chunk")]


def test_slots_that_are_taken_make_it_one_request_at_a_time() -> None:
    slots = Slots(1)
    with serving(serve_range) as web, slots.hold(lambda: False):
        assert fetch(Chunking(STEP, 4, slots), web) == BLOB
    with slots.more(5) as count:
        assert count == 1


def test_waiting_for_a_slot_can_be_stopped() -> None:
    slots = Slots(1)
    with slots.hold(lambda: False), pytest.raises(Canceled), slots.hold(lambda: True):
        pass
    with slots.hold(lambda: True):
        pass


# hosts that are of no use are asked last for a while


def test_a_mirror_that_is_not_there_is_dialled_once() -> None:
    gone = Host("http", f"127.0.0.1:{free_port()}")
    repository = Repository({DIGEST: BLOB}, {"latest": DIGEST})
    with serving(repository) as web:
        hosts = [gone, Host("http", web.host)]
        with Session(lambda registry: hosts) as open_session:
            resolver = Resolver(open_session)
            assert resolver.resolve(NAME)[1].digest == DIGEST
            assert [open_session.client(h).resting() for h in hosts] == [True, False]
            assert fetched(resolver.fetcher(NAME)) == BLOB


def test_a_mirror_that_stalls_is_left_and_the_next_goes_on_where_it_was() -> None:
    ended, half = threading.Event(), len(BLOB) // 2

    def stalls(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BLOB))
        connection.sendall(BLOB[:half])
        drip(connection, BLOB[half:], ended, 0.02)

    pace = Pace(least=64 << 10, window=0.3)
    with talking(stalls) as (address, made), serving(serve_range) as web:
        hosts = [Host("http", address), Host("http", web.host)]
        with Session(lambda registry: hosts) as open_session:
            assert fetched(Resolver(open_session, pace).fetcher(NAME)) == BLOB
            # the next blob does not wait for it again
            assert fetched(Resolver(open_session, pace).fetcher(NAME)) == BLOB
        ended.set()
        assert len(made) == 1
        start = int(web.asked[0].headers["range"].removeprefix("bytes=").removesuffix("-"))
    assert half <= start < half + 4096


def test_a_registry_that_is_starting_is_dialled_again() -> None:
    port, stack = free_port(), ExitStack()
    repository, slept = Repository({DIGEST: BLOB}, {"latest": DIGEST}), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            stack.enter_context(serving(repository, port))

    host = Host("http", f"127.0.0.1:{port}")
    with stack, Session(lambda registry: [host], retries=Retries(4, 0.01), sleep=sleep) as one:
        assert Resolver(one).resolve(NAME)[1].digest == DIGEST
    assert len(slept) == 2


@pytest.mark.parametrize(
    "bad",
    [
        lambda asked: Answer(500),
        lambda asked: Answer(401, {"WWW-Authenticate": "Basic realm=x"}),
        lambda asked: Answer(403),
        lambda asked: Answer(429, {"Retry-After": "86400"}),
        lambda asked: Answer(307, {"Location": "file:///etc/passwd"}),
        lambda asked: Answer(307, {"Location": asked.path}),
    ],
)
def test_a_mirror_that_refuses_is_passed_over(bad: Callable[[Asked], Answer]) -> None:
    repository = Repository({DIGEST: BLOB}, {"latest": DIGEST})
    with serving(bad) as mirror, serving(repository) as web:
        with session(mirror, web) as open_session:
            resolver = Resolver(open_session)
            assert resolver.resolve(NAME)[1].digest == DIGEST
            assert fetched(resolver.fetcher(NAME)) == BLOB
        assert len(mirror.asked) <= 24


def test_every_host_fails_and_the_registrys_own_failure_is_told() -> None:
    with (
        serving(lambda asked: Answer(404)) as mirror,
        serving(lambda asked: Answer(403)) as web,
        session(mirror, web) as open_session,
        pytest.raises(Error, match="403 Forbidden"),
    ):
        Resolver(open_session).resolve(NAME)


def test_a_stall_at_the_only_host_is_bounded() -> None:
    pace = Pace(least=1 << 30, window=0.0, failures=3)
    with serving(serve_range) as web, session(web) as open_session:
        with pytest.raises(DeadlineExceeded):
            fetched(Resolver(open_session, pace).fetcher(NAME))
        assert len(web.asked) <= 4
