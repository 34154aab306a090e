"""Resolving, fetching and pushing against a server that misbehaves."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import closing

import pytest
from urllib3 import exceptions as failures

from kontti import errors
from kontti.errors import (
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from kontti.registry.auth import Credentials
from kontti.registry.fetcher import Pace, paced
from kontti.registry.hosts import Host, HostOptions, configured
from kontti.registry.http import Request, redirected
from kontti.registry.pool import FAILURES, Pool, mapping_of
from kontti.registry.pusher import Pusher
from kontti.registry.reference import Reference
from kontti.registry.resolver import MAX_MANIFEST, Resolver
from kontti.registry.retry import Retries
from kontti.registry.session import Session
from kontti.values import Descriptor, Digest
from tests.support.web import Answer, Asked, Repository, Web, serving

MANIFEST = b'{"schemaVersion":2}'
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
BLOB = bytes(range(256)) * 4096


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def descriptor(data: bytes, media_type: str = LAYER) -> Descriptor:
    return Descriptor(media_type, digest_of(data), len(data))


def repository(*blobs: bytes) -> Repository:
    return Repository(
        {digest_of(b): b for b in (MANIFEST, *blobs)},
        {"latest": digest_of(MANIFEST)},
        {digest_of(MANIFEST): MANIFEST_TYPE},
    )


class Slept(list[float]):
    """Pauses that were asked for, not taken."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def session(slept: Slept | None = None, credentials: Credentials | None = None) -> Session:
    hosts = configured(HostOptions(plain_http=True))
    pauses = slept if slept is not None else Slept()
    return Session(hosts, lambda host: credentials, Retries(4, 0.25, 15.0, jitter=0.0), pauses)


def reference(web: Web, object_: str = "latest") -> Reference:
    joint = "" if object_.startswith("@") else ":"
    return Reference.parse(f"{web.host}/a/b{joint}{object_}")


def fetch(web: Web, wanted: Descriptor, offset: int = 0) -> bytes:
    with session() as open_session:
        fetcher = Resolver(open_session).fetcher(reference(web))
        with closing(fetcher.fetch(wanted, offset)) as chunks:
            return b"".join(chunks)


def resolve(web: Web, object_: str = "latest") -> Descriptor:
    with session() as open_session:
        name, found = Resolver(open_session).resolve(reference(web, object_))
        assert name == str(reference(web, object_))
        return found


# resolving


def test_a_tag_is_resolved_by_head() -> None:
    with serving(repository()) as web:
        assert resolve(web) == descriptor(MANIFEST, MANIFEST_TYPE)
        assert web.paths() == ["HEAD /v2/a/b/manifests/latest"]
        assert MANIFEST_TYPE in web.asked[0].headers["accept"]


def test_a_digest_may_be_a_blobs() -> None:
    def only_blobs(asked: Asked) -> Answer:
        return Answer(404) if "/manifests/" in asked.path else repository(BLOB)(asked)

    with serving(only_blobs) as web:
        assert resolve(web, f"@{digest_of(BLOB)}").size == len(BLOB)


@pytest.mark.parametrize("status", [405, 501])
def test_get_where_head_is_not_known(status: int) -> None:
    def no_head(asked: Asked) -> Answer:
        return Answer(status) if asked.method == "HEAD" else repository()(asked)

    with serving(no_head) as web:
        assert resolve(web) == descriptor(MANIFEST, MANIFEST_TYPE)


def test_a_registry_that_fails_on_what_is_no_manifest() -> None:
    def only_blobs(asked: Asked) -> Answer:
        return Answer(500) if "/manifests/" in asked.path else repository(BLOB)(asked)

    with serving(only_blobs) as web:
        assert resolve(web, f"@{digest_of(BLOB)}").size == len(BLOB)
        with pytest.raises(Unavailable, match="500"):
            resolve(web, f"@{digest_of(b'nowhere')}")


def test_get_where_headers_say_too_little() -> None:
    with serving(lambda asked: Answer(200, {"Content-Type": MANIFEST_TYPE}, MANIFEST)) as web:
        assert resolve(web) == descriptor(MANIFEST, MANIFEST_TYPE)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_another_digest_than_asked_for(method: str) -> None:
    def lies(asked: Asked) -> Answer:
        if method == "GET":
            return Answer(200, {}, b"something else", -1 if asked.method == "HEAD" else None)
        return Answer(200, {"Docker-Content-Digest": digest_of(b"other")}, MANIFEST)

    with serving(lies) as web, pytest.raises(FailedPrecondition, match="unexpected digest"):
        resolve(web, f"@{digest_of(MANIFEST)}")


def test_a_digest_header_that_is_none() -> None:
    with (
        serving(lambda asked: Answer(200, {"Docker-Content-Digest": "sha256:../x"})) as web,
        pytest.raises(InvalidArgument),
    ):
        resolve(web)


