"""The asyncio gRPC client, held against grpcio's server and against garbage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any as Untyped

import grpc
import grpc.aio
import pytest

from kontti.errors import (
    DeadlineExceeded,
    Error,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from kontti.runtime.dial import dial, parse_vsock
from kontti.runtime.grpc import GrpcClient
from kontti.wire.messages.google import Any
from tests.support.shims import short_folder

Context = grpc.aio.ServicerContext[bytes, bytes]
Behaviour = Callable[[bytes, Context], Awaitable[bytes]]


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


class Peer:
    """A server with an echo, a wait and a few failures."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.parked = asyncio.Event()
        self.given_up = asyncio.Event()
        self.headers: list[dict[str, str]] = []
        self.left: list[float | None] = []

    async def echo(self, request: bytes, context: Context) -> bytes:
        self.headers.append({k: str(v) for k, v in context.invocation_metadata() or ()})
        self.left.append(context.time_remaining())
        return request

    async def park(self, request: bytes, _context: Context) -> bytes:
        self.parked.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        return request

    async def missing(self, _request: bytes, context: Context) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "thing: näkymätön: not found")

    async def garbage(self, _request: bytes, _context: Context) -> bytes:
        return b"\xff\xff\xff"

    def handler(self) -> grpc.GenericRpcHandler:
        methods: dict[str, Untyped] = {
            "Echo": self.echo, "Park": self.park, "Missing": self.missing, "Garbage": self.garbage,
        }  # fmt: skip
        table: dict[str, Untyped] = {
            name: grpc.unary_unary_rpc_method_handler(do) for name, do in methods.items()
        }
        return grpc.method_handlers_generic_handler("t.T", table)


@asynccontextmanager
async def peer(folder: Path) -> AsyncIterator[tuple[Peer, GrpcClient, grpc.aio.Server]]:
    """A server and one client of it."""
    made = Peer()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
    server.add_generic_rpc_handlers((made.handler(),))
    address = f"unix:///{str(folder).lstrip('/')}/g.sock"
    server.add_insecure_port(f"unix:{folder}/g.sock")
    await server.start()
    client = await GrpcClient.connect(address, "ns", 5)
    try:
        yield made, client, server
    finally:
        await client.close()
        await server.stop(0)


def run(body: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 20))


async def echo(client: GrpcClient, text: str, method: str = "t.T/Echo") -> str:
    return (await client.call(method, Any(type_url=text), Any, 5)).type_url


def test_calls_are_answered_in_any_order(folder: Path) -> None:
    async def body() -> None:
        async with peer(folder) as (made, client, _):
            parked = asyncio.create_task(echo(client, "parked", "t.T/Park"))
            await made.parked.wait()
            assert await asyncio.gather(*(echo(client, str(n)) for n in range(50))) == [
                str(n) for n in range(50)
            ]
            made.release.set()
            assert await parked == "parked"

    run(body())


def test_namespace_and_deadline_go_with_the_call(folder: Path) -> None:
    async def body() -> None:
        async with peer(folder) as (made, client, _):
            await echo(client, "x")
            await client.call("t.T/Echo", Any(), Any, None)
            assert made.headers[0]["containerd-namespace"] == "ns"
            assert made.left[0] is not None
            assert 0 < made.left[0] <= 5
            assert made.left[1] is None

    run(body())


def test_messages_larger_than_a_window(folder: Path) -> None:
    async def body() -> None:
        async with peer(folder) as (_, client, _server):
            texts = [letter * (3 << 20) for letter in "abc"]
            assert await asyncio.gather(*(echo(client, text) for text in texts)) == texts

    run(body())


@pytest.mark.parametrize(
    ("method", "cls", "said"),
    [
        ("Missing", NotFound, "näkymätön"),
        ("None", Unimplemented, "t.T/None|ethod"),
        ("Garbage", Internal, "garbage"),
    ],
)
def test_a_failed_call_says_why_and_leaves_the_connection(
    folder: Path, method: str, cls: type[Error], said: str
) -> None:
    async def body() -> None:
        async with peer(folder) as (_, client, _server):
            with pytest.raises(cls, match=said):
                await echo(client, "x", f"t.T/{method}")
            assert await echo(client, "after") == "after"

    run(body())


def test_a_deadline_ends_one_call_and_the_peer_hears_of_it(folder: Path) -> None:
    async def body() -> None:
        async with peer(folder) as (made, client, _):
            with pytest.raises(DeadlineExceeded):
                await client.call("t.T/Park", Any(), Any, 0.05)
            await made.given_up.wait()
            assert await echo(client, "after") == "after"

    run(body())


def test_a_caller_that_goes_away_takes_its_call_back(folder: Path) -> None:
    async def body() -> None:
        async with peer(folder) as (made, client, _):
            waiting = asyncio.create_task(client.call("t.T/Park", Any(), Any, None))
            await made.parked.wait()
            waiting.cancel()
            await made.given_up.wait()
            assert await echo(client, "after") == "after"

    run(body())


def test_loss_fails_all_that_wait_and_is_told_once(folder: Path) -> None:
    async def body() -> None:
        async with peer(folder) as (made, client, server):
            lost = asyncio.Event()
            times: list[int] = []

            def hear() -> None:
                times.append(1)
                lost.set()

            client.on_lost = hear
            waiting = [
                asyncio.create_task(client.call("t.T/Park", Any(), Any, None)) for _ in range(2)
            ]
            await made.parked.wait()
            await server.stop(0)
            for one in waiting:
                with pytest.raises(Error):
                    await one
            await lost.wait()
            with pytest.raises(Unavailable, match="grpc"):
                await echo(client, "x")
            assert times == [1]

    run(body())


def test_closing_is_no_loss(folder: Path) -> None:
    async def body() -> None:
        async with peer(folder) as (made, client, _):
            told: list[int] = []
            client.on_lost = lambda: told.append(1)
            waiting = asyncio.create_task(client.call("t.T/Park", Any(), Any, None))
            await made.parked.wait()
            await client.close()
            with pytest.raises(Unavailable):
                await waiting
            assert told == []

    run(body())


@pytest.mark.parametrize("sent", [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9, b"\xff" * 64, b""])
def test_a_peer_that_speaks_something_else_is_lost(folder: Path, sent: bytes) -> None:
    async def body() -> None:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(sent)
            await writer.drain()
            writer.close()

        path = str(folder / "g.sock")
        server = await asyncio.start_unix_server(accepted, path)
        async with server:
            client = await GrpcClient.connect(f"unix://{path}", "ns", 5)
            with pytest.raises(Unavailable):
                await echo(client, "x")
            await client.close()

    run(body())


def test_nobody_there(folder: Path) -> None:
    async def body() -> None:
        for address in (f"unix://{folder}/none", f"unix://{'x' * 200}"):
            with pytest.raises(Unavailable):
                await GrpcClient.connect(address, "ns", 5)

    run(body())


@pytest.mark.parametrize("text", ["", "1", "1:", ":1", "a:b", "1:2:3", "-1:2", "1:99999999999"])
def test_vsock_addresses_are_two_numbers(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_vsock(f"vsock://{text}")
    assert parse_vsock("vsock://3:1024") == (3, 1024)
    with pytest.raises(InvalidArgument):
        asyncio.run(dial(f"vsock://{text}", 1))
