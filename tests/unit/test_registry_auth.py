"""Challenges and tokens, without a socket."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import Error, PermissionDenied, Unauthenticated, Unavailable
from kontti.registry.auth import (
    Authorizer,
    Challenge,
    Credentials,
    check_realm,
    parse_challenges,
    parse_token,
    token_requests,
)
from kontti.registry.http import Request

BEARER = 'Bearer realm="https://auth.example.org/token",service="reg",scope="repository:a:pull"'
SCOPES = ("repository:a:pull",)
ALICE = Credentials("alice", "secret")


@dataclass
class Canned:
    """A response with a status and a body."""

    status: int = 200
    body: bytes = b""
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def values(self, name: str) -> list[str]:
        return []

    def read(self, limit: int) -> bytes:
        return self.body[:limit]

    def chunks(self) -> Iterator[bytes]:
        yield self.body

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        pass


@dataclass
class TokenServer:
    """A transport that gives the same answer always."""

    answer: Canned
    asked: list[Request] = field(default_factory=list)

    def send(self, request: Request) -> Canned:
        self.asked.append(request)
        return self.answer

    def close(self) -> None:
        pass


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def token_answer(**fields: object) -> Canned:
    return Canned(body=json.dumps(fields).encode())


def test_challenges_of_a_header() -> None:
    found = parse_challenges([BEARER + ', Basic realm="x, y"', "Negotiate"])
    assert [c.scheme for c in found] == ["bearer", "basic", "negotiate"]
    assert found[0].params["scope"] == "repository:a:pull"
    assert found[1].params == {"realm": "x, y"}


def test_quoted_pairs_and_tokens() -> None:
    assert parse_challenges([r'Basic realm="a \"b\"", charset=UTF-8']) == [
        Challenge("basic", {"realm": 'a "b"', "charset": "UTF-8"})
    ]


@given(st.lists(st.text(max_size=200), max_size=4))
def test_any_header_is_read_without_harm(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()


def test_a_token_is_fetched_once_and_again_when_it_ends() -> None:
    clock, server = Clock(), TokenServer(token_answer(token="t1", expires_in=100))
    authorizer = Authorizer("h", True, server, clock=clock)
    assert authorizer.header(SCOPES) == ""
    authorizer.challenged([BEARER], SCOPES)
    assert [authorizer.header(SCOPES) for _ in range(3)] == ["Bearer t1"] * 3
    assert len(server.asked) == 1
    clock.now = 95
    authorizer.header(SCOPES)
    assert len(server.asked) == 2
    query = parse_qs(urlsplit(server.asked[0].url).query)
    assert query == {"service": ["reg"], "scope": ["repository:a:pull"]}


def test_tokens_are_kept_by_scope() -> None:
    server = TokenServer(token_answer(access_token="t"))
    authorizer = Authorizer("h", True, server)
    authorizer.challenged([BEARER], SCOPES)
    authorizer.header(SCOPES)
    authorizer.header(("repository:b:pull",))
    assert len(server.asked) == 2


def test_a_refused_token_is_asked_for_again() -> None:
    server = TokenServer(token_answer(token="t"))
    authorizer = Authorizer("h", True, server)
    for _ in range(2):
        authorizer.challenged([BEARER], SCOPES)
        authorizer.header(SCOPES)
    assert len(server.asked) == 2


def test_a_token_that_two_were_refused_with_is_replaced_once() -> None:
    server = TokenServer(token_answer(token="old"))
    authorizer = Authorizer("h", True, server)
    authorizer.challenged([BEARER], SCOPES)
    old = authorizer.header(SCOPES)
    server.answer = token_answer(token="new")
    for _ in range(2):
        authorizer.challenged([BEARER], SCOPES, old)
        assert authorizer.header(SCOPES) == "Bearer new"
    assert len(server.asked) == 2


def test_basic_only_with_credentials() -> None:
    server = TokenServer(Canned())
    with pytest.raises(Unauthenticated, match="no basic auth credentials"):
        Authorizer("h", True, server).challenged(["Basic realm=x"], SCOPES)
    known = Authorizer("h", True, server, lambda host: ALICE if host == "h" else None)
    known.challenged(["Basic realm=x"], SCOPES)
    assert b64decode(known.header(SCOPES).removeprefix("Basic ")) == b"alice:secret"


def test_no_way_in() -> None:
    with pytest.raises(Unauthenticated):
        Authorizer("h", True, TokenServer(Canned())).challenged(["Negotiate"], SCOPES)


def test_a_user_goes_as_basic_and_a_refresh_token_by_post() -> None:
    (with_user, _) = token_requests("https://a/token?x=1", "s", ["c"], ALICE)
    assert with_user.method == "GET"
    assert with_user.url == "https://a/token?x=1&service=s&scope=c"
    assert with_user.headers["Authorization"].startswith("Basic ")
    (refresh,) = token_requests("https://a/token", "s", ["c", "d"], Credentials("", "r"))
    assert refresh.method == "POST"
    assert isinstance(refresh.body, bytes)
    form = parse_qs(refresh.body.decode())
    assert form["grant_type"] == ["refresh_token"]
    assert form["refresh_token"] == ["r"]
    assert form["scope"] == ["c d"]


def test_the_token_server_refuses() -> None:
    authorizer = Authorizer("h", True, TokenServer(Canned(401)), lambda host: ALICE)
    authorizer.challenged([BEARER], SCOPES)
    with pytest.raises(Unauthenticated, match="failed to fetch oauth token"):
        authorizer.header(SCOPES)


def test_the_token_server_is_broken() -> None:
    authorizer = Authorizer("h", True, TokenServer(Canned(500)))
    authorizer.challenged([BEARER], SCOPES)
    with pytest.raises(Unavailable):
        authorizer.header(SCOPES)


@pytest.mark.parametrize("realm", ["file:///etc/passwd", "ftp://x/y", "//x", "", "http://x/token"])
def test_realms_that_a_secure_registry_may_not_name(realm: str) -> None:
    with pytest.raises(PermissionDenied):
        check_realm(realm, True)


def test_a_plain_registry_may_name_a_plain_realm() -> None:
    assert check_realm("http://x/token", False) == "http://x/token"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"{}", b'{"token": 1}', b'{"token": "a\\nX: y"}', b'{"token": ""}'],
)
def test_answers_without_a_token(body: bytes) -> None:
    with pytest.raises(Error):
        parse_token(body)


@given(
    st.binary(max_size=100)
    | st.dictionaries(st.text(), st.text()).map(lambda d: json.dumps(d).encode())
)
def test_any_answer_is_read_or_refused(body: bytes) -> None:
    try:
        granted = parse_token(body)
    except Error:
        return
    assert granted.token.isprintable()
    assert granted.life > 0


def test_a_secret_is_not_shown() -> None:
    assert "secret" not in repr(ALICE)


def test_a_password_by_post_where_get_is_not_known() -> None:
    @dataclass
    class OnlyPost(TokenServer):
        def send(self, request: Request) -> Canned:
            super().send(request)
            return Canned(405) if request.method == "GET" else self.answer

    server = OnlyPost(token_answer(access_token="t"))
    authorizer = Authorizer("h", True, server, lambda host: ALICE)
    authorizer.challenged([BEARER], SCOPES)
    assert authorizer.header(SCOPES) == "Bearer t"
    assert isinstance(server.asked[-1].body, bytes)
    form = parse_qs(server.asked[-1].body.decode())
    assert form["grant_type"] == ["password"]
    assert (form["username"], form["password"]) == (["alice"], ["secret"])


def test_a_refresh_token_that_is_renewed() -> None:
    clock = Clock()
    server = TokenServer(token_answer(access_token="t", refresh_token="r2", expires_in=100))
    authorizer = Authorizer("h", True, server, lambda host: Credentials("", "r1"), clock)
    authorizer.challenged([BEARER], SCOPES)
    for clock.now in (0.0, 200.0):
        authorizer.header(SCOPES)
    sent = [parse_qs(r.body.decode()) for r in server.asked if isinstance(r.body, bytes)]
    assert [form["refresh_token"] for form in sent] == [["r1"], ["r2"]]


def test_a_registry_token_is_used_as_it_is() -> None:
    server = TokenServer(Canned(500))
    authorizer = Authorizer("h", True, server, lambda host: Credentials(token="mine"))
    authorizer.challenged([BEARER], SCOPES)
    assert authorizer.header(SCOPES) == "Bearer mine"
    assert server.asked == []


def test_a_refresh_token_is_no_password() -> None:
    authorizer = Authorizer("h", True, TokenServer(Canned()), lambda host: Credentials("", "r"))
    with pytest.raises(Unauthenticated, match="no basic auth credentials"):
        authorizer.challenged(["Basic realm=x"], SCOPES)


def test_a_registry_token_that_would_write_headers() -> None:
    source = Credentials(token="a\r\nX: y")
    authorizer = Authorizer("h", True, TokenServer(Canned()), lambda host: source)
    authorizer.challenged([BEARER], SCOPES)
    with pytest.raises(Error):
        authorizer.header(SCOPES)
