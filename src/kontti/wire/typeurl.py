"""Messages in google.protobuf.Any, named as containerd names them: by bare full name."""

from __future__ import annotations

import json

from kontti.errors import InvalidArgument
from kontti.wire.messages.google import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from kontti.wire.protobuf import Message

    M = TypeVar("M", bound=Message)

GOOGLE_PREFIX = "type.googleapis.com/"
OCI_PREFIX = "types.containerd.io/opencontainers/runtime-spec/1/"
SPEC_URL = OCI_PREFIX + "Spec"
PROCESS_URL = OCI_PREFIX + "Process"
LINUX_RESOURCES_URL = OCI_PREFIX + "LinuxResources"
WINDOWS_RESOURCES_URL = OCI_PREFIX + "WindowsResources"


def name_of(type_url: str) -> str:
    """The type's bare name, whichever prefix a peer put before it."""
    return type_url.removeprefix(GOOGLE_PREFIX)


def pack(message: Message) -> Any:
    """``message`` in an Any."""
    return Any(type_url=message.NAME, value=message.encode())


def unpack(packed: Any, cls: type[M]) -> M:
    """The message in ``packed``; raises InvalidArgument where it is of another type."""
    if name_of(packed.type_url) != cls.NAME:
        raise InvalidArgument(f"type {packed.type_url!r} where {cls.NAME} is wanted")
    return cls.decode(packed.value)


def pack_json(type_url: str, value: object) -> Any:
    """A Go type that travels as JSON (an OCI spec, a process) in an Any."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return Any(type_url=type_url, value=text.encode())


def unpack_json(packed: Any) -> object:
    """The JSON in ``packed``; raises InvalidArgument."""
    try:
        return json.loads(packed.value)
    except (ValueError, RecursionError):
        raise InvalidArgument(f"{packed.type_url!r} does not hold JSON") from None
