"""Trying again: bounded in number and in time, ever slower, no two callers in step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kontti.errors import Error
from kontti.registry.http import (
    ConnectionLost,
    DialFailed,
    Request,
    Response,
    Sleep,
    Transport,
    asked_to_wait,
    retry_after,
    status_error,
)

RETRIED = frozenset((408, 429, 500, 502, 503, 504))


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how long: ``pause`` doubles, no single wait is longer than ``longest``.

    Each pause is made longer by up to ``jitter`` of it.
    """

    attempts: int = 4
    pause: float = 0.25
    longest: float = 60.0
    jitter: float = 0.25

    def pauses(self) -> Iterator[float]:
        """The waits between attempts."""
        for number in range(self.attempts - 1):
            pause = self.pause * 2**number * (1 + self.jitter * random.random())
            yield min(pause, self.longest)


def persist(
    ask: Callable[[], Response],
    retries: Retries,
    sleep: Sleep,
    failures: tuple[type[Error], ...],
) -> Response:
    """The answer; 429s, 5xx and ``failures`` are asked for again.

    The last answer may still be one of these.
    """
    for pause in retries.pauses():
        try:
            response = ask()
        except failures:
            sleep(pause)
            continue
        wait = retry_after(response, pause, retries.longest)
        if response.status not in RETRIED or wait is None:
            return response
        response.close()
        sleep(wait)
    return ask()


@dataclass(frozen=True, slots=True)
class Persistent:
    """A transport that tries again."""

    transport: Transport
    retries: Retries
    sleep: Sleep

    def send(self, request: Request) -> Response:
        """Send it, several times if need be."""
        failures = (ConnectionLost, DialFailed)
        return persist(lambda: self.transport.send(request), self.retries, self.sleep, failures)

    def close(self) -> None:
        """Close every connection."""
        self.transport.close()


def throttled(request: Request, response: Response) -> Error:
    """The status as an error, with how long the server wants to be left alone."""
    error = status_error(request, response)
    wait = asked_to_wait(response.headers.get("retry-after", ""))
    if response.status not in RETRIED or wait is None:
        return error
    bare = error.message.removesuffix(f": {error.wording}")
    return type(error)(f"{bare}: retry after {wait:.0f} seconds")
