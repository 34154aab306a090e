"""Events that shims forward."""

from __future__ import annotations

import asyncio

import pytest

from kontti.errors import InvalidArgument
from kontti.events.base import Envelope
from kontti.events.exchange import LocalExchange
from kontti.runtime.events import FORWARD, handlers
from kontti.wire.messages.events.task import TaskStart
from kontti.wire.messages.google import Any, Timestamp
from kontti.wire.messages.services.ttrpc.events.v1.events import ForwardRequest
from kontti.wire.messages.types import event as types


def forward(exchange: LocalExchange, payload: bytes) -> bytes:
    async def main() -> bytes:
        return await handlers(exchange)[FORWARD]("ns", payload)

    return asyncio.run(main())


def request(**changes: object) -> bytes:
    started = TaskStart(container_id="one", pid=5)
    fields: dict[str, object] = {
        "timestamp": Timestamp(seconds=12, nanos=34),
        "namespace": "ns",
        "topic": "/tasks/start",
        "event": Any(type_url=TaskStart.NAME, value=started.encode()),
        **changes,
    }
    return ForwardRequest(envelope=types.Envelope(**fields)).encode()  # type: ignore[arg-type]


def test_a_shims_event_reaches_subscribers_as_it_was() -> None:
    exchange = LocalExchange()
    heard: list[Envelope] = []
    exchange.subscribe(['topic=="/tasks/start"'], heard.append)
    assert forward(exchange, request()) == b""
    (envelope,) = heard
    assert (envelope.namespace, envelope.topic) == ("ns", "/tasks/start")
    assert envelope.timestamp == 12_000_000_034
    assert TaskStart.decode(envelope.event.value).pid == 5


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xff",
        request(timestamp=None),
        request(event=None),
        request(namespace=""),
        request(topic="tasks"),
    ],
)
def test_an_incomplete_one_is_refused_and_not_heard(payload: bytes) -> None:
    exchange = LocalExchange()
    heard: list[Envelope] = []
    exchange.subscribe([], heard.append)
    with pytest.raises(InvalidArgument):
        forward(exchange, payload)
    assert heard == []
