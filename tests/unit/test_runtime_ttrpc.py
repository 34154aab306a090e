"""The asyncio ttrpc client and server, held against each other and against garbage."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Coroutine, Iterator
from pathlib import Path

import pytest

from kontti.errors import (
    DeadlineExceeded,
    Error,
    Internal,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from kontti.runtime.ttrpc import TtrpcClient, TtrpcServer
from kontti.wire.messages.google import Any, Empty
from kontti.wire.ttrpc import MAX_DATA, REQUEST, RESPONSE, Decoder, encode_frame
from tests.support.shims import short_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


class Peer:
    """A server with an echo, a wait and a few failures, and one client of it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "t.sock")
        self.release = asyncio.Event()
        self.namespaces: list[str] = []
        self.server = TtrpcServer(
            {
                "t.T/Echo": self._echo,
                "t.T/Park": self._park,
                "t.T/Missing": self._missing,
                "t.T/Crash": self._crash,
                "t.T/Garbage": self._garbage,
            }
        )

    async def _echo(self, namespace: str, payload: bytes) -> bytes:
        self.namespaces.append(namespace)
        return payload

    async def _park(self, _namespace: str, payload: bytes) -> bytes:
        await self.release.wait()
        return payload

    async def _missing(self, _namespace: str, _payload: bytes) -> bytes:
        raise NotFound("thing")

    async def _crash(self, _namespace: str, _payload: bytes) -> bytes:
        raise RuntimeError("a bug")

    async def _garbage(self, _namespace: str, _payload: bytes) -> bytes:
        return b"\xff\xff\xff"

    async def __aenter__(self) -> TtrpcClient:
        await self.server.start(self.path, os.getuid(), os.getgid())
        self.client = await TtrpcClient.connect(f"unix://{self.path}", "ns", 5)
        return self.client

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.server.stop()


async def echo(client: TtrpcClient, text: str, method: str = "t.T/Echo") -> str:
    answer = await client.call(method, Any(type_url=text), Any, 5)
    return answer.type_url


def run(work: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_calls_are_answered_in_any_order(folder: Path) -> None:
    async def main() -> None:
        peer = Peer(folder)
        async with peer as client:
            parked = asyncio.create_task(echo(client, "late", "t.T/Park"))
            texts = [str(n) for n in range(50)]
            assert await asyncio.gather(*(echo(client, t) for t in texts)) == texts
            assert not parked.done()
            peer.release.set()
            assert await parked == "late"
            assert set(peer.namespaces) == {"ns"}

    run(main())


def test_more_calls_than_may_be_in_flight_are_all_answered(folder: Path) -> None:
    async def main() -> None:
        peer = Peer(folder)
        async with peer as client:
            calls = [asyncio.create_task(echo(client, str(n), "t.T/Park")) for n in range(600)]
            await asyncio.sleep(0)
            peer.release.set()
            assert await asyncio.gather(*calls) == [str(n) for n in range(600)]

    run(main())


@pytest.mark.parametrize(
    ("method", "error", "text"),
    [
        ("t.T/Missing", NotFound, "thing: not found"),
        ("t.T/Crash", Internal, "a bug: internal"),
        ("t.T/Nothing", Unimplemented, "method t.T/Nothing: not implemented"),
        ("t.T/Garbage", Internal, "t.T/Garbage was answered with garbage"),
    ],
)
def test_a_failed_call_says_why_and_leaves_the_connection(
    folder: Path, method: str, error: type[Error], text: str
) -> None:
    async def main() -> None:
        async with Peer(folder) as client:
            with pytest.raises(error) as caught:
                await client.call(method, Any(), Any, 5)
            assert caught.value.message.startswith(text)
            assert await echo(client, "still here") == "still here"

    run(main())


def test_a_deadline_ends_one_call(folder: Path) -> None:
    async def main() -> None:
        peer = Peer(folder)
        async with peer as client:
            with pytest.raises(DeadlineExceeded):
                await client.call("t.T/Park", Empty(), Empty, 0.01)
            # its answer comes now, and is nobody's
            peer.release.set()
            assert await echo(client, "next") == "next"

    run(main())


def test_a_request_that_is_too_long_is_refused_before_it_is_sent(folder: Path) -> None:
    async def main() -> None:
        async with Peer(folder) as client:
            with pytest.raises(ResourceExhausted):
                await client.call("t.T/Echo", Any(value=bytes(MAX_DATA)), Any, 5)
            assert await echo(client, "next") == "next"

    run(main())


def test_loss_fails_all_that_wait_and_is_told_once(folder: Path) -> None:
    async def main() -> None:
        peer = Peer(folder)
        async with peer as client:
            told: list[bool] = []
            client.on_lost = lambda: told.append(True)
            calls = [asyncio.create_task(echo(client, "x", "t.T/Park")) for _ in range(3)]
            assert await echo(client, "up") == "up"
            await peer.server.stop()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(r) for r in results] == [Unavailable] * 3
            with pytest.raises(Unavailable):
                await echo(client, "after")
            assert told == [True]

    run(main())


def test_closing_is_no_loss(folder: Path) -> None:
    async def main() -> None:
        async with Peer(folder) as client:
            told: list[bool] = []
            client.on_lost = lambda: told.append(True)
            await client.close()
            with pytest.raises(Unavailable):
                await echo(client, "after")
            assert told == []

    run(main())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 64,
        encode_frame(1, RESPONSE, b""),
        encode_frame(1, 99, b"what"),
    ],
)
def test_garbage_ends_the_connection_it_came_on(folder: Path, sent: bytes) -> None:
    async def main() -> None:
        peer = Peer(folder)
        async with peer as client:
            reader, writer = await asyncio.open_unix_connection(peer.path)
            writer.write(sent)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            assert await echo(client, "unmoved") == "unmoved"

    run(main())


def test_a_request_that_cannot_be_read_is_answered_with_an_error(folder: Path) -> None:
    async def main() -> None:
        peer = Peer(folder)
        async with peer:
            reader, writer = await asyncio.open_unix_connection(peer.path)
            writer.write(encode_frame(7, REQUEST, b"\xff\xff\xff"))
            (frame,) = Decoder().feed(await reader.read(4096))
            assert (frame.stream, frame.kind) == (7, RESPONSE)
            writer.close()

    run(main())


def test_an_answer_that_cannot_be_read_fails_its_own_call(folder: Path) -> None:
    async def main() -> None:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4096)
            writer.write(encode_frame(1, RESPONSE, b"\xff\xff"))
            await reader.read(4096)
            writer.write(encode_frame(3, RESPONSE, b""))
            await reader.read()
            writer.close()

        path = str(folder / "g.sock")
        server = await asyncio.start_unix_server(accepted, path)
        client = await TtrpcClient.connect(path, "ns", 5)
        with pytest.raises(Internal):
            await client.call("t.T/Echo", Empty(), Empty, 5)
        await client.call("t.T/Echo", Empty(), Empty, 5)
        await client.close()
        server.close()
        await server.wait_closed()

    run(main())


def test_nobody_there(folder: Path) -> None:
    async def main() -> None:
        with pytest.raises(Unavailable, match="No such file"):
            await TtrpcClient.connect(f"unix://{folder}/none", "ns", 5)

    run(main())


def test_the_socket_is_private_and_goes_with_the_server(folder: Path) -> None:
    async def main() -> None:
        peer = Peer(folder)
        async with peer as client:
            assert stat.S_IMODE(os.stat(peer.path).st_mode) == 0o660
            assert client.listener_pid == os.getpid()
        assert not os.path.exists(peer.path)

    run(main())
