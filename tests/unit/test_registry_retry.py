"""When and how often something is asked again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import Error, FailedPrecondition, ResourceExhausted
from kontti.registry.hosts import Host
from kontti.registry.http import Request, Response, Tls, asked_to_wait
from kontti.registry.reference import Reference
from kontti.registry.resolver import Resolver
from kontti.registry.retry import Retries
from kontti.registry.session import Session
from kontti.registry.trace import Traced
from kontti.values import Digest
from tests.support.web import Answer, serving
from tests.unit.test_registry_auth import Canned

DIGEST = Digest("sha256:" + "0" * 64)


def test_pauses_double_and_none_is_like_another() -> None:
    for _ in range(50):
        pauses = list(Retries(8, 0.5, 10.0, jitter=0.5).pauses())
        assert len(pauses) == 7
        for number, pause in enumerate(pauses):
            assert min(0.5 * 2**number, 10.0) <= pause <= min(0.75 * 2**number, 10.0)
    assert len({next(iter(Retries().pauses())) for _ in range(50)}) > 1


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert asked_to_wait("120") == 120
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 < (asked_to_wait(later) or 0) <= 100
    assert asked_to_wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert asked_to_wait("9" * 5000) == 999_999_999
    assert asked_to_wait("soon") is None
    assert asked_to_wait("") is None


@given(st.text(max_size=200))
def test_any_retry_after_is_read(text: str) -> None:
    seconds = asked_to_wait(text)
    assert seconds is None or seconds >= 0


def test_how_long_to_wait_is_told() -> None:
    with serving(lambda asked: Answer(429, {"Retry-After": "3600"})) as web:
        hosts = [Host("http", web.host)]
        with (
            Session(lambda registry: hosts) as session,
            pytest.raises(ResourceExhausted, match="429 Too Many Requests: retry after 3600 s"),
        ):
            Resolver(session).resolve(Reference.parse("a.example/x:1"))


class Elsewhere:
    """A transport over which every request ends up at another URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def send(self, request: Request) -> Response:
        headers = {"docker-content-digest": DIGEST, "content-length": "2"}
        return Canned(200, b"{}", self.url, headers)

    def close(self) -> None:
        pass


def ask(url: str, object_: str) -> None:
    def transports(tls: Tls, seconds: float) -> Elsewhere:
        return Elsewhere(url)

    host = Host("https", "a.example")
    with Session(lambda registry: [host], transports=transports) as session:
        Resolver(session).resolve(Reference.parse(f"a.example/x{object_}"))


def test_a_tag_is_not_taken_from_a_wire_that_anyone_can_write_on() -> None:
    with pytest.raises(FailedPrecondition, match="redirected to plain HTTP"):
        ask("http://b.example/x", ":1")
    ask("https://b.example/x", ":1")
    ask("http://b.example/x", f"@{DIGEST}")


def test_what_is_told_of_an_exchange_holds_no_secret() -> None:
    told: list[str] = []
    traced = Traced(Elsewhere("https://a"), told.append, headers=True)
    headers = {"Authorization": "Bearer abc", "X-Other": "a\x1b[31mb", "Cookie": "abc"}
    traced.send(Request("GET", "https://a/", headers))
    text = "\n".join(told)
    assert "> Authorization: Bearer <hidden>" in text
    assert "> Cookie: <hidden>" in text
    assert "abc" not in text
    assert "\x1b" not in text
    assert "GET https://a/: 200" in text


def test_a_failure_is_told() -> None:
    class Broken(Elsewhere):
        def send(self, request: Request) -> Response:
            raise Error("broken")

    told: list[str] = []
    with pytest.raises(Error):
        Traced(Broken(""), told.append).send(Request("GET", "https://a/"))
    assert told[0].startswith("GET https://a/: broken")
