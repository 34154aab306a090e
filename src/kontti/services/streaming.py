"""containerd.services.streaming.v1.Streaming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from kontti.api.services.streaming.v1 import streaming_pb2 as pb
from kontti.errors import Canceled, DeadlineExceeded, InvalidArgument
from kontti.services import convert
from kontti.services.rpc import Context, scope_of
from kontti.streaming.manager import StreamManager
from kontti.streaming.queued import QueuedStream
from kontti.wire.typeurl import name_of

INIT_SECONDS = 30.0
BROKE_OFF = "the client broke off"


class StreamingService:
    """Registers clients' streams in ``manager``, for other services to use."""

    def __init__(self, manager: StreamManager) -> None:
        self._manager = manager

    async def stream(
        self, requests: AsyncIterator[ProtoAny], context: Context
    ) -> AsyncIterator[ProtoAny]:
        scope = scope_of(context)
        id = await _first(requests)
        stream = QueuedStream()
        self._manager.register(scope, id, stream)
        pump = asyncio.get_running_loop().create_task(_pump(requests, stream))
        try:
            # the client waits for this before it names the stream to another service
            yield ProtoAny(type_url=Empty.DESCRIPTOR.full_name)
            while (message := await stream.outgoing.get()) is not None:
                yield ProtoAny(type_url=message.type_url, value=message.value)
        finally:
            self._manager.unregister(scope, id, stream)
            pump.cancel()
            stream.fail(BROKE_OFF)


async def _first(requests: AsyncIterator[ProtoAny]) -> str:
    """The id in the first message."""
    try:
        async with asyncio.timeout(INIT_SECONDS):
            first = await anext(aiter(requests), None)
    except TimeoutError:
        raise DeadlineExceeded("stream was not initialized in time") from None
    if first is None:
        raise InvalidArgument("stream ended before it was initialized")
    if name_of(first.type_url) != pb.StreamInit.DESCRIPTOR.full_name:
        raise InvalidArgument(f"first message of a stream must not be {first.type_url:.100}")
    try:
        return pb.StreamInit.FromString(first.value).id
    except DecodeError:
        raise InvalidArgument("stream init cannot be read") from None


async def _pump(requests: AsyncIterator[ProtoAny], stream: QueuedStream) -> None:
    """What the client sends, into the stream, until its end."""
    broken = BROKE_OFF
    try:
        async for message in requests:
            found = convert.any_from_proto(message)
            if found is not None:
                await stream.incoming.put(found)
        broken = ""
    except Canceled:
        return  # nobody reads it any more
    finally:
        stream.incoming.end(broken)
