"""Typed reading of JSON that others wrote: what is wrong is InvalidArgument, by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NoReturn, cast

from kontti.errors import InvalidArgument
from kontti.values import Descriptor, Digest, Platform

Json = Mapping[str, object]


def loads(data: bytes, what: str) -> Json:
    """The object in ``data``; ``what`` names it in errors."""
    try:
        # decoded here: json takes UTF-16 and UTF-32 too, which nobody else would understand
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is not JSON: {error!s:.200}") from error
    if not isinstance(value, dict):
        raise InvalidArgument(f"{what} is not a JSON object")
    return cast("Json", value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def text(document: Json, key: str) -> str:
    """A string, "" where it is absent."""
    value = document.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(key, "a string")
    return value


def integer(document: Json, key: str) -> int:
    """A non-negative 64-bit integer, 0 where it is absent."""
    value = document.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise _wrong(key, "a size")
    return value


def texts(document: Json, key: str) -> tuple[str, ...]:
    """A list of strings."""
    values = items(document, key)
    if not all(isinstance(value, str) for value in values):
        raise _wrong(key, "a list of strings")
    return cast("tuple[str, ...]", values)


def items(document: Json, key: str) -> tuple[object, ...]:
    """A list, empty where it is absent."""
    value = document.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _wrong(key, "a list")
    return tuple(value)


def section(document: Json, key: str) -> Json:
    """An object, empty where it is absent."""
    return as_object(document.get(key) or {}, key)


def as_object(value: object, what: str) -> Json:
    """``value`` if it is an object."""
    if not isinstance(value, dict):
        raise _wrong(what, "an object")
    return cast("Json", value)


def text_map(document: Json, key: str) -> Mapping[str, str]:
    """An object of strings."""
    value = section(document, key)
    if not all(isinstance(item, str) for item in value.values()):
        raise _wrong(key, "an object of strings")
    return MappingProxyType(cast("dict[str, str]", dict(value)))


def parse_descriptor(value: object, what: str) -> Descriptor:
    """A descriptor (OCI image spec, descriptor.md)."""
    document = as_object(value, what)
    media_type = text(document, "mediaType")
    if not media_type:
        raise InvalidArgument(f"{what} has no media type")
    return Descriptor(
        media_type,
        Digest.parse(text(document, "digest")),
        integer(document, "size"),
        annotations=text_map(document, "annotations"),
        platform=parse_platform(document["platform"]) if document.get("platform") else None,
        urls=texts(document, "urls"),
        artifact_type=text(document, "artifactType"),
    )


def parse_platform(value: object) -> Platform:
    """A platform as an index or an image config states it."""
    document = as_object(value, "platform")
    return Platform(
        text(document, "os"),
        text(document, "architecture"),
        text(document, "variant"),
        text(document, "os.version"),
        texts(document, "os.features"),
    )


def dump_descriptor(descriptor: Descriptor) -> dict[str, object]:
    """A descriptor as JSON, without what it does not say."""
    document: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.urls:
        document["urls"] = list(descriptor.urls)
    if descriptor.annotations:
        document["annotations"] = dict(descriptor.annotations)
    if descriptor.platform is not None:
        document["platform"] = dump_platform(descriptor.platform)
    if descriptor.artifact_type:
        document["artifactType"] = descriptor.artifact_type
    return document


def dump_platform(platform: Platform) -> dict[str, object]:
    """A platform as JSON."""
    document: dict[str, object] = {"architecture": platform.architecture, "os": platform.os}
    if platform.os_version:
        document["os.version"] = platform.os_version
    if platform.os_features:
        document["os.features"] = list(platform.os_features)
    if platform.variant:
        document["variant"] = platform.variant
    return document


def dumps(document: Mapping[str, object]) -> bytes:
    """Compact JSON in the order given."""
    return json.dumps(document, separators=(",", ":")).encode()


def _wrong(what: str, wanted: str) -> InvalidArgument:
    return InvalidArgument(f"{what} is not {wanted}")


def dump_list(documents: Iterable[Mapping[str, object]]) -> bytes:
    """A compact JSON list."""
    return json.dumps(list(documents), separators=(",", ":")).encode()
