"""Event messages by their type's name, imported when one is met."""

from __future__ import annotations

from importlib import import_module

from kontti.wire.protobuf import Message
from kontti.wire.typeurl import name_of

_MODULES = {
    "Container": "container",
    "Content": "content",
    "Image": "image",
    "Namespace": "namespace",
    "Sandbox": "sandbox",
    "Snapshot": "snapshot",
    "Task": "task",
}
_PREFIX = "containerd.events."


def message_class(type_url: str) -> type[Message] | None:
    """The small codec's class for an event's type, or None for a type that is not containerd's."""
    name = name_of(type_url)
    if not name.startswith(_PREFIX):
        return None
    short = name.removeprefix(_PREFIX)
    for subject, module in _MODULES.items():
        if short.startswith(subject):
            found = getattr(import_module(f"kontti.wire.messages.events.{module}"), short, None)
            is_message = isinstance(found, type) and issubclass(found, Message)
            return found if is_message else None
    return None
