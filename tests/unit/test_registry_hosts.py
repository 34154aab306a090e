"""Hosts of a registry: defaults and certs.d."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontti.errors import InvalidArgument, NotFound
from kontti.registry.hosts import (
    ALL,
    Capability,
    Host,
    HostOptions,
    configured,
    default_host,
    find_directory,
    parse_hosts,
)
from kontti.registry.http import Tls

DEFAULT = Host("https", "example.org")


def test_docker_io_is_another_host() -> None:
    assert default_host("docker.io").url == "https://registry-1.docker.io/v2"


@pytest.mark.parametrize(
    ("registry", "options", "scheme"),
    [
        ("example.org", HostOptions(), "https"),
        ("example.org", HostOptions(plain_http=True), "http"),
        ("127.0.0.1:5000", HostOptions(), "https"),
        ("127.0.0.1:5000", HostOptions(loopback_http=True), "http"),
        ("[::1]:5000", HostOptions(loopback_http=True), "http"),
        ("localhost", HostOptions(loopback_http=True), "https"),
        ("localhost:443", HostOptions(loopback_http=True), "https"),
        ("example.org:5000", HostOptions(loopback_http=True), "https"),
    ],
)
def test_plain_http_is_for_who_asks(registry: str, options: HostOptions, scheme: str) -> None:
    assert default_host(registry, options).scheme == scheme


def test_mirrors_in_order_then_the_server() -> None:
    text = """
    server = "https://example.org"
    [host."https://b.example.org"]
      capabilities = ["pull", "resolve"]
      ca = ["ca.pem", "/etc/other.pem"]
      client = [["c.cert", "c.key"], "both.pem"]
      dial_timeout = "1m2.5s"
      [host."https://b.example.org".header]
        x-one = "1"
        x-two = ["a", "b"]
    [host."http://a.example.org:8080/root/v2"]
      override_path = true
      skip_verify = true
    """
    first, second, server = parse_hosts(text, DEFAULT, "/etc/certs.d/example.org")
    assert first.url == "https://b.example.org/v2"
    assert first.capabilities == {Capability.PULL, Capability.RESOLVE}
    assert first.tls.ca == ("/etc/certs.d/example.org/ca.pem", "/etc/other.pem")
    assert first.tls.client[0] == (
        "/etc/certs.d/example.org/c.cert",
        "/etc/certs.d/example.org/c.key",
    )
    assert first.tls.client[1] == ("/etc/certs.d/example.org/both.pem", "")
    assert first.headers == (("x-one", "1"), ("x-two", "a, b"))
    assert first.dial_timeout == 62.5
    assert second.url == "http://a.example.org:8080/root/v2"
    assert second.tls.skip_verify
    assert second.capabilities == ALL
    assert server.url == "https://example.org/v2"
    assert server.capabilities == ALL


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ('server = "https://other.org/x"', "https://other.org/x/v2"),
        ('server = "other.org"', "https://other.org/v2"),
        ('server = "https://docker.io"', "https://registry-1.docker.io/v2"),
        ('server = "https://other.org/x"\noverride_path = true', "https://other.org/x"),
        ("", "https://example.org/v2"),
    ],
)
def test_the_server(said: str, url: str) -> None:
    assert parse_hosts(said, DEFAULT)[-1].url == url


@pytest.mark.parametrize(
    "text",
    [
        "server = 1",
        "=",
        'server = "ftp://x"',
        'server = "https://user:secret@x"',
        "host = 1",
        '[host."https://a"]\ncapabilities = ["dance"]',
        '[host."https://a"]\nca = 1',
        '[host."https://a"]\nclient = [1]',
        '[host."https://a"]\nskip_verify = "yes"',
        '[host."https://a"]\nheader = "x"',
        '[host."https://a"]\ndial_timeout = "soon"',
        '[host."https://[a"]',
    ],
)
def test_files_that_are_wrong(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_hosts(text, DEFAULT)


def test_the_defaults_secrets_are_not_for_mirrors() -> None:
    default = Host("https", "example.org", headers=(("x-secret", "1"),))
    mirror, server = parse_hosts('[host."https://mirror.org"]', default)
    assert mirror.headers == ()
    assert server.headers == default.headers


@pytest.mark.parametrize("name", ["example.org:5000", "example.org_5000_", "_default"])
def test_directories(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "hosts.toml").write_text('[host."https://mirror.org"]\n')
    hosts = configured(HostOptions(directories=(str(tmp_path),)))
    assert [h.host for h in hosts("example.org:5000")] == ["mirror.org", "example.org:5000"]


def test_which_directory_comes_first(tmp_path: Path) -> None:
    roots = (str(tmp_path / "one"), str(tmp_path / "two"))
    for place in ("two/a.org:1", "one/_default", "one/a.org:1", "one/a.org_1_"):
        (tmp_path / place).mkdir(parents=True)
        assert find_directory(roots, "a.org:1") == str(tmp_path / place)
    assert find_directory(roots, "b.org") == str(tmp_path / "one/_default")


def test_a_server_keeps_the_registrys_name_for_credentials() -> None:
    assert default_host("docker.io").known_as == "docker.io"
    assert parse_hosts('server = "https://other.org"', DEFAULT)[-1].known_as == "example.org"
    mirror, server = parse_hosts('[host."https://mirror.org"]', DEFAULT)
    assert (mirror.known_as, server.known_as) == ("mirror.org", "example.org")


def test_certificates_mean_tls_on_loopback_as_well() -> None:
    options = HostOptions(loopback_http=True, tls=Tls(ca=("ca.pem",)))
    assert default_host("127.0.0.1:5000", options).scheme == "https"


def test_an_empty_file_configures_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.org").mkdir()
    (tmp_path / "a.org" / "hosts.toml").write_text("")
    options = HostOptions(directories=(str(tmp_path),))
    assert configured(options)("a.org") == (Host("https", "a.org"),)


def test_a_file_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.org").mkdir()
    (tmp_path / "a.org" / "hosts.toml").symlink_to("/dev/zero")
    with pytest.raises(InvalidArgument, match="larger than"):
        configured(HostOptions(directories=(str(tmp_path),)))("a.org")


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.org").mkdir()
    (tmp_path / "a.org" / "hosts.toml").write_text("x")
    with pytest.raises(InvalidArgument, match=r"a\.org/hosts\.toml"):
        configured(HostOptions(directories=(str(tmp_path),)))("a.org")


def test_dockers_certificates(tmp_path: Path) -> None:
    place = tmp_path / "a.org"
    place.mkdir()
    for name in ("ca.crt", "me.cert", "me.key"):
        (place / name).write_text("")
    (host,) = configured(HostOptions(directories=(str(tmp_path),)))("a.org")
    assert host.tls.ca == (str(place / "ca.crt"),)
    assert host.tls.client == ((str(place / "me.cert"), str(place / "me.key")),)
    (place / "me.key").unlink()
    with pytest.raises(NotFound, match=r"me\.key"):
        configured(HostOptions(directories=(str(tmp_path),)))("a.org")


def test_nothing_configured() -> None:
    (host,) = configured()("example.org")
    assert host == Host("https", "example.org")
