"""What stores over the wire need: somebody who makes calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

from kontti.client.client import FOREVER, Duplex
from kontti.wire.protobuf import Message

M = TypeVar("M", bound=Message)


class Caller(Protocol):
    """Who makes calls: a connection, or what dials one when it needs it."""

    def unary(
        self,
        method: str,
        request: Message,
        response: type[M],
        *,
        timeout: float | None = None,
        namespace: str | None = None,
    ) -> M: ...
    def stream(
        self, method: str, request: Message, response: type[M], *, timeout: float = FOREVER
    ) -> Iterator[M]: ...
    def duplex(self, method: str) -> Duplex: ...
