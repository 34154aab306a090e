"""Streams: bounded, by id, and bytes over them with windows; both ends in one process."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar, cast

import pytest
from google.protobuf.any_pb2 import Any as ProtoAny

from kontti.api.services.streaming.v1 import streaming_pb2
from kontti.errors import (
    AlreadyExists,
    Canceled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from kontti.metadata.gc import Type
from kontti.namespaces import Scope
from kontti.services.rpc import Context
from kontti.services.streaming import StreamingService
from kontti.streaming import manager as module
from kontti.streaming.blocking import BlockingReader, BlockingWriter
from kontti.streaming.bytes import CHUNK, WINDOW, ByteReader, ByteWriter, pack
from kontti.streaming.manager import UNTAKEN_SECONDS, StreamManager
from kontti.streaming.queued import DEPTH, QueuedStream
from kontti.values import AnyValue
from kontti.wire.messages.types.transfer.streaming import Data, WindowUpdate
from tests.support.metadata import open_stores

SCOPE = Scope("default")
SECONDS = 15.0
INIT = "containerd.services.streaming.v1.StreamInit"
T = TypeVar("T")


class Peer:
    """The other end of a QueuedStream, as a stream."""

    def __init__(self, stream: QueuedStream) -> None:
        self.stream = stream

    async def send(self, message: AnyValue) -> None:
        await self.stream.incoming.put(message)

    async def recv(self) -> AnyValue | None:
        return await self.stream.outgoing.get()

    def close(self) -> None:
        self.stream.incoming.end()


def pair() -> tuple[QueuedStream, Peer]:
    stream = QueuedStream()
    return stream, Peer(stream)


def run(work: Coroutine[object, object, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(SECONDS):
            return await work

    return asyncio.run(bounded())


def number(n: int) -> AnyValue:
    return AnyValue("n", bytes([n]))


def test_messages_arrive_in_order_and_end() -> None:
    async def both() -> None:
        here, there = pair()
        for n in range(DEPTH):
            await here.send(number(n))
        here.close()
        here.close()
        assert [await there.recv() for _ in range(DEPTH)] == [number(n) for n in range(DEPTH)]
        assert await there.recv() is None
        assert await there.recv() is None
        await there.send(number(1))
        assert await here.recv() == number(1)
        with pytest.raises(Canceled, match="stream is closed"):
            await here.send(number(2))

    run(both())


def test_a_sender_waits_for_room_and_a_receiver_for_messages() -> None:
    async def both() -> None:
        here, there = pair()

        async def send() -> None:
            for n in range(DEPTH + 1):
                await here.send(number(n))

        sending = asyncio.create_task(send())
        await asyncio.sleep(0.01)
        assert not sending.done()
        assert await there.recv() == number(0)
        await sending
        receiving = asyncio.create_task(here.recv())
        await asyncio.sleep(0.01)
        assert not receiving.done()
        await there.send(number(9))
        assert await receiving == number(9)

    run(both())


def test_who_waits_for_a_stream_that_breaks_is_told() -> None:
    async def both() -> None:
        here, _ = pair()
        receiving = asyncio.create_task(here.recv())
        for n in range(DEPTH):
            await here.send(number(n))
        sending = asyncio.create_task(here.send(number(0)))
        await asyncio.sleep(0.01)
        here.fail("the client broke off")
        here.fail("again")
        for waiting in (receiving, sending):
            with pytest.raises(Canceled, match="the client broke off: context canceled"):
                await waiting

    run(both())


def test_ids() -> None:
    async def both() -> None:
        streams = StreamManager(asyncio.get_running_loop())
        one, other = QueuedStream(), QueuedStream()
        streams.register(SCOPE, "a", one)
        with pytest.raises(AlreadyExists, match="stream a: already exists"):
            streams.register(SCOPE, "a", other)
        streams.register(Scope("second"), "a", other)
        assert streams.get(SCOPE, "a") is one
        assert streams.get(Scope("second"), "a") is other
        streams.unregister(SCOPE, "a", other)
        assert streams.get(SCOPE, "a") is one
        streams.unregister(SCOPE, "a", one)
        with pytest.raises(NotFound, match="stream a: not found"):
            streams.get(SCOPE, "a")
        for id in ("", "x" * 1025):
            with pytest.raises(InvalidArgument):
                streams.register(SCOPE, id, one)

    run(both())


def test_there_is_an_end_to_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STREAMS", 2)

    async def both() -> None:
        streams = StreamManager(asyncio.get_running_loop())
        for id in ("a", "b"):
            streams.register(SCOPE, id, QueuedStream())
        with pytest.raises(ResourceExhausted):
            streams.register(SCOPE, "c", QueuedStream())

    run(both())


def test_a_stream_that_nobody_takes_is_closed() -> None:
    async def both() -> None:
        loop = asyncio.get_running_loop()
        streams = StreamManager(loop)
        stream, taken = pair()[0], pair()[0]
        streams.register(SCOPE, "forgotten", stream)
        streams.register(SCOPE, "taken", taken)
        streams.get(SCOPE, "taken")
        streams.expire(loop.time() + UNTAKEN_SECONDS - 5)
        assert streams.get(Scope("default"), "taken") is taken
        streams.expire(loop.time() + UNTAKEN_SECONDS + 5)
        with pytest.raises(NotFound):
            streams.get(SCOPE, "forgotten")
        assert streams.get(SCOPE, "taken") is taken
        assert await stream.outgoing.get() is None

    run(both())


def test_a_lease_that_goes_takes_its_streams_along(tmp_path: Path) -> None:
    async def both() -> None:
        with open_stores(tmp_path) as stores:
            metadata = stores.metadata
            streams = StreamManager(asyncio.get_running_loop())
            metadata.collect_with(Type.STREAM, streams)
            metadata.leases(SCOPE).create("l")
            kept, leased = pair()[0], pair()[0]
            streams.register(SCOPE, "kept", kept)
            streams.register(Scope("default", "l"), "leased", leased)
            await asyncio.to_thread(metadata.collect)
            assert streams.get(SCOPE, "leased") is leased
            metadata.leases(SCOPE).delete("l")
            await asyncio.to_thread(metadata.collect)
            assert await leased.outgoing.get() is None
            with pytest.raises(NotFound):
                streams.get(SCOPE, "leased")
            assert streams.get(SCOPE, "kept") is kept

    run(both())


@pytest.mark.parametrize("size", [0, 1, CHUNK, WINDOW + 1, 1 << 20])
def test_bytes(size: int) -> None:
    data = bytes(n * 7 % 251 for n in range(size))

    async def both() -> bytes:
        here, there = pair()
        reader, writer = ByteReader(there), ByteWriter(here)

        async def write() -> None:
            await writer.write(data)
            await writer.close()

        writing = asyncio.create_task(write())
        found = bytearray()
        while piece := await reader.read():
            assert len(piece) <= CHUNK
            found += piece
        await writing
        assert await reader.read() == b""
        return bytes(found)

    assert run(both()) == data


def test_no_more_is_written_than_the_peer_takes() -> None:
    async def both() -> None:
        here, there = pair()
        writer = ByteWriter(here)
        writing = asyncio.create_task(writer.write(bytes(100)))
        await asyncio.sleep(0.01)
        await there.send(pack(WindowUpdate(update=30)))
        await there.send(pack(WindowUpdate(update=30)))
        size = 0
        while size < 60:
            size += len(await _data(there))
        await asyncio.sleep(0.01)
        assert size == 60
        assert not writing.done()
        await there.send(AnyValue("something.else", b"?"))
        await there.send(pack(WindowUpdate(update=1 << 30)))
        assert len(await _data(there)) == 40
        await writing
        await writer.close()

    run(both())


async def _data(peer: Peer) -> bytes:
    message = await peer.recv()
    assert message is not None
    return Data.decode(message.value).data


@pytest.mark.parametrize(
    "update", [pack(WindowUpdate(update=-1)), AnyValue(WindowUpdate.NAME, b"\xff")]
)
def test_a_window_that_cannot_be_is_an_error(update: AnyValue) -> None:
    async def both() -> None:
        here, there = pair()
        writer = ByteWriter(here)
        await there.send(update)
        with pytest.raises(InvalidArgument):
            await writer.write(b"x")
        await writer.close()

    run(both())


def test_a_reader_that_goes_is_told_to_the_writer() -> None:
    async def both() -> None:
        here, there = pair()
        writer = ByteWriter(here)
        there.close()
        with pytest.raises(Canceled, match="the peer reads no more"):
            await writer.write(b"x")
        await writer.close()

    run(both())


def test_a_writer_that_breaks_off_is_no_end() -> None:
    async def both() -> None:
        here, there = pair()
        reader = ByteReader(here)
        await there.send(pack(Data(data=b"half")))
        assert await reader.read() == b"half"
        here.fail("gone")
        with pytest.raises(Canceled, match="gone"):
            await reader.read()

    run(both())


def test_a_call_that_is_cancelled_is_no_end_of_its_bytes() -> None:
    """As a server cancels it: the requests do not end, the handler does."""

    async def both() -> None:
        requests: asyncio.Queue[ProtoAny] = asyncio.Queue()

        async def never_ending() -> AsyncIterator[ProtoAny]:
            while True:
                yield await requests.get()

        streams = StreamManager(asyncio.get_running_loop())
        init = streaming_pb2.StreamInit(id="a").SerializeToString()
        requests.put_nowait(ProtoAny(type_url=INIT, value=init))
        context = cast(Context, Caller())
        answers = StreamingService(streams).stream(never_ending(), context)
        assert (await anext(answers)).type_url == "google.protobuf.Empty"
        reader = ByteReader(streams.get(SCOPE, "a"))
        call = asyncio.create_task(_drain(answers))
        data = pack(Data(data=b"half"))
        requests.put_nowait(ProtoAny(type_url=data.type_url, value=data.value))
        assert await reader.read() == b"half"
        reading = asyncio.create_task(reader.read())
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(Canceled, match="the client broke off"):
            await reading
        with pytest.raises(NotFound):
            streams.get(SCOPE, "a")

    run(both())


class Caller:
    """A context with headers."""

    metadata: ClassVar = {"containerd-namespace": "default"}

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self.metadata.items())


async def _drain(answers: AsyncIterator[ProtoAny]) -> None:
    async for _ in answers:
        pass


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread, as a daemon's is to its workers."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join(SECONDS)
    made.close()


def test_threads_read_and_write_them_as_files(loop: asyncio.AbstractEventLoop) -> None:
    data = bytes(n * 11 % 253 for n in range(700_001))
    here, there = asyncio.run_coroutine_threadsafe(_pair(), loop).result(SECONDS)

    def write() -> None:
        writer = BlockingWriter(loop, here, SECONDS)
        for offset in range(0, len(data), 99_991):
            writer.write(data[offset : offset + 99_991])
        writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    reader = BlockingReader(loop, there, SECONDS)
    first = reader.read(10)
    assert first == data[:10]
    assert reader.read(0) == b""
    digest = hashlib.sha256(first + reader.read()).digest()
    assert digest == hashlib.sha256(data).digest()
    assert reader.read(1) == b""
    thread.join(SECONDS)
    assert not thread.is_alive()
    reader.close()


async def _pair() -> tuple[QueuedStream, Peer]:
    return pair()


def test_a_thread_does_not_wait_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    here, there = asyncio.run_coroutine_threadsafe(_pair(), loop).result(SECONDS)
    with pytest.raises(DeadlineExceeded, match="stalls"):
        BlockingReader(loop, there, 0.05).read(1)
    writer = BlockingWriter(loop, here, 0.05)
    with pytest.raises(DeadlineExceeded):
        # what the reader took before it stalled is less than this
        writer.write(bytes(WINDOW * 4))
    writer.close()
