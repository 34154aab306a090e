"""The Streaming service over gRPC: what clients open, a part of the daemon finds by id."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as ProtoAny

from kontti.api.services.streaming.v1 import streaming_pb2 as pb
from kontti.errors import Canceled
from kontti.namespaces import Scope
from kontti.server.listen import GrpcListener
from kontti.services.rpc import methods
from kontti.services.streaming import StreamingService
from kontti.streaming.base import Stream
from kontti.streaming.blocking import BlockingReader
from kontti.streaming.bytes import ByteReader, ByteWriter
from kontti.streaming.manager import StreamManager
from kontti.values import AnyValue
from tests.support.shims import short_folder

SECONDS = 15.0
SCOPE = Scope("default")
METHOD = "/containerd.services.streaming.v1.Streaming/Stream"
METADATA = (("containerd-namespace", "default"),)


class Served:
    """The service on a socket, and a client's channel to it."""

    def __init__(self, streams: StreamManager, channel: grpc.aio.Channel) -> None:
        self.streams = streams
        self._channel = channel

    def open(self, namespace: str = "default") -> Any:
        """A raw call."""
        return self._channel.stream_stream(
            METHOD,
            request_serializer=ProtoAny.SerializeToString,
            response_deserializer=ProtoAny.FromString,
        )(metadata=(("containerd-namespace", namespace),), timeout=SECONDS)

    async def stream(self, id: str) -> ClientEnd:
        """One that is registered."""
        call = self.open()
        await call.write(init(id))
        first = await call.read()
        assert first.type_url == "google.protobuf.Empty"
        return ClientEnd(call)

    async def until_gone(self, id: str) -> None:
        """Wait until nobody finds it any more."""
        async with asyncio.timeout(SECONDS):
            while id in {held.key for held in self.streams.held()}:  # noqa: ASYNC110 it has no event
                await asyncio.sleep(0.005)


class ClientEnd:
    """A client's end, as a Stream."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self._closing: asyncio.Future[None] | None = None
        self._reading: asyncio.Future[Any] | None = None

    async def send(self, message: AnyValue) -> None:
        try:
            await self.call.write(ProtoAny(type_url=message.type_url, value=message.value))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise Canceled(str(error)) from None

    async def recv(self) -> AnyValue | None:
        # grpc gives up a call where one of its reads is given up
        if self._reading is None:
            self._reading = asyncio.ensure_future(self.call.read())
        found = await asyncio.shield(self._reading)
        self._reading = None
        if found == grpc.aio.EOF:
            return None
        return AnyValue(found.type_url, found.value)

    async def drained(self) -> None:
        """What is sent is written."""

    def close(self) -> None:
        self._closing = asyncio.ensure_future(self.call.done_writing())


def init(id: str) -> ProtoAny:
    message = pb.StreamInit(id=id)
    return ProtoAny(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[Served]:
    streams = StreamManager(asyncio.get_running_loop())
    service = pb.DESCRIPTOR.services_by_name["Streaming"]
    listener = GrpcListener(dict(methods(service, StreamingService(streams))))
    with short_folder() as folder:
        address = str(Path(folder) / "c.sock")
        await listener.start(address, 0, 0)
        try:
            async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
                yield Served(streams, channel)
        finally:
            await listener.stop()


def run(work: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS * 2):
            await work

    asyncio.run(bounded())


async def _fails(call: Any) -> grpc.StatusCode:
    try:
        while await call.read() != grpc.aio.EOF:
            pass
        code = await call.code()
    except grpc.aio.AioRpcError as error:
        code = error.code()
    assert isinstance(code, grpc.StatusCode)
    return code


def test_messages_both_ways_and_an_end_of_each() -> None:
    async def both() -> None:
        async with served() as here:
            client = await here.stream("a")
            stream: Stream = here.streams.get(SCOPE, "a")
            await stream.send(AnyValue("one", b"1"))
            assert await client.recv() == AnyValue("one", b"1")
            await client.send(AnyValue("two", b"2"))
            assert await stream.recv() == AnyValue("two", b"2")
            await client.call.done_writing()
            assert await stream.recv() is None
            # the other way goes on
            await stream.send(AnyValue("three", b""))
            stream.close()
            assert await client.recv() == AnyValue("three", b"")
            assert await client.recv() is None
            assert await client.call.code() == grpc.StatusCode.OK
            await here.until_gone("a")

    run(both())


def test_what_is_no_stream_is_refused() -> None:
    async def both() -> None:
        async with served() as here:
            await here.stream("a")
            again = here.open()
            await again.write(init("a"))
            assert await _fails(again) == grpc.StatusCode.ALREADY_EXISTS
            assert len(here.streams.held()) == 1
            for first in (
                init(""),
                ProtoAny(type_url="google.protobuf.Empty"),
                ProtoAny(type_url=pb.StreamInit.DESCRIPTOR.full_name, value=b"\xff"),
            ):
                call = here.open()
                await call.write(first)
                assert await _fails(call) == grpc.StatusCode.INVALID_ARGUMENT
            nothing = here.open()
            await nothing.done_writing()
            assert await _fails(nothing) == grpc.StatusCode.INVALID_ARGUMENT
            nowhere = here.open(namespace="")
            assert await _fails(nowhere) == grpc.StatusCode.FAILED_PRECONDITION

    run(both())


def test_a_namespace_does_not_see_anothers() -> None:
    async def both() -> None:
        async with served() as here:
            await here.stream("a")
            other = here.open(namespace="other")
            await other.write(init("a"))
            assert (await other.read()).type_url == "google.protobuf.Empty"
            assert here.streams.get(SCOPE, "a") is not here.streams.get(Scope("other"), "a")

    run(both())


def test_bytes_from_a_client() -> None:
    data = bytes(n * 7 % 251 for n in range(1_000_003))

    async def both() -> None:
        async with served() as here:
            client = await here.stream("import")
            loop = asyncio.get_running_loop()
            reader = BlockingReader(loop, here.streams.get(SCOPE, "import"), SECONDS)
            writer = ByteWriter(client)
            with ThreadPoolExecutor(1) as pool:
                reading = loop.run_in_executor(pool, reader.read)
                await writer.write(data)
                await writer.close()
                assert await reading == data
            await here.until_gone("import")

    run(both())


def test_bytes_to_a_client() -> None:
    data = bytes(n * 7 % 251 for n in range(1_000_003))

    async def both() -> None:
        async with served() as here:
            client = await here.stream("export")
            writer = ByteWriter(here.streams.get(SCOPE, "export"))
            reader = ByteReader(client)

            async def write() -> None:
                await writer.write(data)
                await writer.close()

            writing = asyncio.create_task(write())
            found = bytearray()
            while piece := await reader.read():
                found += piece
            await writing
            assert found == data
            await here.until_gone("export")

    run(both())


def test_a_writer_hears_of_a_client_that_is_gone() -> None:
    async def both() -> None:
        async with served() as here:
            client = await here.stream("a")
            writer = ByteWriter(here.streams.get(SCOPE, "a"))
            writing = asyncio.create_task(writer.write(b"x"))
            client.call.cancel()
            with pytest.raises(Canceled):
                await writing
            await writer.close()

    run(both())
