"""``ctr events``."""

from __future__ import annotations

import json

from kontti.cmd.ctr.grammar import Call, Command
from kontti.cmd.ctr.output import go_time
from kontti.cmd.ctr.session import EVENTS, connect
from kontti.wire.messages.services.events.v1.events import SubscribeRequest
from kontti.wire.messages.types.event import Envelope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.wire.messages.google import Any
    from kontti.wire.protobuf import Message


def events(call: Call) -> None:
    """Print events that match the filters until interrupted."""
    with connect(call) as client:
        for envelope in client.stream(
            EVENTS + "Subscribe", SubscribeRequest(filters=call.args), Envelope
        ):
            print(line(envelope), flush=True)


def line(envelope: Envelope) -> str:
    """``TIME NAMESPACE TOPIC JSON``."""
    stamp = envelope.timestamp
    when = go_time(stamp.seconds * 10**9 + stamp.nanos) if stamp else "-"
    body = event_json(envelope.event) if envelope.event else ""
    return f"{when} {envelope.namespace} {envelope.topic} {body}".rstrip()


def event_json(event: Any) -> str:
    """An event's message as compact JSON, empty fields left out; unknown types as their name."""
    from kontti.events.types import message_class

    cls = message_class(event.type_url)
    if cls is None:
        return json.dumps({"type_url": event.type_url})
    return json.dumps(plain(cls.decode(event.value)), separators=(",", ":"), ensure_ascii=False)


def plain(message: Message) -> dict[str, object]:
    """A message as JSON values."""
    found: dict[str, object] = {}
    names: tuple[str, ...] = tuple(message.__slots__)
    for name in names:
        value = getattr(message, name)
        if value in (None, "", 0, False, b"") or value == [] or value == {}:
            continue
        found[name] = _value(value)
    return found


def _value(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list):
        return [_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _value(item) for key, item in value.items()}
    if isinstance(value, str | int | float | bool):
        return value
    return _message(value)


def _message(value: object) -> object:
    from kontti.cmd.ctr.output import rfc3339
    from kontti.wire.messages.google import Timestamp
    from kontti.wire.protobuf import Message

    if isinstance(value, Timestamp):
        return rfc3339(value.seconds * 10**9 + value.nanos)
    return plain(value) if isinstance(value, Message) else str(value)


COMMANDS = Command("events", events, "display containerd events", args="[<filter>, ...]")
