"""Uploads to registries that break off, refuse and lose what they were given; referrers."""

from __future__ import annotations

import hashlib
import io
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from kontti.errors import Canceled, Error, PermissionDenied, ResourceExhausted, Unavailable
from kontti.images.manifest import Manifest
from kontti.registry import upload
from kontti.registry.auth import Credentials
from kontti.registry.hosts import Host
from kontti.registry.pusher import Pusher
from kontti.registry.reference import Reference
from kontti.registry.referrers import INDEX_TYPE, MAX_PAGES, fallback_tag
from kontti.registry.retry import Retries
from kontti.registry.session import Session
from kontti.transfer.referrers import add_referrer, referrers
from kontti.values import Descriptor, Digest
from tests.support.registry import free_port
from tests.support.web import Answer, Asked, Web, serving

BLOB = random.Random(2).randbytes(300_000)
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


LAYER = Descriptor("application/vnd.oci.image.layer.v1.tar", digest_of(BLOB), len(BLOB))


@dataclass
class Uploads:
    """A registry that takes uploads. ``script``: what to do with PUTs and PATCHes, in order.

    A number is a status; a negative one keeps so many bytes first, and then says 500.
    """

    script: list[int] = field(default_factory=list)
    partial: dict[str, bytearray] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    forgets: bool = False
    begun: int = 0
    largest: int = 1 << 30

    def __call__(self, asked: Asked) -> Answer:
        name = asked.path.rpartition("/")[2]
        match asked.method:
            case "HEAD":
                return Answer(200 if name in self.blobs else 404)
            case "POST":
                self.begun += 1
                self.partial[str(self.begun)] = bytearray()
                return self._at(str(self.begun), 202)
            case "DELETE":
                return Answer(204 if self.partial.pop(name, None) is not None else 404)
            case "GET" if "uploads" in asked.path:
                lost = self.forgets or name not in self.partial
                return Answer(404) if lost else self._at(name, 204)
            case _:
                return self._write(asked, name)

    def _at(self, name: str, status: int) -> Answer:
        count = len(self.partial[name])
        headers = {"Location": f"/v2/a/b/blobs/uploads/{name}?state={count}"}
        headers["Range"] = f"0-{max(count - 1, 0)}"
        return Answer(status, headers)

    def _write(self, asked: Asked, name: str) -> Answer:
        if len(asked.body) > self.largest:
            return Answer(413)
        step = self.script.pop(0) if self.script else 0
        if step > 0:
            return Answer(step)
        if name not in self.partial:
            return Answer(404)
        if asked.method == "PATCH":
            start = int(asked.headers["content-range"].partition("-")[0])
            if start != len(self.partial[name]):
                return Answer(416)
        data = self.partial[name]
        data += asked.body[: -step or None]
        if step:
            return Answer(500)
        if asked.method == "PATCH":
            return self._at(name, 202)
        digest = asked.query["digest"][0]
        if digest_of(bytes(data)) != digest:
            return Answer(400)
        self.blobs[digest] = bytes(self.partial.pop(name))
        return Answer(201)


def session(web: Web, attempts: int = 4) -> Session:
    hosts = [Host("http", web.host)]
    retries = Retries(attempts, 0.01)
    return Session(lambda registry: hosts, retries=retries, sleep=lambda seconds: None)


def reference(web: Web) -> Reference:
    return Reference.parse(f"{web.host}/a/b:latest")


def body(offset: int) -> io.BytesIO:
    return io.BytesIO(BLOB[offset:])


def push(store: Uploads) -> list[str]:
    """Push the blob; what was asked."""
    with serving(store) as web, session(web) as open_session:
        assert Pusher(open_session, reference(web)).push_blob(LAYER, body)
        assert store.blobs == {LAYER.digest: BLOB}
        assert store.partial == {}
        return [path.partition(" ")[0] for path in web.paths()]


def test_whole_where_nothing_goes_wrong() -> None:
    assert push(Uploads()) == ["HEAD", "POST", "PUT"]


def test_it_goes_on_where_the_registry_has_it() -> None:
    store = Uploads([-100_000, -50_000])
    assert push(store) == ["HEAD", "POST", "PUT", "GET", "PATCH", "GET", "PATCH", "PUT"]
    assert store.begun == 1