def test_a_manifest_that_is_too_big() -> None:
    def big(asked: Asked) -> Answer:
        headers = {"Docker-Content-Digest": digest_of(MANIFEST), "Content-Type": MANIFEST_TYPE}
        return Answer(200, headers, b"", MAX_MANIFEST + 1)

    with serving(big) as web, pytest.raises(ResourceExhausted):
        resolve(web)


def test_an_endless_manifest() -> None:
    def endless(asked: Asked) -> Answer:
        return Answer(200, {}, b"" if asked.method == "HEAD" else b"x" * (MAX_MANIFEST + 1), -1)

    with serving(endless) as web, pytest.raises(ResourceExhausted):
        resolve(web)


def test_not_there_in_containerds_words() -> None:
    with serving(lambda asked: Answer(404)) as web, pytest.raises(NotFound) as caught:
        resolve(web)
    name = f"{web.host}/a/b:latest"
    assert str(caught.value) == f'failed to resolve reference "{name}": {name}: not found'


def test_an_object_is_required() -> None:
    with session() as open_session, pytest.raises(InvalidArgument, match="object required"):
        Resolver(open_session).resolve(Reference.parse("example.org/a"))


def test_a_teapot() -> None:
    with serving(lambda asked: Answer(418)) as web, pytest.raises(Error) as caught:
        resolve(web)
    assert type(caught.value) is Error
    url = f"{web.url}/v2/a/b/manifests/latest"
    assert f"unexpected status from HEAD request to {url}: 418 I'm a Teapot" in str(caught.value)


def test_nothing_listens() -> None:
    with serving(repository()) as web:
        gone = reference(web)
    slept = Slept()
    with session(slept) as open_session, pytest.raises(Unavailable, match="dial tcp") as caught:
        Resolver(open_session).resolve(gone)
    assert "HTTPConnection" not in str(caught.value)
    assert slept == [0.25, 0.5, 1.0]


# retries, authorization and redirects


def test_errors_for_ever_are_asked_a_few_times() -> None:
    slept = Slept()
    with serving(lambda asked: Answer(503)) as web, session(slept) as open_session:
        with pytest.raises(Unavailable):
            Resolver(open_session).resolve(reference(web))
        assert len(web.asked) == 4
    assert slept == [0.25, 0.5, 1.0]


def test_an_error_that_passes() -> None:
    answers = iter([Answer(429, {"Retry-After": "7"}), Answer(500)])

    with serving(lambda asked: next(answers, None) or repository()(asked)) as web:
        slept = Slept()
        with session(slept) as open_session:
            Resolver(open_session).resolve(reference(web))
    assert slept == [7.0, 0.5]


def test_a_server_that_wants_us_to_wait_for_a_day() -> None:
    slept = Slept()
    with serving(lambda asked: Answer(429, {"Retry-After": "86400"})) as web:
        with session(slept) as open_session, pytest.raises(ResourceExhausted):
            Resolver(open_session).resolve(reference(web))
        assert len(web.asked) == 1
    assert slept == []


def test_401_for_ever() -> None:
    behaviour = Answer(401, {"WWW-Authenticate": "Basic realm=x"})
    credentials = Credentials("a", "b")
    with serving(lambda asked: behaviour) as web, session(None, credentials) as open_session:
        with pytest.raises(Unauthenticated, match="authorization failed"):
            Resolver(open_session).resolve(reference(web))
        assert len(web.asked) <= 4


def test_tokens_for_ever() -> None:
    def never_enough(asked: Asked) -> Answer:
        if asked.path == "/token":
            return Answer(200, {}, b'{"token":"t"}')
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="{web.url}/token"'})

    with serving(never_enough) as web:
        with pytest.raises(Unauthenticated):
            resolve(web)
        assert len(web.asked) <= 8


def test_a_token_is_used() -> None:
    def guarded(asked: Asked) -> Answer:
        if asked.path == "/token":
            assert asked.query["scope"] == ["repository:a/b:pull"]
            return Answer(200, {}, b'{"token":"t"}')
        if asked.headers.get("authorization") != "Bearer t":
            header = f'Bearer realm="{web.url}/token",service="s",scope="repository:a/b:pull"'
            return Answer(401, {"WWW-Authenticate": header})
        return repository(BLOB)(asked)

    with serving(guarded) as web, session() as open_session:
        resolver = Resolver(open_session)
        resolver.resolve(reference(web))
        assert b"".join(resolver.fetcher(reference(web)).fetch(descriptor(BLOB))) == BLOB
        assert web.paths().count("GET /token") == 1


