"""Exchanges told to a person: what was asked, what was answered, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kontti.errors import Error
from kontti.registry.http import Request, Response, Transport

SECRET = frozenset(("authorization", "proxy-authorization", "cookie", "set-cookie"))
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Traced:
    """A transport that tells of each exchange; with ``headers``, all of them but secrets."""

    transport: Transport
    tell: Tell
    headers: bool = False

    def send(self, request: Request) -> Response:
        """Send it, and tell."""
        if self.headers:
            self.tell(_block(f"{request.method} {request.url}", ">", request.headers))
        start = time.monotonic()
        try:
            response = self.transport.send(request)
        except Error as error:
            self.tell(f"{request.method} {request.url}: {error.message} {_since(start)}")
            raise
        self.tell(f"{request.method} {request.url}: {response.status} {_since(start)}")
        if self.headers:
            self.tell(_block(str(response.status), "<", response.headers))
        return response

    def close(self) -> None:
        """Close every connection."""
        self.transport.close()


def _since(start: float) -> str:
    return f"({(time.monotonic() - start) * 1000:.1f} ms)"


def _block(first: str, sign: str, headers: Mapping[str, str]) -> str:
    lines = [f"{sign} {first}"]
    for name, value in headers.items():
        shown = _hidden(value) if name.lower() in SECRET else value
        lines.append(f"{sign} {name}: {''.join(c for c in shown if c.isprintable())}")
    return "\n".join(lines)


def _hidden(value: str) -> str:
    """The scheme of a secret, without the secret."""
    scheme, space, _ = value.partition(" ")
    return f"{scheme} <hidden>" if space else "<hidden>"
