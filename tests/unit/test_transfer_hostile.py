"""Whole pulls from servers that fail at random, lie, and share the wire with others."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from kontti.errors import Canceled, Error, FailedPrecondition, Unavailable
from kontti.namespaces import Scope
from kontti.registry.fetcher import Pace
from kontti.registry.hosts import Host
from kontti.registry.parallel import Slots
from kontti.registry.resolver import Resolver
from kontti.registry.retry import Retries
from kontti.registry.session import Session
from kontti.transfer.base import Pulled, PullOptions
from kontti.transfer.flights import Flights
from kontti.transfer.parts import MAX_DOWNLOADS, Parts
from kontti.transfer.pull import pull
from tests.support.images import Image, build
from tests.support.stores import MemoryApplier, MemoryStores
from tests.support.web import Answer, Asked, Behaviour, Repository, Web, serving

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
NAME = "a.example/library/busybox:latest"
TARS = [random.Random(1).randbytes(100_000), random.Random(2).randbytes(100_000)]
CHAOS = int(os.environ.get("KONTTI_CHAOS", "40"))


def served(image: Image) -> Repository:
    kinds = {image.digest: MANIFEST}
    return Repository(dict(image.blobs), {"latest": image.digest}, kinds)


class Puller:
    """Stores in memory, and hosts to pull from."""

    def __init__(self, *webs: Web) -> None:
        self.stores = MemoryStores()
        applier = MemoryApplier(self.stores)
        self.parts = Parts(self.stores, lambda scope: applier)
        self.hosts = [Host("http", web.host) for web in webs]

    def pull(self, options: PullOptions | None = None) -> Pulled:
        retries = Retries(3, 0.001)
        with Session(lambda _: self.hosts, retries=retries, sleep=lambda _: None) as session:
            resolver = Resolver(session, Pace(reopens=20))
            return pull(self.parts, Scope("default"), resolver, NAME, options)

    def assert_nothing_half_made(self) -> None:
        assert self.stores.lease_store.records == {}
        assert self.stores.content_store.held == set()
        assert self.stores.image_store.records == {}
        assert all(k.startswith("sha256:") for k in self.stores.snapshot_store.infos)


def chaotic(repository: Repository, seed: int) -> Behaviour:
    """Fails in another way at each request, more often than not."""
    dice, lock = random.Random(seed), threading.Lock()

    def behave(asked: Asked) -> Answer:
        with lock:
            kind = dice.choice(FAULTS) if dice.random() < 0.6 else None
            at = dice.random()
        answer = repository(asked)
        return kind(answer, at) if kind else answer

    return behave


FAULTS: list[Callable[[Answer, float], Answer]] = [
    lambda answer, at: Answer(500),
    lambda answer, at: Answer(503, {"Retry-After": "1"}),
    lambda answer, at: Answer(429, {"Retry-After": "2"}),
    lambda answer, at: Answer(429, {"Retry-After": "99999"}),
    lambda answer, at: Answer(401),
    lambda answer, at: Answer(404),
    lambda answer, at: Answer(307, {"Location": "file:///etc/passwd"}),
    lambda answer, at: Answer(302, {"Location": "/v2/"}),
    # cut off
    lambda answer, at: Answer(
        answer.status, answer.headers, answer.body[: int(len(answer.body) * at)], len(answer.body)
    ),
    # shorter, and says so
    lambda answer, at: Answer(answer.status, answer.headers, answer.body[:-1]),
    lambda answer, at: Answer(answer.status, answer.headers, answer.body + b"x"),
    # other bytes
    lambda answer, at: Answer(answer.status, answer.headers, answer.body[::-1]),
    lambda answer, at: Answer(
        answer.status, {**answer.headers, "Content-Type": INDEX}, answer.body
    ),
    lambda answer, at: Answer(answer.status, {**answer.headers, "Content-Range": "x"}, answer.body),
    lambda answer, at: Answer(200, answer.headers, answer.body),
    lambda answer, at: Answer(
        answer.status,
        {**answer.headers, "Docker-Content-Digest": "sha256:" + "1" * 64},
        answer.body,
    ),
]


@pytest.mark.parametrize("seed", range(CHAOS))
def test_chaos_ends_in_the_image_or_in_an_error_and_nothing_else(seed: int) -> None:
    image = build(TARS)
    repository = served(image)
    buffer = 30_000 if seed % 2 else 0
    with serving(chaotic(repository, seed)) as one, serving(chaotic(repository, -seed)) as two:
        it = Puller(one, two)
        options = PullOptions(concurrent_layer_fetch_buffer=buffer)
        errors: list[str] = []
        for _ in range(3):
            asked = len(one.asked) + len(two.asked)
            try:
                pulled = it.pull(options)
            except Error as error:
                errors.append(str(error))
                it.assert_nothing_half_made()
            else:
                assert pulled.image.target.digest == image.digest
                assert it.stores.content_store.blobs == image.blobs
                break
            assert len(one.asked) + len(two.asked) - asked < 1500
        assert not [text for text in errors if "object at 0x" in text]
        one.behaviour = two.behaviour = repository
        it.pull(options)
    assert it.stores.content_store.blobs == image.blobs
    assert len(it.parts.flights) == 0


@pytest.mark.parametrize("how", ["other", "shorter", "longer"])
@pytest.mark.parametrize("buffer", [0, 30_000])
def test_a_mirror_with_a_bad_blob_is_passed_over(how: str, buffer: int) -> None:
    image = build(TARS)
    repository, layer = served(image), image.layer_digests[1]
    good = image.blobs[layer]
    bad = {"other": bytes(len(good)), "shorter": good[:-1], "longer": good + b"x"}[how]
    poisoned = Repository({**repository.blobs, layer: bad}, repository.tags, repository.media_types)
    with serving(poisoned) as mirror, serving(repository) as web:
        it = Puller(mirror, web)
        it.pull(PullOptions(concurrent_layer_fetch_buffer=buffer))
        assert [a.path for a in web.asked] != []
    assert it.stores.content_store.blobs == image.blobs


def test_both_hosts_have_a_bad_blob() -> None:
    image = build(TARS)
    repository, layer = served(image), image.layer_digests[1]
    repository.blobs[layer] = bytes(len(image.blobs[layer]))
    with serving(repository) as one, serving(repository) as two:
        it = Puller(one, two)
        with pytest.raises(FailedPrecondition, match="digest"):
            it.pull()
        it.assert_nothing_half_made()
        assert it.stores.content_store.ingests == {}
        asked = [a for web in (one, two) for a in web.asked if a.path.endswith(layer)]
    assert len(asked) == 2


@pytest.mark.parametrize("kind", [INDEX, "text/html", "application/vnd.oci.image.layer.v1.tar", ""])
def test_a_manifest_under_another_type(kind: str) -> None:
    image = build(TARS)
    repository = served(image)
    repository.media_types[image.digest] = kind
    with serving(repository) as web:
        it = Puller(web)
        with pytest.raises(Error, match=r"media.type"):
            it.pull()
        it.assert_nothing_half_made()


def test_who_waits_for_another_download_can_be_stopped() -> None:
    flights = Flights()
    with flights.hold("a"):
        start = time.monotonic()
        with pytest.raises(Canceled), flights.hold("a", lambda: True):
            pass
        assert time.monotonic() - start < 20
    assert len(flights) == 0


def test_one_failure_ends_the_downloads_beside_it_that_wait_for_another_pull() -> None:
    image = build(TARS)
    repository, layers = served(image), image.layer_digests

    def behave(asked: Asked) -> Answer:
        return Answer(404) if asked.path.endswith(layers[1]) else repository(asked)

    with serving(behave) as web:
        it = Puller(web)
        # another pull of this process is at the first layer, and stays there
        with it.parts.flights.hold(layers[0]), pytest.raises(Error, match="404"):
            it.pull()
        it.assert_nothing_half_made()


def test_all_pulls_of_a_process_share_its_slots() -> None:
    image = build([random.Random(n).randbytes(1000) for n in range(12)])
    repository, lock, now, most = served(image), threading.Lock(), 0, 0

    def behave(asked: Asked) -> Answer:
        nonlocal now, most
        blob = asked.path.rpartition("/")[2] in image.layer_digests
        with lock:
            now += blob
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= blob
        return repository(asked)

    with serving(behave) as web:
        it = Puller(web)
        it.parts = Parts(it.stores, it.parts.applier, slots=Slots(2))
        it.pull(PullOptions(max_concurrent_downloads=10))
    assert most <= 2
    assert MAX_DOWNLOADS > 2


def test_a_throttle_that_ends() -> None:
    image, refused = build(TARS), iter(range(6))
    repository = served(image)

    def behave(asked: Asked) -> Answer:
        return repository(asked) if next(refused, None) is None else Answer(429)

    with serving(behave) as web:
        it = Puller(web)
        for _ in range(4):
            try:
                it.pull()
            except (Unavailable, Error):
                continue
            break
    assert it.stores.content_store.blobs == image.blobs
