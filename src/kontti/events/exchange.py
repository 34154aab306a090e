"""The exchange: events in from the engine and from shims, out to subscribers that match."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kontti.errors import InvalidArgument
from kontti.events.base import Envelope
from kontti.events.types import message_class
from kontti.filters import Adaptor, Filter, parse_all
from kontti.values import AnyValue, check_identifier
from kontti.wire.protobuf import Message

log = logging.getLogger(__name__)
# identifiers, and the question mark of containerd's topic for unknown task events
_COMPONENT = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*|\?")


@dataclass(eq=False, slots=True)
class _Subscriber:
    exchange: LocalExchange
    wanted: Filter
    deliver: Callable[[Envelope], None]

    def close(self) -> None:
        """Hear no more."""
        self.exchange.remove(self)


class LocalExchange:
    """events.base.Exchange within one process. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscribers: tuple[_Subscriber, ...] = ()

    def publish(self, namespace: str, topic: str, event: Message) -> None:
        """Distribute an event of ours."""
        packed = AnyValue(event.NAME, event.encode())
        self.forward(Envelope(time.time_ns(), namespace, topic, packed))

    def forward(self, envelope: Envelope) -> None:
        """Distribute an event; raises InvalidArgument for a malformed one."""
        check(envelope)
        if not self._subscribers:
            return
        fields = adaptor(envelope)
        for subscriber in self._subscribers:
            if subscriber.wanted.match(fields):
                self._deliver(subscriber, envelope)

    @staticmethod
    def _deliver(subscriber: _Subscriber, envelope: Envelope) -> None:
        try:
            subscriber.deliver(envelope)
        except Exception:  # one broken listener must not take events from the others
            log.exception("an event subscriber failed")

    def subscribe(self, filters: Sequence[str], deliver: Callable[[Envelope], None]) -> _Subscriber:
        """events.base.Exchange.subscribe."""
        subscriber = _Subscriber(self, parse_all(filters), deliver)
        with self._lock:
            self._subscribers = (*self._subscribers, subscriber)
        return subscriber

    def remove(self, subscriber: _Subscriber) -> None:
        """End a subscription."""
        with self._lock:
            self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)


def check(envelope: Envelope) -> None:
    """Raises InvalidArgument unless namespace, topic and time are there and well formed."""
    check_identifier(envelope.namespace, "namespace")
    check_topic(envelope.topic)
    if envelope.timestamp <= 0:
        raise InvalidArgument("timestamp must be set on forwarded event")


def check_topic(topic: str) -> None:
    """Raises InvalidArgument unless ``topic`` is ``/component/component``."""
    if not topic:
        raise InvalidArgument("topic must not be empty")
    if not topic.startswith("/"):
        raise InvalidArgument(f"topic must start with '/': {topic!r:.100}")
    if len(topic) == 1:
        raise InvalidArgument("topic must have at least one component")
    for component in topic[1:].split("/"):
        if not _COMPONENT.fullmatch(component):
            raise InvalidArgument(f"failed validation on component {component!r:.100} of a topic")


def adaptor(envelope: Envelope) -> Adaptor:
    """An event's fields for filters: topic, namespace, ``event.<fieldpath>``."""
    decoded: list[Message | None] = []

    def event() -> Message | None:
        if not decoded:
            decoded.append(_decode(envelope.event))
        return decoded[0]

    def value(path: Sequence[str]) -> tuple[str, bool]:
        if list(path) == ["topic"]:
            return envelope.topic, True
        if list(path) == ["namespace"]:
            return envelope.namespace, True
        if path[0] == "event" and len(path) > 1:
            return field(event(), path[1:])
        return "", False

    return value


def _decode(packed: AnyValue) -> Message | None:
    cls = message_class(packed.type_url)
    if cls is None:
        return None
    try:
        return cls.decode(packed.value)
    except InvalidArgument:
        return None


def field(value: object, path: Sequence[str]) -> tuple[str, bool]:
    """The field of a message that a path names, as text."""
    for index, name in enumerate(path):
        if isinstance(value, dict):
            key = ".".join(path[index:])
            return str(value.get(key, "")), key in value
        if not isinstance(value, Message) or name not in value.__slots__:
            return "", False
        value = getattr(value, name)
    if isinstance(value, Message) or value is None:
        return "", value is not None
    if isinstance(value, bool):
        return str(value).lower(), True
    return str(value), bool(value)
