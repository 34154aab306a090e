"""API messages to values and back: the only place that knows both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.timestamp_pb2 import Timestamp

from kontti.api.types.descriptor_pb2 import Descriptor as ProtoDescriptor
from kontti.api.types.mount_pb2 import Mount as ProtoMount
from kontti.api.types.platform_pb2 import Platform as ProtoPlatform
from kontti.values import AnyValue, Descriptor, Digest, Mount, Platform

SECOND = 1_000_000_000


def timestamp(ns: int) -> Timestamp:
    """Nanoseconds since the epoch as a Timestamp; 0 is Go's zero time, as clients expect."""
    if ns == 0:
        return Timestamp(seconds=-62135596800)
    return Timestamp(seconds=ns // SECOND, nanos=ns % SECOND)


def nanoseconds(stamp: Timestamp) -> int:
    """A Timestamp as nanoseconds since the epoch."""
    return stamp.seconds * SECOND + stamp.nanos


def mounts_to_proto(mounts: Iterable[Mount]) -> list[ProtoMount]:
    """Mounts as messages."""
    return [
        ProtoMount(type=m.type, source=m.source, target=m.target, options=m.options) for m in mounts
    ]


def mounts_from_proto(mounts: Iterable[ProtoMount]) -> list[Mount]:
    """Messages as mounts."""
    return [Mount(m.type, m.source, tuple(m.options), m.target) for m in mounts]


def descriptor_to_proto(descriptor: Descriptor) -> ProtoDescriptor:
    """A descriptor as a message (which has no room for its platform)."""
    return ProtoDescriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=dict(descriptor.annotations),
    )


def descriptor_from_proto(message: ProtoDescriptor) -> Descriptor:
    """A descriptor, its digest checked; raises InvalidArgument."""
    return Descriptor(
        media_type=message.media_type,
        digest=Digest.parse(message.digest),
        size=message.size,
        annotations=dict(message.annotations),
    )


def any_to_proto(value: AnyValue | None) -> ProtoAny | None:
    """A typed value as google.protobuf.Any."""
    return None if value is None else ProtoAny(type_url=value.type_url, value=value.value)


def any_from_proto(message: ProtoAny) -> AnyValue | None:
    """A typed value, or None for an empty Any."""
    if not message.type_url and not message.value:
        return None
    return AnyValue(message.type_url, message.value)


def anys_to_proto(values: Mapping[str, AnyValue]) -> dict[str, ProtoAny]:
    """Named typed values as messages."""
    return {k: ProtoAny(type_url=v.type_url, value=v.value) for k, v in values.items()}


def anys_from_proto(messages: Mapping[str, ProtoAny]) -> dict[str, AnyValue]:
    """Named messages as typed values."""
    return {k: AnyValue(v.type_url, v.value) for k, v in messages.items()}


def platform_to_proto(platform: Platform) -> ProtoPlatform:
    """A platform as a message."""
    return ProtoPlatform(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        os_version=platform.os_version,
        os_features=platform.os_features,
    )
