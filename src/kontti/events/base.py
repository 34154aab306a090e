"""What happened, to whom it may concern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kontti.values import AnyValue
from kontti.wire.protobuf import Message


@dataclass(frozen=True, slots=True)
class Envelope:
    """One event (containerd.types.Envelope). ``timestamp`` in ns since the epoch."""

    timestamp: int
    namespace: str
    topic: str
    event: AnyValue


class Publisher(Protocol):
    """Takes events; called from any thread, never blocks."""

    def publish(self, namespace: str, topic: str, event: Message) -> None: ...


class Subscription(Protocol):
    """An open ear. ``close`` ends it."""

    def close(self) -> None: ...


class Exchange(Publisher, Protocol):
    """Publisher and distributor."""

    def forward(self, envelope: Envelope) -> None:
        """Publish what another process made; raises InvalidArgument for a malformed envelope."""
        ...

    def subscribe(
        self, filters: Sequence[str], deliver: Callable[[Envelope], None]
    ) -> Subscription:
        """Call ``deliver`` (from the publisher's thread; it must not block) for each event that
        matches any filter, or every one where there are none.

        Raises InvalidArgument for a bad filter.
        """
        ...