def test_everything_arrived_but_the_end() -> None:
    assert push(Uploads([-300_000])) == ["HEAD", "POST", "PUT", "GET", "PUT"]


def test_a_registry_that_forgot_is_sent_it_again() -> None:
    store = Uploads([-100_000], forgets=True)
    store.script.append(0)
    with serving(store) as web, session(web) as open_session:
        assert Pusher(open_session, reference(web)).push_blob(LAYER, body)
    assert store.blobs == {LAYER.digest: BLOB}
    assert store.begun == 2


def test_a_throttled_registry() -> None:
    assert push(Uploads([429, 503])).count("PUT") == 3


def test_chunks_where_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "CHUNK", 100_000)
    store = Uploads(largest=100_000)
    with serving(store) as web, session(web) as open_session:
        assert Pusher(open_session, reference(web)).push_blob(LAYER, body)
        sizes = [len(a.body) for a in web.asked if a.method == "PATCH"]
    assert sizes == [100_000] * 3
    assert store.blobs == {LAYER.digest: BLOB}


def test_chunks_that_are_too_large_as_well() -> None:
    store = Uploads(largest=10)
    with serving(store) as web, session(web) as open_session:
        with pytest.raises(Error, match="413"):
            Pusher(open_session, reference(web)).push_blob(LAYER, body)
        assert len(web.asked) < 10


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_failures_for_ever_are_bounded_and_taken_back(status: int) -> None:
    store = Uploads([status] * 100)
    with serving(store) as web, session(web) as open_session:
        with pytest.raises((Unavailable, ResourceExhausted, Error)):
            Pusher(open_session, reference(web)).push_blob(LAYER, body)
        assert len([a for a in web.asked if a.method == "PUT"]) == 4
    assert store.partial == {}


def test_a_refusal_is_told_and_taken_back() -> None:
    store = Uploads([403])
    with serving(store) as web, session(web) as open_session:
        with pytest.raises(PermissionDenied):
            Pusher(open_session, reference(web)).push_blob(LAYER, body)
        assert web.paths()[-1].startswith("DELETE")
    assert store.partial == {}


@pytest.mark.parametrize("said", ["0-0", "0-999999999", "7-9", "nonsense"])
def test_what_a_registry_has_cannot_be_told(said: str) -> None:
    store = Uploads([-100_000])

    def vague(asked: Asked) -> Answer:
        answer = store(asked)
        if asked.method == "GET":
            return Answer(answer.status, {**answer.headers, "Range": said})
        return answer

    with serving(vague) as web, session(web) as open_session:
        assert Pusher(open_session, reference(web)).push_blob(LAYER, body)
    assert store.blobs == {LAYER.digest: BLOB}
    assert store.partial == {}


@pytest.mark.parametrize("said", ["0-5", "0-250000"])
def test_a_registry_that_lies_about_what_it_has(said: str) -> None:
    store = Uploads([-100_000])

    def lies(asked: Asked) -> Answer:
        answer = store(asked)
        if asked.method == "GET":
            return Answer(answer.status, {**answer.headers, "Range": said})
        return answer

    with serving(lies) as web, session(web) as open_session:
        with pytest.raises(Error):
            Pusher(open_session, reference(web)).push_blob(LAYER, body)
        assert len(web.asked) < 40


def test_a_registry_that_never_moves_on() -> None:
    store = Uploads([-100_000])

    def stuck(asked: Asked) -> Answer:
        if asked.method == "PATCH":
            return Answer(202, {"Range": "0-99999"})
        return store(asked)

    with serving(stuck) as web, session(web) as open_session:
        with pytest.raises(Error):
            Pusher(open_session, reference(web)).push_blob(LAYER, body)
        assert len(web.asked) < 40


def test_an_upload_that_is_moved() -> None:
    store = Uploads()
    with serving(store) as there:

        def moves(asked: Asked) -> Answer:
            if asked.method == "PUT":
                return Answer(307, {"Location": there.url + asked.target})
            return store(asked)

        with serving(moves) as web:
            hosts = [Host("http", web.host, headers=(("X-Key", "1"),))]
            with Session(lambda registry: hosts) as open_session:
                assert Pusher(open_session, reference(web)).push_blob(LAYER, body)
        assert [a.method for a in there.asked] == ["PUT"]
        assert "x-key" not in there.asked[0].headers
    assert store.blobs == {LAYER.digest: BLOB}


