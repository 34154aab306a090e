"""The gRPC listener against grpcio's clients: every kind of call, limits, ends and the stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest

from kontti.errors import CLASSES, Error, FailedPrecondition, InvalidArgument, NotFound
from kontti.server import connection, listen
from kontti.server.listen import GrpcListener
from kontti.services.rpc import Context, Method
from kontti.wire.grpc import ClientConnection
from kontti.wire.hpack import encode
from kontti.wire.http2_frames import PREFACE
from kontti.wire.http2_server import STREAM_WINDOW
from tests.support.http2 import Frame
from tests.support.shims import short_folder

SECONDS = 10.0
LARGE = bytes(range(256)) * (60 << 10)  # 15 MiB
Codes = grpc.StatusCode


class Handlers:
    """What the server does, by method, and what has come of it."""

    def __init__(self) -> None:
        self.metadata: dict[str, str] = {}
        self.running = 0
        self.produced = 0
        self.consumed = 0
        self.free = asyncio.Event()

    def echo(self, request: bytes, context: Context) -> bytes:
        self.metadata = dict(context.metadata)
        return request

    async def slow_echo(self, request: bytes, _context: Context) -> bytes:
        await asyncio.sleep(0.001)
        return request

    async def wait(self, request: bytes, _context: Context) -> bytes:
        with self.counted():
            await self.free.wait()
            return request

    async def stubborn(self, request: bytes, _context: Context) -> bytes:
        """Takes a while to clean up after itself."""
        with self.counted():
            try:
                await self.free.wait()
            finally:
                await asyncio.sleep(0.1)
        return request

    def fail(self, request: bytes, _context: Context) -> bytes:
        kind, _, message = request.decode().partition(" ")
        if kind == "bug":
            raise ZeroDivisionError(message)
        raise CLASSES[int(kind)](message)

    async def fail_later(self, request: bytes, context: Context) -> bytes:
        await asyncio.sleep(0)
        return self.fail(request, context)

    async def count(self, request: bytes, _context: Context) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    async def tire(self, _request: bytes, _context: Context) -> AsyncIterator[bytes]:
        yield b"one"
        raise FailedPrecondition("tired")

    async def pour(self, request: bytes, _context: Context) -> AsyncIterator[bytes]:
        """Without end."""
        with self.counted():
            while True:
                self.produced += 1
                yield request

    async def silent(self, _request: bytes, context: Context) -> AsyncIterator[bytes]:
        context.start()
        await self.free.wait()
        yield b"free"

    def few(self, request: bytes, _context: Context) -> bytes | AsyncIterator[bytes]:
        """One answer at once, or as many as are asked for."""
        if int(request) < 0:
            raise NotFound("less than nothing")
        return b"at once" if int(request) == 1 else self.count(request, _context)

    async def mirror(self, requests: AsyncIterator[bytes], _: Context) -> AsyncIterator[bytes]:
        with self.counted():
            async for request in requests:
                yield request

    async def join(self, requests: AsyncIterator[bytes], _context: Context) -> bytes:
        return b"".join([request async for request in requests])

    async def ignore(self, _requests: AsyncIterator[bytes], _: Context) -> AsyncIterator[bytes]:
        await self.free.wait()
        yield b"enough"

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


CLIENT_STREAMS = ("mirror", "join", "ignore")
QUICK = ("echo", "fail", "few")
SERVER_STREAMS = ("count", "few", "tire", "pour", "silent", "mirror", "ignore")
UNARY = ("echo", "slow_echo", "wait", "stubborn", "fail", "fail_later", "join")


def table(handlers: Handlers) -> dict[str, Method]:
    return {
        f"/t.T/{name}": Method(
            name=f"t.T/{name}",
            client_streaming=name in CLIENT_STREAMS,
            server_streaming=name in SERVER_STREAMS,
            quick=name in QUICK,
            parse=bytes,
            serialize=bytes,
            function=getattr(handlers, name),
        )
        for name in {*SERVER_STREAMS, *UNARY}
    }


class Server:
    """A listener on a loop of its own, in a thread."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.handlers = Handlers()
        self.listener = GrpcListener(table(self.handlers))
        self.run(self.listener.start(address, os.getuid(), os.getgid()))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def free(self) -> None:
        """Let those go on that wait."""
        self.loop.call_soon_threadsafe(self.handlers.free.set)

    def tasks(self) -> int:
        async def count() -> int:
            return len(self.listener._service.tasks)

        found: int = self.run(count())
        return found

    def close(self) -> None:
        self.free()
        self.run(self.listener.stop())
        assert self.tasks() == 0
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SECONDS)
        self.loop.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(listen, "STOP_SECONDS", 0.5)
    with short_folder() as folder:
        made = Server(f"{folder}/s")
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    sizes = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"unix:{server.address}", options=sizes) as made:
        yield made


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def unary(channel: grpc.Channel, name: str, request: bytes = b"", **options: Any) -> bytes:
    call: Callable[..., bytes] = channel.unary_unary(f"/t.T/{name}")
    return call(request, **{"timeout": SECONDS, **options})


