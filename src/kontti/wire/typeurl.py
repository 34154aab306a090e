"""Messages in google.protobuf.Any, named as containerd names them: by bare full name."""

from __future__ import annotations

from kontti.errors import InvalidArgument
from kontti.wire.messages.google import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from kontti.wire.protobuf import Message

    M = TypeVar("M", bound=Message)

OCI_PREFIX = "types.containerd.io/opencontainers/runtime-spec/1/"
SPEC_URL = OCI_PREFIX + "Spec"
PROCESS_URL = OCI_PREFIX + "Process"


def name_of(type_url: str) -> str:
    """The type's bare name, whichever prefix a peer put before it."""
    return type_url.rpartition("/")[2]


def pack(message: Message) -> Any:
    """``message`` in an Any."""
    return Any(type_url=message.NAME, value=message.encode())


def unpack(packed: Any, cls: type[M]) -> M:
    """The message in ``packed``; raises InvalidArgument where it is of another type."""
    if name_of(packed.type_url) != cls.NAME:
        raise InvalidArgument(f"type {packed.type_url!r} where {cls.NAME} is wanted")
    return cls.decode(packed.value)
