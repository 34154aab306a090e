"""Values of the domain: frozen, and valid once built. Times are ns since the epoch, UTC."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from kontti.errors import InvalidArgument

EMPTY: Mapping[str, str] = MappingProxyType({})

_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-fA-F]+")
_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_ID = re.compile(r"[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*")
_MAX_ID = 76
_MAX_QUOTED = 80
_ESCAPES = {c: f"\\{e}" for c, e in zip('\a\b\f\n\r\t\v\\"', 'abfnrtv\\"', strict=True)}


class Digest(str):
    """``algorithm:hex`` (OCI image spec, descriptor digests). Build with :meth:`parse`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Digest:
        """The digest in ``text``; raises InvalidArgument for anything else."""
        if not _DIGEST.fullmatch(text):
            raise InvalidArgument(f"invalid checksum digest format {text!r:.120}")
        algorithm, _, encoded = text.partition(":")
        length = _HEX_LENGTH.get(algorithm)
        if length is None:
            raise InvalidArgument(f"unsupported digest algorithm {algorithm!r:.60}")
        if len(encoded) != length:
            raise InvalidArgument(f"invalid checksum digest length {text!r:.160}")
        if encoded != encoded.lower():
            raise InvalidArgument(f"invalid checksum digest format {text!r:.160}")
        return cls(text)

    @property
    def algorithm(self) -> str:
        """The part before the colon."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The hexadecimal part."""
        return self.partition(":")[2]


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image or host runs (OCI image index, ``platform``)."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join(p for p in (self.os or "unknown", self.architecture, self.variant) if p)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A typed, sized, hashed reference to a blob (OCI image spec, descriptor)."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(2) to make (containerd.types.Mount); ``target`` is relative to its root."""

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""


@dataclass(frozen=True, slots=True)
class AnyValue:
    """A serialized message and its type (google.protobuf.Any)."""

    type_url: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Resource:
    """What a lease can hold: type ``content``, ``ingests`` or ``snapshots/<snapshotter>``."""

    id: str
    type: str


@dataclass(frozen=True, slots=True)
class Held:
    """What lives in memory or outside the database and is collected with it, as its owner tells.

    A ``root`` needs nobody to refer to it; ``serial`` tells it from a later one of its key.
    """

    namespace: str
    key: str
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    lease: str = ""
    root: bool = False
    serial: int = 0


def check_identifier(text: str, what: str = "") -> str:
    """``text`` if it may name a namespace, container or exec; raises InvalidArgument otherwise.

    Letters and digits joined by single ``.``, ``_`` or ``-``, at most 76 of them, as containerd
    accepts: these names become path components. ``what`` goes before the message.
    """
    if len(text) <= _MAX_ID and _ID.fullmatch(text):
        return text
    prefix = f"{what}: " if what else ""
    if not text:
        raise InvalidArgument(f"{prefix}identifier must not be empty")
    shown = f"{prefix}identifier {quoted(text)}"
    if len(text) > _MAX_ID:
        raise InvalidArgument(f"{shown} greater than maximum length ({_MAX_ID} characters)")
    raise InvalidArgument(f"{shown} must match ^{_ID.pattern}$")


def quoted(text: str) -> str:
    """``text`` in quotes as Go's %q prints it, cut short: for a message on one line."""
    return f'"{shown(text)}"'


def shown(text: str) -> str:
    """The same without the quotes."""
    return "".join(map(_escaped, text[:_MAX_QUOTED]))


def _escaped(char: str) -> str:
    code = ord(char)
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises InvalidArgument where a key and its value together exceed 4096 bytes."""
    for key, value in labels.items():
        if len(key) + len(value) > 4096:
            raise InvalidArgument(
                f"label key and value length ({len(key) + len(value)} bytes) greater than "
                f"maximum size (4096 bytes), key: {key[:10]}"
            )


def merge_labels(
    old: Mapping[str, str], new: Mapping[str, str], paths: Sequence[str]
) -> dict[str, str]:
    """Labels after an update with mask ``paths``: ``labels`` replaces all, ``labels.KEY`` one.

    A key that is masked and has an empty value is removed, as containerd does.
    """
    if not paths or "labels" in paths:
        merged = dict(new)
    else:
        merged = dict(old)
        for path in paths:
            if path.startswith("labels."):
                key = path.removeprefix("labels.")
                merged[key] = new.get(key, "")
    return {k: v for k, v in merged.items() if v != ""}
