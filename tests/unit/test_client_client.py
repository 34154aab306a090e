"""The client against a real gRPC server, and against peers that misbehave: each wait is bounded."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from kontti.client.client import FOREVER, Client
from kontti.errors import (
    Canceled,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    Internal,
    NotFound,
    Unavailable,
)
from kontti.wire.messages.google import Any, Empty
from tests.support.shims import short_folder

SECONDS = 10.0
SOON = 0.2
HUGE = Any(type_url="x" * (5 << 20))
# an HTTP/2 SETTINGS frame: what a server says first
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


class Service:
    """What the server does, by method; ``free`` lets go of those that wait."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.heard: list[dict[str, str]] = []

    def service(
        self, details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        self.heard.append({k: str(v) for k, v in details.invocation_metadata})
        name = details.method.rpartition("/")[2]
        if name == "count":
            return grpc.unary_stream_rpc_method_handler(self.count)
        if name == "mirror":
            return grpc.stream_stream_rpc_method_handler(self.mirror)
        if name == "refuse":
            return grpc.stream_stream_rpc_method_handler(self.refuse)
        found = getattr(self, name, None)
        return grpc.unary_unary_rpc_method_handler(found) if found else None

    def echo(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        return request

    def wait(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        assert self.free.wait(SECONDS)
        return request

    def fail(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, "näh % \n: not found")
        raise AssertionError

    def count(self, _request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(3):
            yield Any(type_url=str(number)).encode()
        assert self.free.wait(SECONDS)

    def mirror(self, requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from requests

    def refuse(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield from ()
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no more")


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def address(folder: Path, service: Service) -> Iterator[str]:
    path = str(folder / "s")
    size = ("grpc.max_receive_message_length", 32 << 20)
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=(size,))
        server.add_generic_rpc_handlers((service,))  # type: ignore[arg-type]
        server.add_insecure_port(f"unix:{path}")
        server.start()
        yield path
        service.free.set()
        server.stop(0).wait()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, namespace="blue", lease="l1") as made:
        yield made


@contextlib.contextmanager
def peer(folder: Path, play: Callable[[socket.socket], None]) -> Iterator[str]:
    """Someone who listens and does with the one connection what ``play`` says, then hangs up."""
    path = str(folder / "peer")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(SECONDS)
                play(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            thread.join(SECONDS)
            assert not thread.is_alive()


def until_closed(connection: socket.socket) -> None:
    """Read, and say nothing."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass


def test_calls_carry_namespace_and_lease(client: Client, service: Service) -> None:
    answer = client.unary("s/echo", Any(type_url="hello"), Any)
    assert answer.type_url == "hello"
    client.unary("s/echo", Empty(), Empty, namespace="red")
    with client.with_lease("l2"):
        client.unary("s/echo", Empty(), Empty)
    told = [(h["containerd-namespace"], h["containerd-lease"]) for h in service.heard]
    assert told == [("blue", "l1"), ("red", "l1"), ("blue", "l2")]


def test_an_error_is_the_daemons_own(client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        client.unary("s/fail", Empty(), Empty)
    assert caught.value.message == "näh % \n: not found"
    # the connection is as good as before
    assert client.unary("s/echo", Any(type_url="x"), Any).type_url == "x"


def test_messages_larger_than_any_window(client: Client) -> None:
    assert client.unary("s/echo", HUGE, Any).type_url == HUGE.type_url


def test_a_stream_gives_what_comes_when_it_comes(client: Client, service: Service) -> None:
    answers = client.stream("s/count", Empty(), Any)
    assert [next(answers).type_url for _ in range(3)] == ["0", "1", "2"]
    service.free.set()
    assert list(answers) == []


def test_a_stream_that_is_given_up_is_no_hindrance(client: Client) -> None:
    answers = client.stream("s/count", Empty(), Any)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert client.unary("s/echo", Any(type_url="x"), Any).type_url == "x"


def test_both_sides_send(client: Client) -> None:
    call = client.duplex("s/mirror")
    for number in range(3):
        call.send(Any(type_url=str(number) * (1 << 20)))
        answer = call.receive(Any)
        assert answer is not None
        assert answer.type_url == str(number) * (1 << 20)
    call.send(Any(), end=True)
    assert call.receive(Any) is not None
    assert call.receive(Any) is None
    call.close()


def test_a_server_that_takes_no_more_is_not_waited_for(client: Client) -> None:
    call = client.duplex("s/refuse")

    def upload() -> None:
        for _ in range(1000):
            call.send(Any(type_url="x" * (1 << 20)))
            call.receive(Any, timeout=SECONDS)

    with pytest.raises(FailedPrecondition, match="no more"):
        upload()
    call.close()


def test_one_that_waits_does_not_hold_up_others(client: Client, service: Service) -> None:
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(client.unary, "s/wait", Empty(), Empty) for _ in range(3)]
        for number in range(50):
            big = Any(type_url=str(number) * 50_000)
            assert client.unary("s/echo", big, Any).type_url == big.type_url
        upload = pool.submit(client.unary, "s/echo", HUGE, Any)
        service.free.set()
        for done in waiting:
            done.result(SECONDS)
        assert upload.result(SECONDS).type_url == HUGE.type_url


def test_many_threads_upload_at_once(client: Client) -> None:
    def upload(letter: str) -> bool:
        call = client.duplex("s/mirror")
        for _ in range(10):
            call.send(Any(type_url=letter * 200_000))
            answer = call.receive(Any)
            if answer is None or answer.type_url != letter * 200_000:
                return False
        call.close()
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(upload, "abcdef"))


def test_a_call_has_a_deadline(client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        client.unary("s/wait", Empty(), Empty, timeout=SOON)
    assert client.unary("s/echo", Any(type_url="x"), Any).type_url == "x"


def test_all_calls_together_have_one(address: str) -> None:
    with Client(address, timeout=SOON) as client:
        with pytest.raises(DeadlineExceeded):
            # --timeout counts for what waits by its nature, too
            client.unary("s/wait", Empty(), Empty, timeout=FOREVER)
        with pytest.raises(DeadlineExceeded):
            client.unary("s/echo", Empty(), Empty)
        with pytest.raises(DeadlineExceeded):
            next(client.stream("s/count", Empty(), Any))
        with pytest.raises(Error):
            client.duplex("s/mirror").receive(Any)


def test_an_unknown_method(client: Client) -> None:
    with pytest.raises(Error) as caught:
        client.unary("s/nothing", Empty(), Empty)
    assert caught.value.code == grpc.StatusCode.UNIMPLEMENTED.value[0]


def test_closing_ends_the_calls_under_way(address: str) -> None:
    client = Client(address)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.unary, "s/wait", Empty(), Empty)
        while not client._reading:
            time.sleep(0.001)
        client.close()
        with pytest.raises((Canceled, Unavailable)):
            waiting.result(SECONDS)
    with pytest.raises(Canceled):
        client.unary("s/echo", Empty(), Empty)


def test_nobody_listens(folder: Path) -> None:
    with pytest.raises(Unavailable, match=r'failed to dial "/nonexistent/s": No such file'):
        Client("unix:///nonexistent/s")
    path = str(folder / "dead")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(Unavailable, match="Connection refused"):
        Client(path)


def test_nobody_accepts(folder: Path) -> None:
    path = str(folder / "full")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(path)
        listener.listen(0)
        stack.enter_context(Client(path))
        with pytest.raises(Unavailable, match="temporarily unavailable"):
            Client(path, connect_timeout=SOON)


def test_a_server_that_says_nothing(folder: Path) -> None:
    with peer(folder, until_closed) as path, Client(path) as client:
        with pytest.raises(DeadlineExceeded):
            client.unary("s/echo", Empty(), Empty, timeout=SOON)
        with pytest.raises(DeadlineExceeded):
            list(client.stream("s/count", Empty(), Any, timeout=SOON))


def test_a_server_that_reads_nothing(folder: Path) -> None:
    go = threading.Event()
    window = (16 << 20).to_bytes(4, "big")
    # a window as large as it asks for, and nobody to take what comes
    greeting = b"\0\0\x06\x04\0\0\0\0\0\0\x04" + window + b"\0\0\x04\x08\0\0\0\0\0" + window

    def play(connection: socket.socket) -> None:
        connection.sendall(greeting)
        go.wait(SECONDS)

    with peer(folder, play) as path, Client(path) as client:
        with pytest.raises((DeadlineExceeded, Unavailable)):
            client.unary("s/echo", HUGE, Any, timeout=SOON)
        with pytest.raises((DeadlineExceeded, Unavailable)):
            client.unary("s/echo", HUGE, Any, timeout=SOON)
        go.set()


def test_a_server_that_goes_away_in_the_middle(folder: Path) -> None:
    def play(connection: socket.socket) -> None:
        connection.recv(24)
        connection.sendall(SETTINGS)

    with peer(folder, play) as path, Client(path) as client:
        with pytest.raises(Unavailable, match=f"connection to {path}"):
            client.unary("s/echo", Empty(), Empty)
        with pytest.raises(Unavailable):
            client.unary("s/echo", Empty(), Empty)


def test_a_server_that_dies_while_it_streams(address: str, folder: Path) -> None:
    def play(connection: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as real:
            real.settimeout(SECONDS)
            real.connect(address)
            request = connection.recv(65536)
            real.sendall(request)
            seen = b""
            # the second message of three, but not whole
            while b"\n\x011" not in seen:
                if seen:
                    connection.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        real.sendall(connection.recv(65536))
                    connection.settimeout(SECONDS)
                seen += real.recv(65536)
            connection.sendall(seen[: seen.index(b"\n\x011") + 1])

    with peer(folder, play) as path, Client(path) as client:
        answers = client.stream("s/count", Empty(), Any)
        assert next(answers).type_url == "0"
        with pytest.raises(Unavailable):
            next(answers)


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        SETTINGS + b"\xff" * 100,
        SETTINGS + b"\0\0\x01\x01\x04\0\0\0\x01\xff",
        SETTINGS + b"\0\0\x00\x09\x04\0\0\0\x01",
    ],
    ids=["http1", "frame too large", "bad header", "continuation of nothing"],
)
def test_a_server_that_speaks_another_language(folder: Path, garbage: bytes) -> None:
    def play(connection: socket.socket) -> None:
        connection.sendall(garbage)
        until_closed(connection)

    with peer(folder, play) as path, Client(path) as client:
        for _ in range(2):
            with pytest.raises((Unavailable, Internal, DeadlineExceeded)):
                client.unary("s/echo", Empty(), Empty, timeout=1.0)


def test_others_are_told_of_what_one_has_read(folder: Path) -> None:
    heard = threading.Event()

    def play(connection: socket.socket) -> None:
        heard.wait(SECONDS)
        connection.sendall(SETTINGS + b"\xff" * 100)

    with peer(folder, play) as path, Client(path) as client, ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(client.unary, "s/echo", Empty(), Empty) for _ in range(3)]
        while len(client._calls) < 3:
            time.sleep(0.001)
        heard.set()
        for call in calls:
            with pytest.raises(Unavailable):
                call.result(SECONDS)
