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
# the image events alone live in their service's package
_PREFIXES = ("containerd.events.", "containerd.services.images.v1.")


def message_class(type_url: str) -> type[Message] | None:
    """The small codec's class for an event's type, or None for a type that is not containerd's."""
    name = name_of(type_url)
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return _class(name, name.removeprefix(prefix))
    return None


def _class(name: str, short: str) -> type[Message] | None:
    for subject, module in _MODULES.items():
        if short.startswith(subject):
            found = getattr(import_module(f"kontti.wire.messages.events.{module}"), short, None)
            if isinstance(found, type) and issubclass(found, Message) and name == found.NAME:
                return found
    return None