def test_a_redirect_loop() -> None:
    with (
        serving(lambda asked: Answer(307, {"Location": asked.path})) as web,
        pytest.raises(Error, match="stopped after 10 redirects"),
    ):
        resolve(web)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://x/", "http:///", "http://[x"])
def test_redirects_that_are_not_followed(location: str) -> None:
    with serving(lambda asked: Answer(307, {"Location": location})) as web, pytest.raises(Error):
        resolve(web)


def test_authorization_stays_with_its_host() -> None:
    with serving(repository(BLOB)) as storage:

        def redirects(asked: Asked) -> Answer:
            if "authorization" not in asked.headers:
                return Answer(401, {"WWW-Authenticate": "Basic realm=x"})
            return Answer(307, {"Location": storage.url + asked.path})

        with serving(redirects) as web, session(credentials=Credentials("a", "b")) as open_session:
            fetcher = Resolver(open_session).fetcher(reference(web))
            assert b"".join(fetcher.fetch(descriptor(BLOB))) == BLOB
        assert len(storage.asked) == 1
        assert "authorization" not in storage.asked[0].headers


def test_another_host_gets_no_configured_headers() -> None:
    request = Request("GET", "https://a/x", {"X-Key": "1", "Range": "bytes=1-"})
    assert redirected(request, 307, "https://b/y").headers == {"Range": "bytes=1-"}
    assert redirected(request, 307, "/y").headers == request.headers
    assert redirected(request, 307, "https://a:443/y").headers == request.headers
    assert redirected(request, 307, "https://a:444/y").headers == {"Range": "bytes=1-"}


def test_every_failure_of_the_http_library_is_mapped() -> None:
    kinds = [k for k in vars(failures).values() if isinstance(k, type)]
    for kind in kinds:
        if issubclass(kind, failures.HTTPError):
            assert issubclass(mapping_of(kind)[0], Error)
    assert FAILURES[-1][0] is failures.HTTPError


# mirrors


def mirrored(*hosts: Host) -> Session:
    return Session(lambda registry: hosts, sleep=Slept())


def plain(web: Web) -> Host:
    return Host("http", web.host)


def test_the_next_host_where_one_has_nothing() -> None:
    with serving(lambda asked: Answer(404)) as empty, serving(repository(BLOB)) as full:
        with mirrored(plain(empty), plain(full)) as open_session:
            resolver = Resolver(open_session)
            name = Reference.parse("example.org/a/b:latest")
            assert resolver.resolve(name)[1].digest == digest_of(MANIFEST)
            assert b"".join(resolver.fetcher(name).fetch(descriptor(BLOB))) == BLOB
        assert all(a.query["ns"] == ["example.org"] for a in empty.asked)


def test_a_mirror_that_dies_halfway_is_left_for_the_next() -> None:
    def half(asked: Asked) -> Answer:
        return Answer(200, {}, BLOB[: len(BLOB) // 2], len(BLOB))

    with serving(half) as broken, serving(repository(BLOB)) as whole:
        with mirrored(plain(broken), plain(whole)) as open_session:
            fetcher = Resolver(open_session).fetcher(Reference.parse("example.org/a/b:latest"))
            assert b"".join(fetcher.fetch(descriptor(BLOB))) == BLOB
        assert whole.asked[0].headers["range"] == f"bytes={len(BLOB) // 2}-"


def test_no_host_may_be_asked() -> None:
    host = Host("http", "127.0.0.1:1", capabilities=frozenset())
    with mirrored(host) as open_session, pytest.raises(NotFound):
        Resolver(open_session).resolve(Reference.parse("example.org/a/b:latest"))


# bodies


def test_a_range() -> None:
    with serving(repository(BLOB)) as web:
        assert fetch(web, descriptor(BLOB), 1000) == BLOB[1000:]
        assert web.asked[0].headers["range"] == "bytes=1000-"


def test_a_server_without_ranges() -> None:
    with serving(lambda asked: Answer(200, {}, BLOB)) as web:
        assert fetch(web, descriptor(BLOB), 1000) == BLOB[1000:]


def test_a_server_with_another_range() -> None:
    answer = Answer(206, {"Content-Range": "bytes 2000-3000/9999"}, BLOB)
    with serving(lambda asked: answer) as web, pytest.raises(OutOfRange):
        fetch(web, descriptor(BLOB), 1000)


def test_a_body_that_is_too_long() -> None:
    with (
        serving(lambda asked: Answer(200, {}, BLOB + b"x")) as web,
        pytest.raises(FailedPrecondition, match="longer than"),
    ):
        fetch(web, descriptor(BLOB))


@pytest.mark.parametrize("length", [len(BLOB), 10, -1])
def test_a_body_that_is_too_short(length: int) -> None:
    with serving(lambda asked: Answer(200, {}, BLOB[:10], length)) as web:
        with pytest.raises(Error, match=r"EOF|IncompleteRead|another range|shorter"):
            fetch(web, descriptor(BLOB))
        assert len(web.asked) <= 5


def test_a_connection_that_breaks_is_resumed() -> None:
    def dribbles(asked: Asked) -> Answer:
        answer = repository(BLOB)(asked)
        part = answer.body[:300_000]
        return Answer(answer.status, answer.headers, part, len(answer.body))

    with serving(dribbles) as web:
        assert fetch(web, descriptor(BLOB)) == BLOB
        assert len(web.asked) == 4


def test_one_byte_at_a_time_is_given_up_on() -> None:
    def drips(asked: Asked) -> Answer:
        answer = repository(BLOB)(asked)
        return Answer(answer.status, answer.headers, answer.body[:1], len(answer.body))

    with serving(drips) as web:
        with pytest.raises(Unavailable):
            fetch(web, descriptor(BLOB))
        assert len(web.asked) == 3


def test_a_slow_body_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 100_000, 25))
    monkeypatch.setattr("kontti.registry.fetcher.time.monotonic", lambda: next(now))

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x"

    with pytest.raises(errors.DeadlineExceeded):
        list(paced(endless(), Pace(4096, 60.0), "http://x"))