def test_an_upload_that_is_moved_for_ever() -> None:
    def moves(asked: Asked) -> Answer:
        if asked.method == "PUT":
            return Answer(307, {"Location": asked.target})
        return store(asked)

    store = Uploads()
    with serving(moves) as web, session(web) as open_session:
        with pytest.raises(Error, match="redirected too often"):
            Pusher(open_session, reference(web)).push_blob(LAYER, body)
        assert len([a for a in web.asked if a.method == "PUT"]) == 5


def test_a_401_in_the_middle() -> None:
    store, refused = Uploads(), iter([True])

    def behave(asked: Asked) -> Answer:
        if asked.method == "PUT" and next(refused, False):
            return Answer(401, {"WWW-Authenticate": "Basic realm=x"})
        return store(asked)

    with serving(behave) as web:
        hosts = [Host("http", web.host)]
        source = Credentials("a", "b")
        with Session(lambda registry: hosts, lambda host: source) as open_session:
            assert Pusher(open_session, reference(web)).push_blob(LAYER, body)
        assert "authorization" in [a for a in web.asked if a.method == "PUT"][-1].headers


def test_401_for_ever() -> None:
    store = Uploads()

    def behave(asked: Asked) -> Answer:
        if asked.method == "PUT":
            return Answer(401, {"WWW-Authenticate": "Basic realm=x"})
        return store(asked)

    with serving(behave) as web:
        hosts = [Host("http", web.host)]
        source = Credentials("a", "b")
        with Session(lambda registry: hosts, lambda host: source) as open_session:
            pusher = Pusher(open_session, reference(web))
            with pytest.raises(Error, match="authorization failed"):
                pusher.push_blob(LAYER, body)
        assert len(web.asked) < 20


def test_a_caller_that_gives_up_is_told_so_and_the_upload_taken_back() -> None:
    class Reluctant(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100_000:
                raise Canceled("by the user")
            return super().read(size)

    store = Uploads()
    with serving(store) as web, session(web) as open_session:
        with pytest.raises(Canceled, match="by the user"):
            Pusher(open_session, reference(web)).push_blob(LAYER, lambda at: Reluctant(BLOB[at:]))
        assert [path for path in web.paths() if path.startswith("DELETE")]
    assert store.blobs == {}


def test_nothing_listens() -> None:
    host, slept = Host("http", f"127.0.0.1:{free_port()}"), []
    with Session(lambda registry: [host], sleep=slept.append) as open_session:
        pusher = Pusher(open_session, Reference.parse("a.example/a:1"))
        with pytest.raises(Unavailable, match="dial tcp"):
            pusher.push_blob(LAYER, body)
    assert len(slept) == 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_mount_that_may_not_be_is_an_upload(status: int) -> None:
    store = Uploads()

    def behave(asked: Asked) -> Answer:
        return Answer(status) if "mount" in asked.query else store(asked)

    with serving(behave) as web, session(web) as open_session:
        assert Pusher(open_session, reference(web)).push_blob(LAYER, body, "other/repo")
    assert store.blobs == {LAYER.digest: BLOB}


def test_a_manifest_is_put_again_after_a_lost_connection() -> None:
    failures = iter([502, 500])
    lock = threading.Lock()

    def behave(asked: Asked) -> Answer:
        with lock:
            return Answer(next(failures, 201))

    with serving(behave) as web, session(web) as open_session:
        data = b"{}"
        descriptor = Descriptor(MANIFEST_TYPE, digest_of(data), len(data))
        assert not Pusher(open_session, reference(web)).push_manifest(descriptor, data, "1")
        assert len(web.asked) == 3


# referrers


def index_of(*found: Descriptor) -> bytes:
    entries = [
        {"mediaType": d.media_type, "digest": d.digest, "size": d.size,
         "artifactType": d.artifact_type} for d in found
    ]  # fmt: skip
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}).encode()


