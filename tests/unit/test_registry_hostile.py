"""Servers that break HTTP itself: every wait ends, and nothing grows."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.errors import DeadlineExceeded, Error, ResourceExhausted, Unavailable
from kontti.registry import pool, watch
from kontti.registry.fetcher import Pace
from kontti.registry.hosts import Host, HostOptions, configured
from kontti.registry.http import Request, Tls
from kontti.registry.pool import Pool
from kontti.registry.reference import Reference
from kontti.registry.resolver import Resolver
from kontti.registry.retry import Retries
from kontti.registry.session import Call, Session
from kontti.values import Descriptor, Digest
from tests.support.raw import Talk, drip, read_head, talking

LAYER = "application/vnd.oci.image.layer.v1.tar"
FIRST = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ANSWER_SECONDS", 0.4)
    monkeypatch.setattr(pool, "UPLOAD_SECONDS", 0.4)
    monkeypatch.setattr(watch, "STEP", 0.05)


def session(address: str) -> tuple[Session, Reference]:
    hosts = configured(HostOptions(plain_http=True))
    made = Session(hosts, retries=Retries(2, 0.01), sleep=lambda seconds: None)
    return made, Reference.parse(f"{address}/a/b:latest")


def resolve(address: str) -> None:
    open_session, name = session(address)
    with open_session:
        Resolver(open_session).resolve(name)


def fetch(address: str, size: int, pace: Pace | None = None) -> int:
    open_session, name = session(address)
    wanted = Descriptor(LAYER, Digest("sha256:" + hashlib.sha256(b"x").hexdigest()), size)
    with open_session:
        return sum(len(c) for c in Resolver(open_session, pace).fetcher(name).fetch(wanted))


def answering(data: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(data)

    return talk


@pytest.mark.usefixtures("impatient")
def test_headers_that_come_byte_by_byte(ended: threading.Event) -> None:
    def talk(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(FIRST + b"X: ")
        drip(connection, b"y", ended, 0.05)

    with talking(talk) as (address, made):
        with pytest.raises(DeadlineExceeded, match="no answer"):
            resolve(address)
        assert len(made) == 1


@pytest.mark.parametrize("cut", [len(FIRST), len(FIRST) + 20, -2, -3])
def test_headers_that_are_cut_off(cut: int) -> None:
    whole = FIRST + b"Content-Length: 10000\r\n\r\n"
    with talking(answering(whole[:cut])) as (address, made):
        with pytest.raises(Unavailable, match="headers"):
            fetch(address, 10_000)
        assert len(made) > 1


@pytest.mark.usefixtures("impatient")
def test_an_answer_that_never_comes() -> None:
    def silent(connection: socket.socket) -> None:
        read_head(connection)
        connection.recv(1)

    with talking(silent) as (address, _), pytest.raises(DeadlineExceeded):
        resolve(address)


@pytest.mark.usefixtures("impatient")
def test_a_chunk_size_that_comes_byte_by_byte(ended: threading.Event) -> None:
    def talk(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(FIRST + b"Transfer-Encoding: chunked\r\n\r\n1;")
        drip(connection, b"x", ended, 0.05)

    with talking(talk) as (address, made), pytest.raises(DeadlineExceeded):
        fetch(address, 10)
    assert len(made) <= 4


@pytest.mark.usefixtures("impatient")
def test_trailers_without_end(ended: threading.Event) -> None:
    def talk(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(FIRST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        drip(connection, b"a: b\r\n", ended, 0.01)

    with talking(talk) as (address, _), pytest.raises(Error):
        fetch(address, 10)


@pytest.mark.usefixtures("impatient")
def test_a_handshake_that_never_ends(
    ended: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "READ_SECONDS", 0.4)

    def talk(connection: socket.socket) -> None:
        connection.recv(1)
        # a handshake record of 16 KiB
        connection.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")
        drip(connection, b"\0", ended, 0.05)

    transport = Pool(Tls(skip_verify=True), connect_seconds=0.2)
    with talking(talk) as (address, _), pytest.raises(DeadlineExceeded, match="timed out"):
        transport.send(Request("GET", f"https://{address}/v2/"))
    transport.close()


@pytest.mark.parametrize(
    "data",
    [
        FIRST + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        FIRST + b"".join(b"X-%d: y\r\n" % i for i in range(1000)) + b"\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"",
        FIRST + b"Content-Length: -5\r\n\r\n",
        FIRST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        FIRST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http(data: bytes) -> None:
    with talking(answering(data)) as (address, made):
        with pytest.raises(Error) as caught:
            fetch(address, 10)
        assert "object at 0x" not in str(caught.value)
        assert len(made) <= 12


def test_a_slow_body_is_left_for_the_next_attempt_and_then_for_good(
    ended: threading.Event,
) -> None:
    def talk(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(FIRST + b"Content-Length: 100000\r\n\r\n")
        drip(connection, b"x", ended, 0.02)

    pace = Pace(least=4096, window=0.2, failures=3)
    with talking(talk) as (address, made), pytest.raises(DeadlineExceeded, match="bytes in"):
        fetch(address, 100_000, pace)
    assert len(made) == 3


def test_an_endless_body_costs_no_memory() -> None:
    sent = threading.Event()

    def talk(connection: socket.socket) -> None:
        head = read_head(connection)
        if head.startswith(b"HEAD"):
            connection.sendall(FIRST + b"Connection: close\r\n\r\n")
            return
        connection.sendall(FIRST + b"\r\n")
        block = b"x" * (1 << 20)
        for _ in range(256):
            connection.sendall(block)
        sent.set()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with talking(talk) as (address, _):
        with pytest.raises(Error, match="longer than"):
            fetch(address, 1000)
        with pytest.raises(ResourceExhausted):
            resolve(address)
    assert not sent.is_set()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_connection_that_was_closed_while_kept_is_made_anew() -> None:
    def once(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(FIRST + b"Content-Length: 1\r\n\r\nx")

    with talking(once) as (address, made):
        open_session, _ = session(address)
        with open_session:
            client = open_session.client(Host("http", address))
            for _ in range(3):
                with client.call(Call("GET", "/", ())) as response:
                    assert response.read(10) == b"x"
        assert len(made) == 3


@pytest.mark.usefixtures("impatient")
def test_no_thread_and_no_descriptor_is_left(ended: threading.Event) -> None:
    def talk(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(FIRST)
        drip(connection, b"x", ended, 0.05)

    def ours() -> int:
        """Sockets of this process that are no server's."""
        names = [entry.name for entry in Path("/proc/self/fd").iterdir()]
        return len([n for n in names if is_client(n, address)])

    with talking(talk) as (address, made):
        for _ in range(2):
            with pytest.raises((DeadlineExceeded, Unavailable)):
                resolve(address)
        assert len(made) >= 2
        assert ours() == 0
    assert not [t for t in threading.enumerate() if t.name == "watchdog"]


def is_client(fd: str, address: str) -> bool:
    """Whether a descriptor is a connection to ``address``."""
    try:
        with socket.socket(fileno=os.dup(int(fd))) as found:
            host, port = found.getpeername()[:2]
    except (OSError, ValueError):
        return False
    return f"{host}:{port}" == address