def failure(work: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        work()
    return caught.value.code(), caught.value.details()


# --- the four kinds


@pytest.mark.parametrize("request_", [b"", b"x", LARGE], ids=["empty", "small", "15 MiB"])
@pytest.mark.parametrize("name", ["echo", "slow_echo"])
def test_unary(channel: grpc.Channel, name: str, request_: bytes) -> None:
    assert unary(channel, name, request_) == request_


def test_server_streaming(channel: grpc.Channel) -> None:
    call = channel.unary_stream("/t.T/count")
    for size in (0, 1, 3000):
        assert list(call(b"%d" % size, timeout=SECONDS)) == [b"%d" % n for n in range(size)]


def test_a_stream_that_answers_at_once(channel: grpc.Channel, server: Server) -> None:
    call = channel.unary_stream("/t.T/few")
    assert list(call(b"1", timeout=SECONDS)) == [b"at once"]
    assert list(call(b"3", timeout=SECONDS)) == [b"0", b"1", b"2"]
    assert list(call(b"0", timeout=SECONDS)) == []
    assert failure(lambda: list(call(b"-1", timeout=SECONDS)))[0] is Codes.NOT_FOUND
    until(lambda: server.tasks() == 0)


def test_client_streaming(channel: grpc.Channel) -> None:
    call = channel.stream_unary("/t.T/join")
    for count in (0, 1, 1000):
        assert call(iter([b"abc"] * count), timeout=SECONDS) == b"abc" * count


def test_both_sides_stream(channel: grpc.Channel) -> None:
    sent = [b"x" * size for size in (0, 1, 16384, 65535, 65536, 1 << 20)] + [LARGE]
    assert list(channel.stream_stream("/t.T/mirror")(iter(sent), timeout=SECONDS)) == sent


def test_metadata(channel: grpc.Channel, server: Server) -> None:
    sent = (("containerd-namespace", "blue"), ("odd-bin", b"\xff\0"), ("containerd-lease", "l 1"))
    unary(channel, "echo", metadata=sent)
    heard = server.handlers.metadata
    assert (heard["containerd-namespace"], heard["containerd-lease"]) == ("blue", "l 1")
    assert "grpc" in heard["user-agent"]
    assert heard["odd-bin"].rstrip("=") == "/wA"


def test_compressed_requests(channel: grpc.Channel) -> None:
    for request in (b"x" * 10_000, os.urandom(10_000), b"x"):
        assert unary(channel, "echo", request, compression=grpc.Compression.Gzip) == request
    code, details = failure(
        lambda: unary(channel, "echo", b"x" * 10_000, compression=grpc.Compression.Deflate)
    )
    assert code is Codes.UNIMPLEMENTED
    assert "Decompressor is not installed" in details


def test_many_calls_at_once(channel: grpc.Channel, server: Server) -> None:
    with ThreadPoolExecutor(20) as pool:
        held = [channel.unary_unary("/t.T/wait").future(b"%d" % n, timeout=60) for n in range(100)]
        until(lambda: server.handlers.running == 100)
        names = ["echo", "slow_echo"] * 100
        answers = list(pool.map(lambda n: unary(channel, names[n], b"%d" % n), range(200)))
        assert answers == [b"%d" % n for n in range(200)]
        server.free()
        assert [call.result(SECONDS) for call in held] == [b"%d" % n for n in range(100)]
    until(lambda: server.tasks() == 0)


def test_an_asyncio_client(server: Server) -> None:
    async def talk() -> None:
        async with grpc.aio.insecure_channel(f"unix:{server.address}") as channel:
            echo, mirror = channel.unary_unary("/t.T/echo"), channel.stream_stream("/t.T/mirror")
            sent = [b"%d" % n for n in range(100)]
            assert await asyncio.gather(*(echo(data) for data in sent)) == sent
            call = mirror()
            for data in sent:
                await call.write(data)
                assert await call.read() == data
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF

    asyncio.run(asyncio.wait_for(talk(), SECONDS))


# --- errors


@pytest.mark.parametrize("number", range(len(CLASSES)))
@pytest.mark.parametrize("name", ["fail", "fail_later"])
def test_errors(channel: grpc.Channel, name: str, number: int) -> None:
    kind: type[Error] = CLASSES[number]
    code, details = failure(lambda: unary(channel, name, f"{number} käyttäjä 100 %\n".encode()))
    assert code.value[0] == kind.code
    assert details == kind("käyttäjä 100 %\n").message


def test_a_bug_is_told_and_logged(channel: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    assert failure(lambda: unary(channel, "fail", b"bug oops")) == (Codes.UNKNOWN, "oops")
    assert failure(lambda: unary(channel, "fail_later", b"bug ")) == (
        Codes.UNKNOWN,
        "ZeroDivisionError",
    )
    assert [r.getMessage() for r in caplog.records] == ["t.T/fail failed", "t.T/fail_later failed"]


def test_an_error_after_messages(channel: grpc.Channel) -> None:
    answers = channel.unary_stream("/t.T/tire")(b"", timeout=SECONDS)
    assert next(answers) == b"one"
    assert failure(lambda: next(answers)) == (
        Codes.FAILED_PRECONDITION,
        "tired: failed precondition",
    )


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/t.T/Nope", "unknown method Nope for service t.T"),
        ("/t.None/echo", "unknown service t.None"),
        ("/t/echo", "unknown service t"),
        ("/t.T/a/b", "unknown service t.T/a"),
        ("/odd", 'malformed method name: "/odd"'),
    ],
)
def test_unknown_methods(channel: grpc.Channel, path: str, why: str) -> None:
    call = channel.unary_unary(path)
    assert failure(lambda: call(b"", timeout=SECONDS)) == (Codes.UNIMPLEMENTED, why)


