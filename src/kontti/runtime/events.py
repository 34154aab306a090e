"""What shims tell: containerd.services.events.ttrpc.v1.Events."""

from __future__ import annotations

from kontti.errors import InvalidArgument
from kontti.events.base import Envelope, Exchange
from kontti.runtime.ttrpc import Handler
from kontti.values import AnyValue
from kontti.wire.messages.google import Empty
from kontti.wire.messages.services.ttrpc.events.v1.events import ForwardRequest

FORWARD = "containerd.services.events.ttrpc.v1.Events/Forward"


def handlers(exchange: Exchange) -> dict[str, Handler]:
    """The service's methods over ``exchange``."""

    async def forward(_namespace: str, payload: bytes) -> bytes:
        envelope = ForwardRequest.decode(payload).envelope
        if envelope is None or envelope.event is None or envelope.timestamp is None:
            raise InvalidArgument("event envelope is incomplete")
        stamp = envelope.timestamp
        event = AnyValue(envelope.event.type_url, envelope.event.value)
        when = stamp.seconds * 10**9 + stamp.nanos
        exchange.forward(Envelope(when, envelope.namespace, envelope.topic, event))
        return Empty().encode()

    return {FORWARD: forward}
