"""The Transport over urllib3: pooled connections, TLS, proxies, an end to every wait."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, cast
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3 import exceptions as failures

from kontti.errors import (
    Canceled,
    DeadlineExceeded,
    Error,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from kontti.registry.http import (
    CONNECT_SECONDS,
    ConnectionLost,
    DialFailed,
    Request,
    Response,
    Tls,
)
from kontti.registry.proxies import proxy_for
from kontti.registry.watch import Limits, Line, Watchdog, pool_makers

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

CHUNK = 256 << 10
# of an upload: each is sent within the time of a connect
BLOCK = 64 << 10
MAX_KEPT = 32
READ_SECONDS = 30.0
ANSWER_SECONDS = 60.0
# a registry hashes, and may copy, what was uploaded before it answers
UPLOAD_SECONDS = 300.0
BODY_SECONDS = 120.0
USER_AGENT = "kontti/0.1"
_REPR = re.compile(r"^<?HTTPS?Connection[^()]*\([^()]*\)[^:]*: ")
_UPLOADS = ("PUT", "PATCH", "POST")


class PooledResponse:
    """A Response over a connection that goes back to its pool when the body was read to its end."""

    def __init__(self, request: Request, answer: BaseHTTPResponse, watchdog: Watchdog) -> None:
        self._request, self._answer, self._watchdog = request, answer, watchdog
        # the connection may close itself before its body is read
        self._line: Line | None = getattr(answer.connection, "line", None)
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
            while chunk := self._read():
                yield chunk

    def _read(self) -> bytes:
        with self._watchdog.limited(self._line, ANSWER_SECONDS):
            return self._answer.read1(CHUNK, decode_content=False)

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
        self._tls, self._connect_seconds = tls or Tls(), connect_seconds
        self._watchdog = Watchdog()
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._is_cut = False

    def send(self, request: Request) -> Response:
        """One exchange, redirects not followed. Raises Canceled after ``cut``."""
        if self._is_cut:
            raise Canceled(f"{request.method} {request.url}")
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **request.headers}
        read = UPLOAD_SECONDS if request.method in _UPLOADS else READ_SECONDS
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
                timeout=urllib3.Timeout(connect=self._connect_seconds, read=read),
            )
        return PooledResponse(request, answer, self._watchdog)

    def cut(self) -> None:
        """From another thread: end what is under way, and have nothing begin any more."""
        self._is_cut = True
        self._watchdog.cut_all()

    def close(self) -> None:
        """Close every connection."""
        for manager in self._managers.values():
            manager.clear()
        self._watchdog.close()

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
        manager = urllib3.PoolManager(maxsize=MAX_KEPT, blocksize=BLOCK, ssl_context=context)
        if proxy:
            manager = proxy_manager(proxy, context)
        limits = Limits(self._connect_seconds + READ_SECONDS, ANSWER_SECONDS, UPLOAD_SECONDS * 2)
        # urllib3 only calls them
        makers = pool_makers(self._watchdog, limits)
        manager.pool_classes_by_scheme = cast("dict[str, type]", makers)
        return manager


def proxy_manager(proxy: str, context: ssl.SSLContext | None) -> urllib3.PoolManager:
    """Connections through a proxy, with the user and password of its URL."""
    parts = urlsplit(proxy)
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    headers = urllib3.make_headers(proxy_basic_auth=user) if parts.username else None
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return urllib3.ProxyManager(
        bare, maxsize=MAX_KEPT, blocksize=BLOCK, ssl_context=context, proxy_headers=headers
    )


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


# first match wins: urllib3's classes are subclasses of one another
FAILURES: tuple[tuple[type[failures.HTTPError], type[Error], str], ...] = (
    (failures.SSLError, Error, "tls: "),
    (failures.LocationValueError, InvalidArgument, "invalid URL: "),
    (failures.NameResolutionError, Unavailable, "dial tcp: "),
    (failures.NewConnectionError, DialFailed, "dial tcp: "),
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