def test_another_number_of_messages(channel: grpc.Channel, server: Server) -> None:
    call = channel.stream_unary("/t.T/echo")
    code, details = failure(lambda: call(iter([]), timeout=SECONDS))
    assert code is Codes.INTERNAL
    assert "received no request message" in details
    code, details = failure(lambda: call(iter([b"a", b"b"]), timeout=SECONDS))
    assert code is Codes.INTERNAL
    assert "received multiple request messages" in details
    assert server.handlers.metadata == {}  # and nothing was done


def test_messages_that_are_too_large(channel: grpc.Channel) -> None:
    size = 16 << 20
    assert failure(lambda: unary(channel, "echo", bytes(size + 1))) == (
        Codes.RESOURCE_EXHAUSTED,
        f"grpc: received message larger than max ({size + 1} vs. {size})",
    )
    call = channel.stream_unary("/t.T/join")
    assert failure(lambda: call(iter([bytes(size // 2 + 1)] * 2), timeout=SECONDS)) == (
        Codes.RESOURCE_EXHAUSTED,
        f"trying to send message larger than max ({size + 2} vs. {size})",
    )
    assert unary(channel, "echo", b"next") == b"next"


# --- ends


def test_a_deadline(channel: grpc.Channel, server: Server) -> None:
    assert failure(lambda: unary(channel, "wait", timeout=0.05))[0] is Codes.DEADLINE_EXCEEDED
    until(lambda: server.handlers.running == 0)
    assert unary(channel, "slow_echo", b"x", timeout=SECONDS) == b"x"


@pytest.mark.parametrize("method", ["wait", "stubborn", "mirror", "pour"])
def test_a_deadline_that_only_we_keep(server: Server, method: str) -> None:
    with raw(server) as client:
        stream = client.wire.start_call(f"/t.T/{method}", [("grpc-timeout", "50m")])
        client.wire.send_message(stream, b"x", end=method != "mirror")
        error = client.end(stream)
        assert (error.code, error.message) == (4, "context deadline exceeded")
        until(lambda: server.handlers.running == 0 and server.tasks() == 0)


def test_a_deadline_does_not_wait_for_the_window(server: Server) -> None:
    window = Frame(4, 0, 0, b"\0\4" + (10).to_bytes(4, "big"))
    request = [
        (":method", "POST"), (":scheme", "http"), (":path", "/t.T/pour"),
        ("content-type", "application/grpc"), ("grpc-timeout", "200m"),
    ]  # fmt: skip
    data = Frame(0, 1, 1, b"\0\0\0\0\x64" + bytes(100))
    with raw(server) as client:
        heard = (window, Frame(1, 4, 1, encode(request)), data)
        client.socket.sendall(PREFACE + b"".join(f.encode() for f in heard))
        until(lambda: server.handlers.running == 1)
        (served,) = server.listener._service.connections
        until(lambda: not served.wire.http.out.windows)
        assert served.wire.http.out.waiting == 0
        until(lambda: server.tasks() == 0)


def test_a_deadline_of_nothing(server: Server) -> None:
    with raw(server) as client:
        stream = client.wire.start_call("/t.T/wait", [("grpc-timeout", "0S")])
        client.wire.send_message(stream, b"x", end=True)
        assert client.end(stream).code == 4


@pytest.mark.parametrize("name", ["wait", "stubborn"])
def test_giving_up(channel: grpc.Channel, server: Server, name: str) -> None:
    call = channel.unary_unary(f"/t.T/{name}").future(b"", timeout=60)
    until(lambda: server.handlers.running == 1)
    call.cancel()
    until(lambda: server.handlers.running == 0 and server.tasks() == 0)


@pytest.mark.parametrize("name", ["mirror", "pour"])
def test_giving_up_a_stream(channel: grpc.Channel, server: Server, name: str) -> None:
    """The generator is closed at once, wherever it stands: what it holds is let go."""
    call = channel.stream_stream(f"/t.T/{name}")(iter([b"a"]), timeout=60)
    assert next(call) == b"a"
    call.cancel()
    until(lambda: server.handlers.running == 0 and server.tasks() == 0)


def test_hanging_up(server: Server) -> None:
    with raw(server) as client:
        for method in ("wait", "pour", "mirror"):
            stream = client.wire.start_call(f"/t.T/{method}", [])
            client.wire.send_message(stream, b"x", end=method != "mirror")
        client.send()
        until(lambda: server.handlers.running == 3)
    until(lambda: server.handlers.running == 0 and server.tasks() == 0)
    until(lambda: not server.listener._service.connections)


def test_headers_are_sent_before_any_answer(channel: grpc.Channel, server: Server) -> None:
    call = channel.unary_stream("/t.T/silent")(b"", timeout=SECONDS)
    assert dict(call.initial_metadata()) == {}
    server.free()
    assert list(call) == [b"free"]


# --- flow


def test_a_client_that_reads_slowly(channel: grpc.Channel, server: Server) -> None:
    piece = b"x" * 100_000
    call = channel.unary_stream("/t.T/pour")(piece, timeout=60)
    assert next(call) == piece
    time.sleep(0.3)
    before = server.handlers.produced
    time.sleep(0.2)
    # the windows are full, and it waits: grpcio takes up to 4 MiB ahead
    assert server.handlers.produced == before < 200
    assert [next(call) for _ in range(500)] == [piece] * 500
    call.cancel()


def test_a_client_that_does_not_read_at_all(server: Server) -> None:
    with raw(server) as client:
        client.send()
        assert client.read()  # it tells how large its window is
        stream = client.wire.start_call("/t.T/pour", [])
        client.wire.send_message(stream, b"x" * 100_000, end=True)
        client.send()
        until(lambda: server.handlers.produced > 0)
        time.sleep(0.2)
        assert server.handlers.produced < 60


def test_a_client_that_sends_faster_than_is_read(server: Server) -> None:
    with raw(server) as client:
        stream = client.wire.start_call("/t.T/ignore", [])
        for _ in range(50):
            client.wire.send_message(stream, bytes(100_000))
        client.read_for(0.3)
        assert client.wire.pending(stream) >= 50 * 100_000 - STREAM_WINDOW
        # and holds up nobody else
        other = client.wire.start_call("/t.T/echo", [])
        client.wire.send_message(other, b"x", end=True)
        client.end(other)
        server.free()
        client.end(stream)


@pytest.mark.parametrize(("method", "request_"), [("few", b"1"), ("count", b"3"), ("echo", b"x")])
def test_an_answer_is_one_write(server: Server, method: str, request_: bytes) -> None:
    with raw(server) as client:
        client.read_for(0.2)
        (served,) = server.listener._service.connections
        counted = Counted(served._transport)
        served._transport = counted  # type: ignore[assignment]
        stream = client.wire.start_call(f"/t.T/{method}", [])
        client.wire.send_message(stream, request_, end=True)
        # clients measure the way with a ping for every piece of data
        client.socket.sendall(Frame(6, 0, 0, bytes(8)).encode() + client.wire.data_to_send())
        client.end(stream)
        assert len(counted.writes) == 1


class Counted:
    """A transport of which what is written is kept."""

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self.writes: list[bytes] = []
        self._transport = transport

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        assert self._transport is not None
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


# --- the listener


def test_the_sockets_rights(server: Server) -> None:
    assert stat.S_IMODE(os.stat(server.address).st_mode) == 0o660


def test_an_address_that_is_in_use(server: Server) -> None:
    other = GrpcListener({})
    with pytest.raises(FailedPrecondition, match="in use by another daemon"):
        server.run(other.start(server.address, os.getuid(), os.getgid()))
    with pytest.raises(InvalidArgument, match="longer than 107"):
        server.run(other.start("/" + "x" * 200, os.getuid(), os.getgid()))


def test_stopping_lets_calls_end(server: Server, channel: grpc.Channel) -> None:
    call = channel.unary_unary("/t.T/wait").future(b"last", timeout=60)
    until(lambda: server.handlers.running == 1)
    stop = asyncio.run_coroutine_threadsafe(server.listener.stop(), server.loop)
    until(lambda: all(c.wire.http.closing for c in set(server.listener._service.connections)))
    server.free()
    assert call.result(SECONDS) == b"last"
    stop.result(SECONDS)
    assert not os.path.exists(server.address)
    assert failure(lambda: unary(channel, "echo", timeout=1))[0] in (
        Codes.UNAVAILABLE,
        Codes.DEADLINE_EXCEEDED,
    )


def test_stopping_does_not_wait_for_ever(server: Server, channel: grpc.Channel) -> None:
    calls = [
        channel.unary_unary(f"/t.T/{name}").future(b"", timeout=60) for name in ("wait", "stubborn")
    ]
    until(lambda: server.handlers.running == 2)
    server.run(server.listener.stop())
    for call in calls:
        assert failure(call.result) == (Codes.UNAVAILABLE, "the server is stopping: unavailable")
    assert server.handlers.running == 0


def test_a_call_after_the_farewell_is_refused(server: Server) -> None:
    with raw(server) as client:
        held = client.wire.start_call("/t.T/wait", [])
        client.wire.send_message(held, b"x", end=True)
        client.send()
        until(lambda: server.handlers.running == 1)
        late = client.wire.start_call("/t.T/echo", [])
        client.wire.send_message(late, b"x", end=True)
        stop = asyncio.run_coroutine_threadsafe(server.listener.stop(), server.loop)
        until(lambda: all(c.wire.http.closing for c in set(server.listener._service.connections)))
        assert client.end(late).code == 14
        server.free()
        stop.result(SECONDS)


def test_who_says_nothing_is_hung_up_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "GREETING_SECONDS", 0.1)
    with raw(server) as client:
        client.wire.data_to_send()
        assert client.hung_up()
    with raw(server) as client:
        client.send()
        client.read_for(0.3)
        stream = client.wire.start_call("/t.T/echo", [])
        client.wire.send_message(stream, b"x", end=True)
        client.end(stream)


def test_a_client_that_breaks_the_protocol_is_told(server: Server) -> None:
    with raw(server) as client:
        client.socket.sendall(PREFACE + Frame(4, 0, 0, b"").encode() + Frame(0, 0, 1, b"").encode())
        heard = b""
        while data := client.socket.recv(65536):
            heard += data
        assert b"stream 1 is idle" in heard


class Raw:
    """Our codec over a socket that is read only when it is told to."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        self.socket.connect(address)
        self.wire = ClientConnection()
        self._ends: dict[int, Error] = {}

    def send(self) -> None:
        self.socket.sendall(self.wire.data_to_send())

    def read(self) -> bool:
        data = self.socket.recv(1 << 16)
        for event in self.wire.receive(data):
            if not hasattr(event, "data"):
                self._ends[event.stream_id] = event.error or NotFound("no error")
        self.send()
        return bool(data)

    def read_for(self, seconds: float) -> None:
        self.send()
        self.socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            while self.read():
                pass
        self.socket.settimeout(SECONDS)

    def end(self, stream: int) -> Error:
        """Read until a call ends, and how."""
        self.send()
        while stream not in self._ends:
            assert self.read()
        return self._ends[stream]

    def hung_up(self) -> bool:
        while self.socket.recv(1 << 16):
            pass
        return True


@contextlib.contextmanager
def raw(server: Server) -> Iterator[Raw]:
    client = Raw(server.address)
    with contextlib.closing(client.socket):
        yield client
