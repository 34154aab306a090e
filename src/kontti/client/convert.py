"""The small codec's messages to values and back, for stores over the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kontti.values import AnyValue, Descriptor, Digest, Mount
from kontti.wire.messages.google import Any, Timestamp
from kontti.wire.messages.types.descriptor import Descriptor as WireDescriptor
from kontti.wire.messages.types.mount import Mount as WireMount


def nanoseconds(stamp: Timestamp | None) -> int:
    """A Timestamp as ns since the epoch, 0 for none."""
    return stamp.seconds * 10**9 + stamp.nanos if stamp is not None else 0


def descriptor_to_wire(descriptor: Descriptor) -> WireDescriptor:
    """A descriptor as a message."""
    return WireDescriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=descriptor.annotations,
    )


def descriptor_from_wire(message: WireDescriptor | None) -> Descriptor:
    """A message as a descriptor; raises InvalidArgument."""
    found = message or WireDescriptor()
    return Descriptor(
        found.media_type, Digest.parse(found.digest), found.size, dict(found.annotations)
    )


def mounts_to_wire(mounts: Iterable[Mount]) -> list[WireMount]:
    """Mounts as messages."""
    return [
        WireMount(type=m.type, source=m.source, target=m.target, options=m.options) for m in mounts
    ]


def mounts_from_wire(mounts: Iterable[WireMount]) -> list[Mount]:
    """Messages as mounts."""
    return [Mount(m.type, m.source, tuple(m.options), m.target) for m in mounts]


def any_to_wire(value: AnyValue | None) -> Any | None:
    """A typed value as a message."""
    return None if value is None else Any(type_url=value.type_url, value=value.value)


def any_from_wire(message: Any | None) -> AnyValue | None:
    """A message as a typed value."""
    return None if message is None else AnyValue(message.type_url, message.value)


def anys_from_wire(messages: Mapping[str, Any]) -> dict[str, AnyValue]:
    """Named messages as typed values."""
    return {key: AnyValue(m.type_url, m.value) for key, m in messages.items()}


def anys_to_wire(values: Mapping[str, AnyValue]) -> dict[str, Any]:
    """Named typed values as messages."""
    return {key: Any(type_url=v.type_url, value=v.value) for key, v in values.items()}
