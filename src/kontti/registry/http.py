"""HTTP for registries: one exchange at a time, every wait bounded, redirects followed by us."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from types import TracebackType
from typing import IO, TYPE_CHECKING, Protocol, Self, cast
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3 import exceptions as failures

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

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

MAX_REDIRECTS = 10
MAX_ERROR_BODY = 4 << 10
CHUNK = 256 << 10
CONNECT_SECONDS = 30.0
READ_SECONDS = 30.0
BODY_SECONDS = 120.0
USER_AGENT = "kontti/0.1"
_REPR = re.compile(r"^<?HTTPS?Connection[^()]*\([^()]*\)[^:]*: ")
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


class PooledResponse:
    """A Response over a connection that goes back to its pool when the body was read to its end."""

    def __init__(self, request: Request, answer: BaseHTTPResponse) -> None:
        self._request, self._answer = request, answer
        self.headers: Mapping[str, str] = {k.lower(): v for k, v in answer.headers.items()}

    @property
    def status(self) -> int:
        """The status code."""
        return self._answer.status

    @property
    def url(self) -> str:
        """Where it came from, after redirects."""
        return self._request.url

    def values(self, name: str) -> list[str]:
        """Every value of header ``name``."""
        return self._answer.headers.getlist(name)

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes; raises what failure_of says."""
        with mapped(self._request):
            while chunk := self._answer.read1(CHUNK, decode_content=False):
                yield chunk

    def read(self, limit: int) -> bytes:
        """The whole body, bounded in size and time."""
        deadline, parts, total = time.monotonic() + BODY_SECONDS, [], 0
        for chunk in self.chunks():
            total += len(chunk)
            if total > limit:
                raise ResourceExhausted(f"{self.url}: body exceeds {limit} bytes")
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{self.url}: reading the body")
            parts.append(chunk)
        return b"".join(parts)

    def close(self) -> None:
        """Give the connection back if it can be used again, else close it."""
        if self._answer.length_remaining == 0:
            self._answer.release_conn()
        self._answer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class Pool:
    """The Transport over urllib3: one TLS configuration, the environment's proxies."""

    def __init__(self, tls: Tls | None = None, connect_seconds: float = CONNECT_SECONDS) -> None:
        self._tls = tls or Tls()
        self._timeout = urllib3.Timeout(connect=connect_seconds, read=READ_SECONDS)
        self._managers: dict[str, urllib3.PoolManager] = {}

    def send(self, request: Request) -> Response:
        """One exchange, redirects not followed."""
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **request.headers}
        with mapped(request):
            answer = self._manager(request.url).request(
                request.method,
                request.url,
                headers=headers,
                # urllib3 asks of a body only that it has read()
                body=cast("IO[bytes] | bytes | None", request.body),
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=self._timeout,
            )
        return PooledResponse(request, answer)

    def close(self) -> None:
        """Close every connection."""
        for manager in self._managers.values():
            manager.clear()

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy = proxy_for(url)
        key = f"{urlsplit(url).scheme} {proxy}"
        manager = self._managers.get(key)
        if manager is None:
            manager = self._managers.setdefault(key, self._make(url, proxy))
        return manager

    def _make(self, url: str, proxy: str) -> urllib3.PoolManager:
        # loading the system's certificates takes 20 ms: not for plain HTTP
        context = ssl_context(self._tls) if url.startswith("https:") else None
        if self._tls.skip_verify:
            # who asked not to verify knows it
            urllib3.disable_warnings(failures.InsecureRequestWarning)
        if proxy:
            return urllib3.ProxyManager(proxy, maxsize=8, ssl_context=context)
        return urllib3.PoolManager(maxsize=8, ssl_context=context)


def proxy_for(url: str) -> str:
    """The proxy that the environment (HTTPS_PROXY, NO_PROXY and so on) wants for ``url``, or ""."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme, "")
    if not proxy or is_loopback(parts.hostname or "") or proxy_bypass(parts.netloc):
        return ""
    return proxy


def is_loopback(host: str) -> bool:
    """Whether ``host``, without a port, is this machine by its name."""
    name = host.strip("[]")
    return name in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", name) is not None


def ssl_context(tls: Tls) -> ssl.SSLContext:
    """A client context; raises InvalidArgument for files that cannot be used."""
    context = ssl.create_default_context()
    try:
        for ca in tls.ca:
            context.load_verify_locations(cafile=ca)
        for certificate, key in tls.client:
            context.load_cert_chain(certificate, key or None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgument(f"failed to load certificates: {error}") from error
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class ConnectionLost(Unavailable):
    """The connection broke in the middle of an exchange: the same request may do at once."""


# first match wins: urllib3's classes are subclasses of one another
FAILURES: tuple[tuple[type[failures.HTTPError], type[Error], str], ...] = (
    (failures.SSLError, Error, "tls: "),
    (failures.LocationValueError, InvalidArgument, "invalid URL: "),
    (failures.NewConnectionError, Unavailable, "dial tcp: "),
    (failures.ConnectTimeoutError, DeadlineExceeded, "dial tcp: "),
    (failures.TimeoutError, DeadlineExceeded, ""),
    (failures.ProxyError, Unavailable, "proxy: "),
    (failures.ProtocolError, ConnectionLost, ""),
    (failures.HTTPError, Unavailable, ""),
)


def failure_of(request: Request, error: failures.HTTPError) -> Error:
    """The error that a caller is told for one of urllib3's."""
    ours, prefix = mapping_of(type(error))
    # urllib3 puts the pool's or connection's repr before the reason
    reason = "unexpected EOF" if _is_cut_short(error) else _REPR.sub("", str(error))
    verb = request.method.capitalize()
    return ours(f'failed to do request: {verb} "{request.url}": {prefix}{reason}')


def _is_cut_short(error: failures.HTTPError) -> bool:
    """Whether a body ended before its length; urllib3 tells of it with the repr of the cause."""
    return any(isinstance(arg, failures.IncompleteRead) for arg in error.args)


def mapping_of(kind: type[failures.HTTPError]) -> tuple[type[Error], str]:
    """Our class for one of urllib3's, and how its message begins."""
    return next((ours, prefix) for theirs, ours, prefix in FAILURES if issubclass(kind, theirs))


@contextmanager
def mapped(request: Request) -> Iterator[None]:
    """Errors of the HTTP library come out as kontti's."""
    try:
        yield
    except failures.HTTPError as error:
        raise failure_of(request, error) from error
    except OSError as error:
        raise Unavailable(
            f"failed to do request: {request.method} {request.url}: {error}"
        ) from error
    except ValueError as error:
        raise InvalidArgument(f"invalid URL or header: {request.url!r}") from error


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
    text = response.headers.get("retry-after", "").strip()
    seconds = float(text) if text.isdecimal() and len(text) < 7 else default
    return seconds if seconds <= bound else None


Sleep = Callable[[float], None]
