"""The environment's proxies."""

from __future__ import annotations

from base64 import b64encode

import pytest

from kontti.errors import InvalidArgument
from kontti.registry.http import Request
from kontti.registry.pool import Pool
from kontti.registry.proxies import bypassed, proxy_for
from tests.support.web import Answer, serving

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "REQUEST_METHOD")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("host", "rules", "expected"),
    [
        ("a.org", "a.org", True),
        ("b.a.org", "a.org", True),
        ("ba.org", "a.org", False),
        ("a.org", ".a.org", False),
        ("b.a.org", ".a.org", True),
        ("b.a.org", "*.a.org", True),
        ("A.org", "x.org, a.ORG", True),
        ("a.org", "*", True),
        ("a.org", "a.org:443", True),
        ("a.org", "a.org:8443", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "fd00::/8", False),
        ("fd00::1", "fd00::/8", True),
        ("fd00::1", "[fd00::1]:443", True),
        ("10.1.2.3", "nonsense/99", False),
        ("a.org", "", False),
        ("a.org", ",", False),
    ],
)
def test_who_goes_without_a_proxy(host: str, rules: str, expected: bool) -> None:
    assert bypassed(host, 443, rules) is expected


def test_which_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example,10.0.0.0/8")
    assert proxy_for("https://a.org/v2/") == "http://proxy.example:3128"
    assert proxy_for("http://a.org/v2/") == ""
    assert proxy_for("https://r.inside.example/v2/") == ""
    assert proxy_for("https://10.2.3.4:5000/v2/") == ""
    assert proxy_for("https://localhost:5000/v2/") == ""
    assert proxy_for("https://127.0.0.1:5000/v2/") == ""


def test_a_proxy_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example")
    with pytest.raises(InvalidArgument, match="unsupported proxy 'socks5'"):
        proxy_for("https://a.org/v2/")


def test_a_request_goes_through_the_proxy_with_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(lambda asked: Answer(200, {}, b"by proxy")) as proxy:
        monkeypatch.setenv("http_proxy", f"http://us%20er:pass@{proxy.host}")
        transport = Pool()
        with transport.send(Request("GET", "http://registry.example/v2/")) as response:
            assert response.read(100) == b"by proxy"
        transport.close()
    (asked,) = proxy.asked
    assert asked.target == "http://registry.example/v2/"
    secret = b64encode(b"us er:pass").decode()
    assert asked.headers["proxy-authorization"] == f"Basic {secret}"