def test_nothing_is_asked_for_an_empty_blob() -> None:
    with serving(repository()) as web:
        assert fetch(web, descriptor(b"")) == b""
        assert web.asked == []


def test_foreign_layers_come_from_their_urls() -> None:
    with serving(repository(BLOB)) as elsewhere, serving(repository()) as web:
        kind = "application/vnd.oci.image.layer.nondistributable.v1.tar"
        urls = ("file:///etc/passwd", f"{elsewhere.url}/x/{digest_of(BLOB)}")
        assert fetch(web, Descriptor(kind, digest_of(BLOB), len(BLOB), urls=urls)) == BLOB
        assert web.asked == []
        ordinary = Descriptor(LAYER, digest_of(BLOB), len(BLOB), urls=urls)
        with pytest.raises(NotFound):
            fetch(web, ordinary)


def test_what_the_registry_said_is_told() -> None:
    body = json.dumps({"errors": [{"code": "DENIED", "message": "too\nmany"}]}).encode()
    with (
        serving(lambda asked: Answer(403, {}, body)) as web,
        pytest.raises(errors.PermissionDenied, match="DENIED: toomany"),
    ):
        fetch(web, descriptor(BLOB))


# pushing


def upload(web: Web, data: bytes, mount_from: str = "") -> bool:
    with session() as open_session:
        pusher = Pusher(open_session, reference(web))
        return pusher.push_blob(
            descriptor(data), lambda offset: io.BytesIO(data[offset:]), mount_from
        )


class Store:
    """A registry to push to. ``location`` is where it sends the upload."""

    def __init__(self, location: str = "/v2/a/b/blobs/uploads/1?state=x") -> None:
        self.location, self.blobs = location, dict[str, bytes]()

    def __call__(self, asked: Asked) -> Answer:
        match asked.method:
            case "HEAD":
                return Answer(200 if asked.path.rpartition("/")[2] in self.blobs else 404)
            case "POST" if "mount" in asked.query and asked.query["from"] == ["known"]:
                return Answer(201)
            case "POST":
                return Answer(202, {"Location": self.location})
            case _:
                self.blobs[asked.query.get("digest", [asked.path])[0]] = asked.body
                return Answer(201)


def test_a_blob_is_pushed_once() -> None:
    store = Store()
    with serving(store) as web:
        assert upload(web, BLOB)
        assert store.blobs == {digest_of(BLOB): BLOB}
        assert not upload(web, BLOB)


def test_a_blob_is_mounted() -> None:
    store = Store()
    with serving(store) as web:
        assert not upload(web, BLOB, mount_from="known")
        assert upload(web, BLOB, mount_from="unknown")


@pytest.mark.parametrize("location", ["", "file:///tmp/x"])
def test_upload_locations_that_are_none(location: str) -> None:
    with serving(Store(location)) as web, pytest.raises(Error):
        upload(web, BLOB)


def test_a_manifest_is_put_under_its_tag() -> None:
    store = Store()
    with serving(store) as web, session() as open_session:
        Pusher(open_session, reference(web)).push_manifest(
            descriptor(MANIFEST, MANIFEST_TYPE), MANIFEST, "latest"
        )
        assert web.asked[0].headers["content-type"] == MANIFEST_TYPE
        assert store.blobs == {"/v2/a/b/manifests/latest": MANIFEST}


def test_a_pool_is_closed() -> None:
    pool = Pool()
    with serving(repository()) as web:
        with pool.send(Request("GET", f"{web.url}/v2/")) as response:
            assert response.status == 404
        pool.close()
