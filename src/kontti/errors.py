"""Error classes: containerd's errdefs, one exception each.

    Error                    unknown
    ├── InvalidArgument      ├── NotFound            ├── AlreadyExists
    ├── PermissionDenied     ├── ResourceExhausted   ├── FailedPrecondition
    │                        │                       │   ├── Conflict
    │                        │                       │   └── NotModified
    ├── Aborted              ├── OutOfRange          ├── Unimplemented
    ├── Internal             ├── Unavailable         ├── DataLoss
    ├── Unauthenticated      ├── Canceled            └── DeadlineExceeded

The message travels on the wire and clients match on its ending (``…: not found``), so every
message is completed with its class's wording unless it already ends with it.
"""

from __future__ import annotations


class Error(Exception):
    """Any failure that a caller of kontti can be told about. ``code`` is the gRPC status number."""

    code = 2
    wording = "unknown"

    def __init__(self, message: str = "") -> None:
        super().__init__(complete(message, self.wording))

    @property
    def message(self) -> str:
        """The text as it goes on the wire."""
        return str(self.args[0])


def complete(message: str, wording: str) -> str:
    """``message`` ending in ``: wording``; errors of class unknown keep their text."""
    if not message:
        return wording
    if wording == Error.wording or message == wording or message.endswith(f": {wording}"):
        return message
    return f"{message}: {wording}"


class InvalidArgument(Error):
    """The request cannot be right whatever the state is."""

    code = 3
    wording = "invalid argument"


class NotFound(Error):
    """The named object does not exist."""

    code = 5
    wording = "not found"


class AlreadyExists(Error):
    """The name or key is taken."""

    code = 6
    wording = "already exists"


class PermissionDenied(Error):
    """The caller may not do this."""

    code = 7
    wording = "permission denied"


class ResourceExhausted(Error):
    """A limit, a quota or the disk is full."""

    code = 8
    wording = "resource exhausted"


class FailedPrecondition(Error):
    """The object is not in a state that allows this."""

    code = 9
    wording = "failed precondition"


class Conflict(FailedPrecondition):
    """Another change came first."""

    wording = "conflict"


class NotModified(FailedPrecondition):
    """Nothing to do."""

    wording = "not modified"


class Aborted(Error):
    """Given up on because of another operation."""

    code = 10
    wording = "aborted"


class OutOfRange(Error):
    """Past the end."""

    code = 11
    wording = "out of range"


class Unimplemented(Error):
    """Not built, or not possible on this host."""

    code = 12
    wording = "not implemented"


class Internal(Error):
    """A bug of ours."""

    code = 13
    wording = "internal"


class Unavailable(Error):
    """Cannot be reached now; a later try may succeed."""

    code = 14
    wording = "unavailable"


class DataLoss(Error):
    """What was stored is gone or is not what was stored."""

    code = 15
    wording = "data loss"


class Unauthenticated(Error):
    """Credentials are missing or refused."""

    code = 16
    wording = "unauthenticated"


class Canceled(Error):
    """The caller gave up."""

    code = 1
    wording = "context canceled"


class DeadlineExceeded(Error):
    """Not done in time."""

    code = 4
    wording = "context deadline exceeded"


CLASSES: tuple[type[Error], ...] = (
    Error,
    InvalidArgument,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Conflict,
    NotModified,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
    Canceled,
    DeadlineExceeded,
)


def from_code(code: int, message: str) -> Error:
    """The error a peer sent: by gRPC status number, told apart by wording where two share one."""
    same = [c for c in CLASSES if c.code == code]
    for cls in reversed(same):
        if message == cls.wording or message.endswith(f": {cls.wording}"):
            return cls(message)
    return (same[0] if same else Error)(message)
