"""Who we are to a registry: WWW-Authenticate challenges, Basic, and bearer tokens.

The distribution project's token specification: a 401 names a realm; a token for a service and
scopes is fetched there, with Basic credentials (GET) or a refresh token (POST, OAuth 2).
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode, urlsplit

from kontti.errors import Error, PermissionDenied, Unauthenticated, Unavailable
from kontti.registry.http import Request, Transport, status_error
from kontti.values import EMPTY

MAX_HEADER = 16 << 10
MAX_TOKEN_BODY = 1 << 20
DEFAULT_LIFE = 60.0
MARGIN = 10.0
_NO_SUCH_FLOW = frozenset((404, 405))
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PARAM = re.compile(
    r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\",]*))\s*"
)
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and secret; without a user the secret is a refresh (identity) token.

    ``token`` is a bearer token that the registry itself takes.
    """

    username: str = ""
    secret: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


CredentialSource = Callable[[str], Credentials | None]


def no_credentials(host: str) -> Credentials | None:
    """The source that knows no one."""
    return None


@dataclass(frozen=True, slots=True)
class Challenge:
    """A way in that a server offers (RFC 9110, 11.6.1). Names are in lower case."""

    scheme: str
    params: Mapping[str, str] = field(default_factory=lambda: EMPTY)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges in WWW-Authenticate values; what cannot be read ends its header."""
    found: list[Challenge] = []
    for header in headers:
        position, text = 0, header[:MAX_HEADER]
        while (scheme := _scheme(text, position)) is not None:
            params, position = _params(text, scheme.end())
            found.append(Challenge(scheme.group().lower(), params))
    return found


def _scheme(text: str, position: int) -> re.Match[str] | None:
    while position < len(text) and text[position] in " \t,":
        position += 1
    return _TOKEN.match(text, position)


def _params(text: str, position: int) -> tuple[dict[str, str], int]:
    params: dict[str, str] = {}
    while (match := _PARAM.match(text, position)) is not None:
        quoted, plain = match.group(2), match.group(3)
        params[match.group(1).lower()] = plain if quoted is None else _ESCAPE.sub(r"\1", quoted)
        position = match.end()
        if not text.startswith(",", position):
            break
        position += 1
    return params, position


@dataclass(slots=True)
class _Token:
    value: str
    expires: float


class Authorizer:
    """Authorization for one host: learns from challenges, keeps tokens. Safe for threads."""

    def __init__(
        self,
        host: str,
        secure: bool,
        transport: Transport,
        credentials: CredentialSource = no_credentials,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._secure = host, secure
        self._transport, self._source, self._clock = transport, credentials, clock
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._tokens: dict[str, _Token] = {}
        self._known: Credentials | None = None
        self._renewed: tuple[str, str] = ("", "")

    def header(self, scopes: Sequence[str]) -> str:
        """The Authorization value for a request that needs ``scopes``; "" before any challenge."""
        with self._lock:
            challenge = self._challenge
            if challenge is None:
                return ""
            if challenge.scheme == "basic":
                return self._basic()
            return self._bearer(challenge, tuple(sorted(set(scopes))))

    def challenged(self, headers: Iterable[str], scopes: Sequence[str], refused: str = "") -> None:
        """Take in a 401's WWW-Authenticate values; ``refused`` is the header that did not do.

        Raises Unauthenticated where there is no way in that we have the means for.
        """
        challenges = parse_challenges(headers)
        key = _key(tuple(sorted(set(scopes))))
        with self._lock:
            token = self._tokens.get(key)
            if token and refused and refused != f"Bearer {token.value}":
                # another thread was refused as well, and has a new one already
                return
            self._tokens.pop(key, None)
            # what was refused may have been replaced
            self._known = None
            self._challenge = self._choose(challenges)

    def _choose(self, challenges: Sequence[Challenge]) -> Challenge:
        for challenge in challenges:
            if challenge.scheme == "bearer" and challenge.params.get("realm"):
                return challenge
        if any(c.scheme == "basic" for c in challenges):
            found = self._credentials()
            if found is None or not found.username:
                raise Unauthenticated("authorization failed: no basic auth credentials")
            return Challenge("basic")
        raise Unauthenticated("authorization failed: no supported challenge from the server")

    def _credentials(self) -> Credentials | None:
        """Asked for at a challenge: a helper is a process, and a file may change."""
        if self._known is None:
            found = self._source(self._host)
            self._known = found if found and (found.secret or found.token) else None
        return self._known

    def _basic(self) -> str:
        credentials = self._credentials()
        return basic(credentials) if credentials else ""

    def _bearer(self, challenge: Challenge, scopes: tuple[str, ...]) -> str:
        key = _key(scopes)
        token = self._tokens.get(key)
        if token is None or token.expires <= self._clock():
            token = self._tokens[key] = self._obtain(challenge, scopes)
        return f"Bearer {token.value}"

    def _obtain(self, challenge: Challenge, scopes: tuple[str, ...]) -> _Token:
        credentials = self._credentials()
        if credentials and credentials.token:
            return _Token(header_safe(credentials.token), math.inf)
        realm = check_realm(challenge.params["realm"], self._secure)
        asked = sorted({*scopes, *challenge.params.get("scope", "").split()})
        service = challenge.params.get("service", "")
        if credentials and credentials.secret == self._renewed[0]:
            credentials = replace(credentials, secret=self._renewed[1])
        requests = token_requests(realm, service, asked, credentials)
        for request in requests:
            granted = self._ask(request, last=request is requests[-1])
            if granted is not None:
                return self._granted(granted)
        raise Unauthenticated(_refusal(404))

    def _ask(self, request: Request, *, last: bool) -> Granted | None:
        with self._transport.send(request) as response:
            if response.status in _NO_SUCH_FLOW and not last:
                return None
            if response.status in (400, 401, 403):
                raise Unauthenticated(_refusal(response.status))
            if response.status != 200:
                raise status_error(request, response)
            return parse_token(response.read(MAX_TOKEN_BODY))

    def _granted(self, granted: Granted) -> _Token:
        known = self._known
        if granted.refresh and known and not known.username:
            self._renewed = (known.secret, granted.refresh)
        return _Token(granted.token, self._clock() + max(granted.life - MARGIN, 1.0))


def _refusal(status: int) -> str:
    return f"authorization failed: failed to fetch oauth token: unexpected status: {status}"


def _key(scopes: tuple[str, ...]) -> str:
    return " ".join(scopes)


def basic(credentials: Credentials) -> str:
    """An Authorization value for user and secret (RFC 7617)."""
    pair = f"{credentials.username}:{credentials.secret}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def check_realm(realm: str, secure: bool) -> str:
    """``realm`` if a token may be asked of it; raises PermissionDenied otherwise.

    A registry met over TLS must not be able to send our secret somewhere in the clear.
    """
    parts = urlsplit(realm)
    if not parts.hostname or parts.scheme not in (("https",) if secure else ("https", "http")):
        raise PermissionDenied(f"token realm {realm[:200]!r} is not acceptable")
    return realm


def token_requests(
    realm: str, service: str, scopes: Sequence[str], credentials: Credentials | None
) -> list[Request]:
    """The requests for a token, each for where the one before is not known.

    POST with a refresh token (OAuth 2). Else GET, with Basic for a user; then POST for a user.
    """
    if credentials and not credentials.username:
        grant = [("grant_type", "refresh_token"), ("refresh_token", credentials.secret)]
        return [_post(realm, service, scopes, grant)]
    query = [("service", service)] if service else []
    query += [("scope", scope) for scope in scopes]
    headers = {"Authorization": basic(credentials)} if credentials else {}
    joint = "&" if urlsplit(realm).query else "?"
    found = [Request("GET", realm + (joint + urlencode(query) if query else ""), headers)]
    if credentials:
        grant = [("grant_type", "password"), ("username", credentials.username)]
        found.append(_post(realm, service, scopes, [*grant, ("password", credentials.secret)]))
    return found


def _post(
    realm: str, service: str, scopes: Sequence[str], grant: Sequence[tuple[str, str]]
) -> Request:
    form = [("service", service), ("client_id", "kontti"), ("scope", " ".join(scopes)), *grant]
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return Request("POST", realm, headers, urlencode(form).encode())


@dataclass(frozen=True, slots=True)
class Granted:
    """A token server's answer: a token, its life in seconds, and a new refresh token or ""."""

    token: str
    life: float
    refresh: str = ""


def parse_token(body: bytes) -> Granted:
    """What a token server granted; raises Unavailable or Error where there is no token."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unavailable("unable to decode token response") from error
    fields = answer if isinstance(answer, dict) else {}
    token = header_safe(fields.get("token") or fields.get("access_token"))
    life, refresh = fields.get("expires_in"), fields.get("refresh_token")
    seconds = float(life) if isinstance(life, int) and 0 < life < 1 << 31 else DEFAULT_LIFE
    return Granted(token, seconds, refresh if isinstance(refresh, str) else "")


def header_safe(token: object) -> str:
    """``token`` if it can stand in a header; raises Error.

    A control character would let whoever gave it write headers of ours.
    """
    if not isinstance(token, str) or not token.isprintable() or not token.isascii():
        raise Error("authorization server did not include a token in the response")
    return token
