"""Credentials: Docker's config.json, helpers, hosts.toml, and who is shown them."""

from __future__ import annotations

import json
import os
import threading
import time
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import (
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unauthenticated,
)
from kontti.registry import credentials
from kontti.registry.auth import Credentials, no_credentials
from kontti.registry.credentials import Auth, docker_config, either, only_for, source_of
from kontti.registry.hosts import Host, HostOptions, configured, parse_hosts
from kontti.registry.reference import Reference
from kontti.registry.resolver import Resolver
from kontti.registry.retry import Retries
from kontti.registry.session import Session
from tests.support.web import Answer, Asked, Behaviour, Repository, Web, serving

ALICE = Credentials("alice", "secret")
HUB = "https://index.docker.io/v1/"
DIGEST = "sha256:" + "0" * 64


def encoded(user: str = "alice", password: str = "secret") -> str:
    return b64encode(f"{user}:{password}".encode()).decode()


def config(tmp_path: Path, **fields: object) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    return str(path)


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A ``docker-credential-test`` on PATH."""
    program = tmp_path / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


# config.json


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("reg.example", "reg.example"),
        ("https://reg.example", "reg.example"),
        ("http://reg.example/", "reg.example"),
        ("https://reg.example/v1/", "reg.example"),
        ("https://reg.example/v2/", "reg.example"),
        ("reg.example:5000", "reg.example:5000"),
        (HUB, "docker.io"),
        ("docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
    ],
)
def test_names_in_config_json(tmp_path: Path, key: str, host: str) -> None:
    source = docker_config(config(tmp_path, auths={key: {"auth": encoded()}}))
    assert source(host) == ALICE
    assert source("other.example") is None


def test_a_repositorys_credentials_are_not_its_hosts(tmp_path: Path) -> None:
    source = docker_config(config(tmp_path, auths={"reg.example/team/a": {"auth": encoded()}}))
    assert source("reg.example") is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": encoded()}, ALICE),
        ({"auth": encoded(password="a:b:c")}, Credentials("alice", "a:b:c")),
        ({"auth": encoded(password="secret\0\0")}, ALICE),
        ({"username": "alice", "password": "secret"}, ALICE),
        ({"auth": encoded("", ""), "identitytoken": "idt"}, Credentials("", "idt")),
        ({"registrytoken": "rt"}, Credentials(token="rt")),
        ({}, None),
        ({"auth": ""}, None),
    ],
)
def test_entries(tmp_path: Path, entry: object, expected: Credentials | None) -> None:
    source = docker_config(config(tmp_path, auths={"reg.example": entry}))
    assert source("reg.example") == expected


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"auths": 1}', '{"auths": {"reg.example": 1}}', "[" * 100_000,
     '{"auths": {"reg.example": {"auth": "***"}}}', '{"auths": {"reg.example": {"auth": "YQ=="}}}',
     '{"credHelpers": [1]}'],
)  # fmt: skip
def test_a_config_that_is_wrong_is_named_and_its_secrets_are_not(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InvalidArgument):
        docker_config(str(path))("reg.example")


@given(st.binary(max_size=200))
def test_any_config_is_read_or_refused(data: bytes) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"kontti-config-{os.getpid()}.json"
    path.write_bytes(data)
    try:
        assert docker_config(str(path))("reg.example") is None
    except Error:
        pass
    finally:
        path.unlink()


def test_no_config_knows_no_one(tmp_path: Path) -> None:
    assert docker_config(str(tmp_path / "none"))("reg.example") is None
    with pytest.raises(NotFound):
        docker_config(str(tmp_path / "none"), required=True)("reg.example")


def test_where_the_config_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", "/etc/mine")
    assert credentials.docker_config_path() == "/etc/mine/config.json"
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setenv("HOME", "/home/a")
    assert credentials.docker_config_path() == "/home/a/.docker/config.json"


# helpers


def test_a_helper_is_asked_by_its_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = '{"ServerURL":"x","Username":"alice","Secret":"secret"}'
    helper(tmp_path, monkeypatch, f"echo \"$@\" > {tmp_path}/args; cat > {tmp_path}/asked\n"
           f"echo '{answer}'")  # fmt: skip
    source = docker_config(config(tmp_path, credHelpers={"reg.example": "test"}))
    assert source("reg.example") == ALICE
    assert (tmp_path / "args").read_text() == "get\n"
    assert (tmp_path / "asked").read_text() == "reg.example"
    (tmp_path / "asked").unlink()
    assert source("other.example") is None
    assert not (tmp_path / "asked").exists()
    assert docker_config(config(tmp_path, credsStore="test"))("docker.io") == ALICE
    assert (tmp_path / "asked").read_text() == HUB


def test_a_helper_gives_an_identity_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, """echo '{"Username":"<token>","Secret":"idt"}'""")
    assert credentials.helper_credentials("test", "x") == Credentials("", "idt")


def test_a_store_that_knows_nothing_leaves_it_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, "echo 'credentials not found in native keychain'; exit 1")
    auths = {"reg.example": {"auth": encoded()}}
    assert docker_config(config(tmp_path, credsStore="test", auths=auths))("reg.example") == ALICE
    assert docker_config(config(tmp_path, credsStore="test"))("reg.example") is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'locked keychain'; exit 1", "locked keychain"),
        ("exit 3", "3"),
        ("echo secret-but-no-json", "no JSON"),
        ("kill -9 $$", "-9"),
    ],
)
def test_a_helper_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    helper(tmp_path, monkeypatch, script)
    with pytest.raises(FailedPrecondition, match=words) as caught:
        credentials.helper_credentials("test", "x")
    assert "secret-but" not in str(caught.value)


def test_a_helper_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "HELPER_SECONDS", 0.3)
    helper(tmp_path, monkeypatch, "exec sleep 60")
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="docker-credential-test"):
        credentials.helper_credentials("test", "x")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("name", ["no-such-helper", "../../bin/sh", "a b", "-x", ""])
def test_helpers_that_are_none(name: str) -> None:
    with pytest.raises(NotFound):
        credentials.helper_credentials(name, "x")


# hosts.toml


def auth_of(text: str, directory: str = "/d") -> Auth | None:
    return parse_hosts(f'[host."https://m.example".auth]\n{text}', Host("https", "a"), directory)[
        0
    ].auth


def test_auth_in_hosts_toml() -> None:
    assert auth_of('username = "a"\npassword = "b"') == Auth("a", "b")
    assert auth_of('username = "a"\npassword_file = "p"') == Auth("a", password_file="/d/p")
    assert auth_of('identity_token = "t"') == Auth(identity_token="t")
    assert auth_of('config = "/c.json"') == Auth(config="/c.json")
    assert auth_of('helper = "ecr-login"') == Auth(helper="ecr-login")
    server = parse_hosts('[auth]\nhelper = "x"', Host("https", "a"))[-1]
    assert server.auth == Auth(helper="x")
    assert "b" not in repr(auth_of('username = "a"\npassword = "bbb"')).replace("Auth", "")


@pytest.mark.parametrize(
    "text",
    ['username = "a"', 'password = "a"', 'user = "a"', 'username = 1\npassword = "b"', "",
     'helper = "a"\nconfig = "b"', 'helper = ""'],
)  # fmt: skip
def test_auth_that_is_wrong(text: str) -> None:
    with pytest.raises(InvalidArgument, match="auth"):
        auth_of(text)


def test_files_are_read_each_time(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("one\n")
    source = source_of(Auth("alice", password_file=str(tmp_path / "p")))
    assert source("x") == Credentials("alice", "one")
    (tmp_path / "p").write_text("two")
    assert source("x") == Credentials("alice", "two")
    (tmp_path / "p").unlink()
    with pytest.raises(NotFound):
        source("x")


def test_the_first_that_knows() -> None:
    assert either(no_credentials, only_for("a", ALICE))("a") == ALICE
    assert only_for("a", ALICE)("b") is None


# who is shown what


def guarded(web_repository: Repository, wanted: list[str]) -> Behaviour:
    """A registry that takes the passwords in ``wanted``, by Basic."""

    def behave(asked: Asked) -> Answer:
        given = asked.headers.get("authorization", "").removeprefix("Basic ")
        if given not in [encoded(password=p) for p in wanted]:
            return Answer(401, {"WWW-Authenticate": "Basic realm=x"})
        return web_repository(asked)

    return behave


def resolve(session: Session, name: str) -> str:
    return Resolver(session).resolve(Reference.parse(name))[1].digest


REPOSITORY = Repository({DIGEST: b"{}"}, {"latest": DIGEST})
QUICK = Retries(2, 0.01)


def test_a_mirrors_own_credentials(tmp_path: Path) -> None:
    with serving(guarded(REPOSITORY, ["secret"])) as mirror:
        place = tmp_path / "a.example"
        place.mkdir()
        (place / "hosts.toml").write_text(
            f'[host."{mirror.url}"]\n[host."{mirror.url}".auth]\n'
            'username = "alice"\npassword = "secret"\n'
        )
        with Session(configured(HostOptions(directories=(str(tmp_path),)))) as session:
            assert resolve(session, "a.example/x:latest") == DIGEST


def test_a_registrys_credentials_are_not_shown_to_its_mirror() -> None:
    with (
        serving(guarded(REPOSITORY, [])) as mirror,
        serving(guarded(REPOSITORY, ["secret"])) as web,
    ):
        hosts = [Host("http", mirror.host), Host("http", web.host)]
        with Session(lambda registry: hosts, only_for(web.host, ALICE)) as session:
            assert resolve(session, f"{web.host}/x:latest") == DIGEST
        assert all("authorization" not in asked.headers for asked in mirror.asked)


def test_a_server_by_another_name_is_the_registry() -> None:
    with serving(guarded(REPOSITORY, ["secret"])) as web:
        hosts = parse_hosts(f'server = "{web.url}"', Host("https", "a.example"))
        with Session(lambda registry: hosts, only_for("a.example", ALICE)) as session:
            assert resolve(session, "a.example/x:latest") == DIGEST


def test_a_password_that_changes_on_disk_is_taken_up_in_the_middle(tmp_path: Path) -> None:
    taken = ["one"]
    (tmp_path / "p").write_text("one")
    with serving(guarded(REPOSITORY, taken)) as web:
        auth = Auth("alice", password_file=str(tmp_path / "p"))
        hosts = [Host("http", web.host, auth=auth)]
        with Session(lambda registry: hosts, retries=QUICK) as session:
            assert resolve(session, "a.example/x:latest") == DIGEST
            taken[:] = ["two"]
            with pytest.raises(Unauthenticated):
                resolve(session, "a.example/x:latest")
            (tmp_path / "p").write_text("two")
            assert resolve(session, "a.example/x:latest") == DIGEST


def test_hosts_toml_that_changes_is_taken_up(tmp_path: Path) -> None:
    with serving(REPOSITORY) as one, serving(REPOSITORY) as two:
        place = tmp_path / "a.example"
        place.mkdir()
        with Session(configured(HostOptions(directories=(str(tmp_path),)))) as session:
            for web in (one, two):
                (place / "hosts.toml").write_text(f'[host."{web.url}"]\n')
                assert resolve(session, "a.example/x:latest") == DIGEST
        assert len(one.asked) == len(two.asked) == 1


def test_a_helper_is_not_run_for_every_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, f"echo x >> {tmp_path}/runs\n"
           """echo '{"Username":"alice","Secret":"secret"}'""")  # fmt: skip
    with serving(guarded(REPOSITORY, ["secret"])) as web:
        hosts = [Host("http", web.host, auth=Auth(helper="test"))]
        with Session(lambda registry: hosts) as session:
            for _ in range(5):
                resolve(session, "a.example/x:latest")
    assert (tmp_path / "runs").read_text() == "x\n"


def token_registry(web_of: list[Web], *, tokens: list[str]) -> Behaviour:
    """A registry whose tokens are counted and may end; asks its own /token for them."""
    lock = threading.Lock()

    def behave(asked: Asked) -> Answer:
        (web,) = web_of
        if asked.path == "/token":
            with lock:
                tokens.append(f"t{len(tokens)}")
                return Answer(200, {}, json.dumps({"token": tokens[-1]}).encode())
        if asked.headers.get("authorization") != f"Bearer {tokens[-1] if tokens else ''}":
            header = f'Bearer realm="{web.url}/token",service="s"'
            return Answer(401, {"WWW-Authenticate": header})
        return REPOSITORY(asked)

    return behave


def test_a_token_that_ends_in_the_middle_is_replaced() -> None:
    web_of: list[Web] = []
    tokens: list[str] = []
    with serving(token_registry(web_of, tokens=tokens)) as web:
        web_of.append(web)
        hosts = [Host("http", web.host)]
        with Session(lambda registry: hosts) as session:
            assert resolve(session, "a.example/x:latest") == DIGEST
            tokens.append("another")
            assert resolve(session, "a.example/x:latest") == DIGEST
    assert len([a for a in web.asked if a.path == "/token"]) == 2


def test_a_token_server_that_fails_now_and_then_is_asked_again() -> None:
    web_of: list[Web] = []
    behave, failures = token_registry(web_of, tokens=[]), iter([503, 429, 500])

    def flaky(asked: Asked) -> Answer:
        if asked.path == "/token" and (status := next(failures, 0)):
            return Answer(status)
        return behave(asked)

    with serving(flaky) as web:
        web_of.append(web)
        hosts = [Host("http", web.host)]
        with Session(lambda registry: hosts, sleep=lambda seconds: None) as session:
            assert resolve(session, "a.example/x:latest") == DIGEST


def test_a_token_server_that_redirects_gets_nothing_more() -> None:
    with serving(lambda asked: Answer(200, {}, b'{"token":"t"}')) as thief:

        def behave(asked: Asked) -> Answer:
            if asked.path == "/token":
                return Answer(307, {"Location": f"{thief.url}/token"})
            return Answer(401, {"WWW-Authenticate": f'Bearer realm="{web.url}/token"'})

        with serving(behave) as web:
            hosts = [Host("http", web.host)]
            with (
                Session(lambda registry: hosts, lambda host: ALICE) as session,
                pytest.raises(Error),
            ):
                resolve(session, "a.example/x:latest")
        assert thief.asked == []
