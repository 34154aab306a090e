"""HTTP for registries: requests, answers and what they mean, redirects followed by us."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urljoin, urlsplit

from kontti.errors import (
    DeadlineExceeded,
    Error,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from kontti.values import EMPTY

MAX_REDIRECTS = 10
MAX_ERROR_BODY = 4 << 10
CONNECT_SECONDS = 30.0
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
# a host's configured headers may be secrets under any name: others get only what the protocol needs
_PUBLIC_HEADERS = frozenset(("accept", "range", "user-agent", "content-type"))


class UploadBody(Protocol):
    """A request body read as it is sent."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One request. One whose body streams is sent once: not redirected, not retried."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    body: bytes | UploadBody | None = None


@dataclass(frozen=True, slots=True)
class Tls:
    """What a certificate is held against, and ours: ``client`` is (certificate, key) files."""

    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    skip_verify: bool = False


class Response(Protocol):
    """An answer whose body is still to be read. Header names in lower case."""

    @property
    def status(self) -> int: ...
    @property
    def url(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def values(self, name: str) -> list[str]:
        """Every value of a header that may be repeated."""
        ...

    def read(self, limit: int) -> bytes:
        """The whole body; ResourceExhausted over ``limit``, DeadlineExceeded when too slow."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...


class Transport(Protocol):
    """Makes exchanges."""

    def send(self, request: Request) -> Response:
        """Raises Unavailable, DeadlineExceeded or Error where no answer came."""
        ...

    def close(self) -> None: ...


STATUS_ERRORS: Mapping[int, type[Error]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    408: DeadlineExceeded,
    410: NotFound,
    416: InvalidArgument,
    429: ResourceExhausted,
}


def status_error(request: Request, response: Response) -> Error:
    """What an unwelcome status means. The wording is parsed by clients."""
    status = response.status
    kind = STATUS_ERRORS.get(status, Unavailable if status >= 500 else Error)
    phrase = next((s.phrase for s in HTTPStatus if s == status), "")
    url = request.url.partition("?")[0]
    return kind(
        f"unexpected status from {request.method} request to {url}: {status} {phrase}".rstrip()
    )


def follow(transport: Transport, request: Request) -> Response:
    """Send ``request`` and follow redirects: bounded, to http and https only, secrets left behind.

    Raises Error for a redirect that must not be followed.
    """
    for _ in range(MAX_REDIRECTS + 1):
        response = transport.send(request)
        location = response.headers.get("location", "")
        if response.status not in _REDIRECTS or not location or _streams(request):
            return response
        response.close()
        request = redirected(request, response.status, location)
    raise Error(f"stopped after {MAX_REDIRECTS} redirects: {request.url}")


def redirected(request: Request, status: int, location: str) -> Request:
    """The next request of a redirect (RFC 9110, 15.4); raises Error where it must not be made."""
    try:
        url = urljoin(request.url, location)
        scheme, netloc = _origin(url)
    except ValueError as error:
        raise Error(f"{request.url}: invalid redirect") from error
    before = _origin(request.url)
    if scheme not in ("http", "https") or not netloc:
        raise Error(f"{request.url}: redirect to unsupported scheme {scheme!r}")
    headers = dict(request.headers)
    if (scheme, netloc) != before:
        headers = {k: v for k, v in headers.items() if k.lower() in _PUBLIC_HEADERS}
    request = replace(request, url=url, headers=headers)
    if status == 303 and request.method not in ("GET", "HEAD"):
        return replace(request, method="GET", body=None)
    return request


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs are of one scheme, host and port."""
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme, 0)
    return parts.scheme, f"{parts.hostname}:{parts.port or default}" if parts.hostname else ""


def _streams(request: Request) -> bool:
    return request.body is not None and not isinstance(request.body, bytes)


def retry_after(response: Response, default: float, bound: float) -> float | None:
    """Seconds to wait before the next try; None where the server asks for more than ``bound``."""
    seconds = asked_to_wait(response.headers.get("retry-after", ""))
    if seconds is None:
        return default
    return max(seconds, default) if seconds <= bound else None


def asked_to_wait(text: str) -> float | None:
    """The seconds in a Retry-After value, which may be a date (RFC 9110, 10.2.3)."""
    text = text.strip()
    if text.isdecimal() and text.isascii():
        return float(text[:9])
    try:
        from email.utils import parsedate_to_datetime

        return max(0.0, parsedate_to_datetime(text[:64]).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return None


Sleep = Callable[[float], None]


class ConnectionLost(Unavailable):
    """The connection broke in the middle of an exchange: the same request may do at once."""


class DialFailed(Unavailable):
    """There was no connection, so nothing was asked yet."""
