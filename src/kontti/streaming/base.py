"""What a stream is: typed messages both ways between a client and a part of the daemon.

A client opens one by an id (containerd.services.streaming.v1), and names the id to the service
that is to use it. Asynchronous: its waits are long.
"""

from __future__ import annotations

from typing import Protocol

from kontti.namespaces import Scope
from kontti.values import AnyValue


class Stream(Protocol):
    """One side of it."""

    async def send(self, message: AnyValue) -> None:
        """Send one, waiting while the peer takes none; raises Canceled where it is closed."""
        ...

    async def recv(self) -> AnyValue | None:
        """The next one, None after the peer's last; raises Canceled where it broke off."""
        ...

    def close(self) -> None:
        """Send no more; what was sent still arrives. Twice is fine."""
        ...

    async def drained(self) -> None:
        """Return when all that was sent is on its way, or lost."""
        ...


class Streams(Protocol):
    """Open streams by id, in the scope's namespace."""

    def register(self, scope: Scope, id: str, stream: Stream) -> None:
        """Have ``get`` find it, until it is removed; raises AlreadyExists, ResourceExhausted."""
        ...

    def get(self, scope: Scope, id: str) -> Stream:
        """Raises NotFound."""
        ...
