"""Talking to the hosts of a registry: authorization and bounded retries."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from kontti.errors import DeadlineExceeded, Error, Unauthenticated
from kontti.registry.auth import Authorizer, CredentialSource, no_credentials
from kontti.registry.credentials import either, source_of
from kontti.registry.hosts import Host, Hosts
from kontti.registry.http import (
    MAX_ERROR_BODY,
    ConnectionLost,
    DialFailed,
    Request,
    Response,
    Sleep,
    Tls,
    Transport,
    follow,
    same_origin,
    status_error,
)
from kontti.registry.retry import Persistent, Retries, persist, throttled
from kontti.values import EMPTY

MAX_CHALLENGES = 2
REST_SECONDS = 60.0
_IDEMPOTENT = ("GET", "HEAD", "PUT")


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of a host. ``path`` is under the API's root, or a whole URL.

    ``patient``: there is no other host to ask, so one that is not there is asked again.
    """

    method: str
    path: str
    scopes: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    body: bytes | None = None
    patient: bool = False


TransportFactory = Callable[[Tls, float], Transport]


def pooled(tls: Tls, connect_seconds: float) -> Transport:
    """The transport that sessions have unless they are given another."""
    # urllib3 takes four megabytes, and most processes never talk to a registry
    from kontti.registry.pool import Pool

    return Pool(tls, connect_seconds)


class Session:
    """Connections and authorization, shared by all that a caller does. Safe for threads.

    ``credentials`` come before those of a host's configuration, ``fallback`` after them.
    """

    def __init__(
        self,
        hosts: Hosts,
        credentials: CredentialSource = no_credentials,
        retries: Retries | None = None,
        sleep: Sleep = time.sleep,
        *,
        transports: TransportFactory = pooled,
        fallback: CredentialSource = no_credentials,
    ) -> None:
        self._hosts, self._credentials, self._fallback = hosts, credentials, fallback
        self._retries, self._sleep, self._make = retries or Retries(), sleep, transports
        self._lock = threading.Lock()
        self._transports: dict[tuple[Tls, float], Transport] = {}
        self._clients: dict[Host, HostClient] = {}

    def hosts(self, registry: str) -> Sequence[Host]:
        """The hosts that serve ``registry``."""
        return self._hosts(registry)

    def client(self, host: Host) -> HostClient:
        """The client for ``host``, the same one every time."""
        with self._lock:
            client = self._clients.get(host)
            if client is None:
                client = self._clients[host] = self._client(host)
            return client

    def _client(self, host: Host) -> HostClient:
        key = (host.tls, host.dial_timeout)
        transport = self._transports.get(key)
        if transport is None:
            transport = self._transports[key] = self._make(*key)
        asking = Persistent(transport, self._retries, self._sleep)
        own = source_of(host.auth) if host.auth else no_credentials
        source = either(self._credentials, own, self._fallback)
        authorizer = Authorizer(host.known_as, host.scheme == "https", asking, source)
        return HostClient(host, transport, authorizer, self._retries, self._sleep)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for transport in self._transports.values():
                transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(slots=True)
class HostClient:
    """Calls to one host."""

    host: Host
    transport: Transport
    authorizer: Authorizer
    retries: Retries
    sleep: Sleep
    rested_until: float = 0.0

    def call(self, call: Call) -> Response:
        """The answer, redirects followed, 401s answered, 429s and 5xx tried again.

        Its status may be any other. Raises Unauthenticated, and what the transport does.
        """
        challenges = 0
        while True:
            request = self.request(call)
            response = self._answer(call, request)
            if response.status != 401:
                return response
            challenges += 1
            sent = request.headers.get("Authorization", "")
            self.challenged(call, response, challenges, sent)

    def _answer(self, call: Call, request: Request) -> Response:
        try:
            return persist(
                lambda: follow(self.transport, request),
                self.retries,
                self.sleep,
                _passing(call),
            )
        except (DialFailed, DeadlineExceeded):
            self.rest()
            raise

    def rest(self) -> None:
        """Ask others first for a while."""
        self.rested_until = time.monotonic() + REST_SECONDS

    def resting(self) -> bool:
        """Whether others are to be asked first."""
        return time.monotonic() < self.rested_until

    def challenged(self, call: Call, response: Response, challenges: int, sent: str = "") -> None:
        """Take in a 401, the ``challenges``-th of a call; raises Unauthenticated after a few.

        ``sent`` is the Authorization that was refused.
        """
        with response:
            asked = self.url(call.path)
            if challenges > MAX_CHALLENGES or not same_origin(asked, response.url):
                raise Unauthenticated(self._refused(call, response))
            self.authorizer.challenged(response.values("www-authenticate"), call.scopes, sent)

    def _refused(self, call: Call, response: Response) -> str:
        error = status_error(Request(call.method, response.url), response).message
        return f"{error.removesuffix(': unauthenticated')}: authorization failed"

    def request(self, call: Call) -> Request:
        """``call`` as a request, with what authorizes it."""
        url = self.url(call.path)
        headers = dict(call.headers)
        if same_origin(url, self.host.url):
            headers |= dict(self.host.headers)
            authorization = self.authorizer.header(call.scopes)
            if authorization:
                headers["Authorization"] = authorization
        return Request(call.method, url, headers, call.body)

    def url(self, path: str) -> str:
        """``path`` as a whole URL."""
        return path if path.startswith(("http://", "https://")) else self.host.url + path

    def checked(self, call: Call, accepted: Sequence[int]) -> Response:
        """The answer if its status is one of ``accepted``; raises what it means otherwise."""
        response = self.call(call)
        if response.status in accepted:
            return response
        with response:
            raise described(Request(call.method, self.url(call.path)), response)


def _passing(call: Call) -> tuple[type[Error], ...]:
    """The failures that asking again may pass over."""
    found: list[type[Error]] = [DialFailed] if call.patient else []
    if call.method in _IDEMPOTENT:
        # a kept connection may have been closed by the other side as we sent
        found.append(ConnectionLost)
    return tuple(found)


def rested(clients: Sequence[HostClient]) -> list[HostClient]:
    """``clients`` in their order, those last that were of no use a moment ago."""
    return sorted(clients, key=HostClient.resting)


def described(request: Request, response: Response) -> Error:
    """The status as an error, with what the registry said in its body, if that is text."""
    error = throttled(request, response)
    try:
        text = response.read(MAX_ERROR_BODY).decode() if request.method != "HEAD" else ""
    except (Error, UnicodeDecodeError):
        return error
    said = first_message(text)
    if not said:
        return error
    bare = error.message.removesuffix(f": {error.wording}")
    return type(error)(f"{bare}: {said}")


def first_message(text: str) -> str:
    """The first error in a registry's JSON answer (OCI distribution, error codes), or ""."""
    try:
        match json.loads(text):
            case {"errors": [{"code": str(code), **rest}, *_]}:
                message = rest.get("message")
                said = f"{code}: {message}" if isinstance(message, str) else code
                return "".join(c for c in said[:300] if c.isprintable())
            case _:
                return ""
    except (ValueError, RecursionError):
        return ""