def artifact(number: int, kind: str) -> Descriptor:
    data = str(number).encode()
    return Descriptor(MANIFEST_TYPE, digest_of(data), len(data), artifact_type=kind)


SIGNATURE, SBOM = artifact(1, "example/signature"), artifact(2, "example/sbom")
SUBJECT = digest_of(b"subject")


@contextmanager
def asking(behaviour: object) -> Iterator[tuple[Web, Session]]:
    with serving(behaviour) as web, session(web) as open_session:  # type: ignore[arg-type]
        yield web, open_session


def paged(asked: Asked) -> Answer:
    if "next" in asked.query:
        return Answer(200, {"Content-Type": INDEX_TYPE}, index_of(SBOM, SIGNATURE))
    link = f'<{asked.path}?next=1>; rel="next"'
    return Answer(200, {"Content-Type": INDEX_TYPE, "Link": link}, index_of(SIGNATURE))


def test_referrers_by_the_api() -> None:
    with asking(paged) as (web, open_session):
        name = reference(web)
        assert referrers(open_session, name, SUBJECT) == (SIGNATURE, SBOM)
        assert referrers(open_session, name, SUBJECT, "example/sbom") == (SBOM,)
        assert web.asked[0].path == f"/v2/a/b/referrers/{SUBJECT}"
        assert web.asked[2].query["artifactType"] == ["example/sbom"]


@pytest.mark.parametrize("status", [404, 400, 405])
def test_referrers_by_the_tag(status: int) -> None:
    def behave(asked: Asked) -> Answer:
        if asked.path.endswith(f"/manifests/{fallback_tag(SUBJECT)}"):
            return Answer(200, {"Content-Type": INDEX_TYPE}, index_of(SBOM))
        return Answer(status)

    with asking(behave) as (web, open_session):
        assert referrers(open_session, reference(web), SUBJECT) == (SBOM,)
    with asking(lambda asked: Answer(404)) as (web, open_session):
        assert referrers(open_session, reference(web), SUBJECT) == ()


def test_pages_without_end() -> None:
    def behave(asked: Asked) -> Answer:
        headers = {"Content-Type": INDEX_TYPE, "Link": f'<{asked.path}?next=1>; rel="next"'}
        return Answer(200, headers, index_of())

    with asking(behave) as (web, open_session):
        with pytest.raises(ResourceExhausted):
            referrers(open_session, reference(web), SUBJECT)
        assert len(web.asked) == MAX_PAGES


def test_the_next_page_is_the_same_servers() -> None:
    with serving(paged) as other:

        def behave(asked: Asked) -> Answer:
            headers = {"Content-Type": INDEX_TYPE, "Link": f'<{other.url}/x>; rel="next"'}
            return Answer(200, headers, index_of(SIGNATURE))

        with asking(behave) as (web, open_session):
            assert referrers(open_session, reference(web), SUBJECT) == (SIGNATURE,)
        assert other.asked == []


def test_a_registry_without_the_api_is_given_the_tag() -> None:
    tags: dict[str, bytes] = {}

    def behave(asked: Asked) -> Answer:
        name = asked.path.rpartition("/")[2]
        if asked.method == "PUT":
            tags[name] = asked.body
            return Answer(201)
        return (
            Answer(200, {"Content-Type": INDEX_TYPE}, tags[name]) if name in tags else Answer(404)
        )

    config = Descriptor("example/config", SUBJECT, 1)
    subject = Descriptor(MANIFEST_TYPE, SUBJECT, 7)
    manifest = Manifest(MANIFEST_TYPE, config, (), {"a": "b"}, "example/sbom", subject)
    with asking(behave) as (web, open_session):
        name = reference(web)
        for descriptor in (SBOM, SIGNATURE, SBOM):
            add_referrer(open_session, name, descriptor, manifest)
        found = referrers(open_session, name, SUBJECT)
    assert [d.digest for d in found] == [SBOM.digest, SIGNATURE.digest]
    assert (found[0].artifact_type, dict(found[0].annotations)) == ("example/sbom", {"a": "b"})
    assert list(tags) == [fallback_tag(SUBJECT)]
