"""containerd.services.events.v1.Events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from kontti.api.services.events.v1 import events_pb2 as pb
from kontti.api.types.event_pb2 import Envelope as ProtoEnvelope
from kontti.errors import ResourceExhausted
from kontti.events.base import Envelope, Exchange
from kontti.services import convert
from kontti.services.rpc import Bridge, Context, scope_of
from kontti.values import AnyValue

QUEUE_LIMIT = 16384
"""Events that wait for one slow subscriber before it is told that it is too slow."""


class EventsService:
    """Adapts the event exchange."""

    def __init__(self, exchange: Exchange, bridge: Bridge) -> None:
        self._exchange = exchange
        self._call = bridge.call

    async def publish(self, request: pb.PublishRequest, context: Context) -> Empty:
        event = AnyValue(request.event.type_url, request.event.value)
        envelope = Envelope(time.time_ns(), scope_of(context).namespace, request.topic, event)
        await self._call(self._exchange.forward, envelope)
        return Empty()

    async def forward(self, request: pb.ForwardRequest, _context: Context) -> Empty:
        await self._call(self._exchange.forward, from_proto(request.envelope))
        return Empty()

    async def subscribe(
        self, request: pb.SubscribeRequest, context: Context
    ) -> AsyncIterator[ProtoEnvelope]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Envelope | None] = asyncio.Queue()

        def enqueue(envelope: Envelope) -> None:
            if queue.qsize() < QUEUE_LIMIT:
                queue.put_nowait(envelope)
            elif queue.qsize() == QUEUE_LIMIT:
                queue.put_nowait(None)

        def deliver(envelope: Envelope) -> None:
            loop.call_soon_threadsafe(enqueue, envelope)

        subscription = self._exchange.subscribe(list(request.filters), deliver)
        try:
            # a client that waits for the headers knows that it misses nothing from here on
            context.start()
            while (envelope := await queue.get()) is not None:
                yield to_proto(envelope)
            raise ResourceExhausted(f"subscriber is {QUEUE_LIMIT} events behind")
        finally:
            subscription.close()


def to_proto(envelope: Envelope) -> ProtoEnvelope:
    """An event as a message."""
    return ProtoEnvelope(
        timestamp=convert.timestamp(envelope.timestamp),
        namespace=envelope.namespace,
        topic=envelope.topic,
        event=convert.any_to_proto(envelope.event),
    )


def from_proto(message: ProtoEnvelope) -> Envelope:
    """A message as an event."""
    return Envelope(
        convert.nanoseconds(message.timestamp),
        message.namespace,
        message.topic,
        AnyValue(message.event.type_url, message.event.value),
    )
