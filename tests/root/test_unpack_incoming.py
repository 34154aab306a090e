"""Layers are extracted while they are still being downloaded."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from kontti.engine.stores import Stores
from kontti.errors import Error, FailedPrecondition, NotFound
from kontti.registry.hosts import Host
from kontti.registry.resolver import Resolver
from kontti.registry.session import Session
from kontti.transfer.base import Pulled
from kontti.transfer.pull import pull
from tests.root.test_unpack_together import SCOPE, assert_clean, opened
from tests.support.images import Entry, Image, build, layer
from tests.support.trees import look
from tests.support.web import Answer, Asked, Behaviour, Repository, serving

pytestmark = pytest.mark.root
SECONDS = 30.0
MIB = 1 << 20
HALF = 4 * MIB


def plain(data: bytes) -> bytes:
    return data


def files(prefix: str, count: int = 8) -> bytes:
    rng = random.Random(prefix)
    return layer([Entry(f"{prefix}-{n}", rng.randbytes(MIB)) for n in range(count)])


@pytest.fixture(scope="module")
def image() -> Image:
    """Two layers of eight files of a megabyte each."""
    return build([files("low"), files("high")], pack=plain)


class Halved:
    """A registry that sends half of each layer, and the rest when ``rest`` gives it."""

    def __init__(self, image: Image, rest: Callable[[bytes], bytes]) -> None:
        kinds = {image.digest: str(image.manifest["mediaType"])}
        self.repository = Repository(dict(image.blobs), {"1": image.digest}, kinds)
        self.layers = image.layer_digests
        self.rest = rest
        self.asked = 0

    def __call__(self, asked: Asked) -> Answer:
        answer = self.repository(asked)
        if asked.path.rpartition("/")[2] not in self.layers or len(answer.body) <= HALF:
            return answer
        self.asked += 1
        tail = answer.body[HALF:]
        return Answer(
            answer.status,
            answer.headers,
            answer.body[:HALF],
            len(answer.body),
            lambda: self.rest(tail),
        )


def pulled(
    stores: Stores,
    *registries: Behaviour,
) -> Pulled:
    """By the first registry, the others being mirrors that are asked after it."""
    with ExitStack() as stack:
        webs = [stack.enter_context(serving(registry)) for registry in registries]
        hosts = [Host("http", web.host) for web in webs]
        session = stack.enter_context(Session(lambda _: hosts))
        resolver, name = Resolver(session), f"{webs[0].host}/halved:1"
        return pull(stores.transfer_parts(), SCOPE, resolver, name)


def appears(folder: Path, name: str) -> bool:
    """Whether a file is there within SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not list(folder.glob(f"**/fs/{name}")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def seen(stores: Stores, made: Pulled) -> set[str]:
    """The names in the image's tree."""
    snapshots = stores.metadata.snapshots(SCOPE, "overlayfs")
    return set(look(snapshots.view("look", made.unpacked[0].chain_id)))


WHOLE = {"."} | {f"{prefix}-{n}" for prefix in ("low", "high") for n in range(8)}


def test_what_has_arrived_is_extracted_while_the_rest_comes(tmp_path: Path, image: Image) -> None:
    met: list[bool] = []

    def rest(tail: bytes) -> bytes:
        met.append(appears(tmp_path, "low-1") and appears(tmp_path, "high-1"))
        return tail

    with opened(tmp_path, 2) as stores:
        made = pulled(stores, Halved(image, rest))
        assert met == [True, True]
        assert seen(stores, made) == WHOLE


def test_one_layer_over_what_is_there(tmp_path: Path, image: Image) -> None:
    met: list[bool] = []

    def rest(tail: bytes) -> bytes:
        met.append(appears(tmp_path, "high-1"))
        return tail

    below = build([files("low")], pack=plain)
    with opened(tmp_path, 2) as stores:
        pulled(stores, Halved(below, lambda tail: tail))
        made = pulled(stores, Halved(image, rest))
        assert met == [True]
        assert seen(stores, made) == WHOLE


def test_what_waits_for_a_slow_download_keeps_nobody_back(tmp_path: Path) -> None:
    """As many layers as may be unpacked at once come slowly; another one is there."""
    slow = build([files("low"), files("high"), layer([Entry("quick")])], pack=plain)
    met: list[bool] = []

    def rest(tail: bytes) -> bytes:
        met.append(appears(tmp_path, "quick"))
        return tail

    with opened(tmp_path, 2) as stores:
        made = pulled(stores, Halved(slow, rest))
        assert met == [True, True]
        assert seen(stores, made) == WHOLE | {"quick"}


def test_a_mirror_with_other_bytes(tmp_path: Path, image: Image) -> None:
    """What was extracted of them is thrown away with them."""
    wrong = Halved(image, lambda tail: bytes(len(tail)))
    right = Halved(image, lambda tail: tail)
    with opened(tmp_path, 2) as stores:
        made = pulled(stores, wrong, right)
        assert (wrong.asked, right.asked) == (2, 2)
        assert seen(stores, made) == WHOLE


@pytest.mark.parametrize("wrong", [bytes, lambda size: b"x" * size], ids=["zeros", "no tar"])
def test_only_wrong_bytes(tmp_path: Path, image: Image, wrong: Callable[[int], bytes]) -> None:
    with opened(tmp_path, 2) as stores:
        with pytest.raises(FailedPrecondition, match="unexpected commit digest"):
            pulled(stores, Halved(image, lambda tail: wrong(len(tail))))
        assert_clean(stores)


def test_a_download_that_fails_halfway(tmp_path: Path, image: Image) -> None:
    registry = Halved(image, lambda tail: b"")

    def once(asked: Asked) -> Answer:
        is_layer = asked.path.rpartition("/")[2] in registry.layers
        return Answer(404) if is_layer and registry.asked >= 2 else registry(asked)

    with opened(tmp_path, 2) as stores:
        with pytest.raises(NotFound):
            pulled(stores, once)
        assert_clean(stores)
        made = pulled(stores, Halved(image, lambda tail: tail))
        assert seen(stores, made) == WHOLE


def test_a_layer_that_is_no_tar(tmp_path: Path) -> None:
    bad = build([b"no tar at all" * MIB], pack=plain)
    with opened(tmp_path, 2) as stores:
        with pytest.raises(Error, match=r"^failed to extract layer sha256:\w+: archive/tar"):
            pulled(stores, Halved(bad, lambda tail: tail))
        assert_clean(stores)


def test_a_layer_that_does_not_come_ends_those_that_wait(tmp_path: Path) -> None:
    slow = build([files("low"), files("high"), files("missing")], pack=plain)
    failed = threading.Event()
    registry = Halved(slow, lambda tail: tail if failed.wait(SECONDS) else b"")

    def behaviour(asked: Asked) -> Answer:
        if not asked.path.endswith(slow.layer_digests[2]):
            return registry(asked)
        met = appears(tmp_path, "low-1") and appears(tmp_path, "high-1")
        failed.set()
        return Answer(404 if met else 500)

    with opened(tmp_path, 2) as stores:
        with pytest.raises(NotFound):
            pulled(stores, behaviour)
        assert_clean(stores)


def test_no_descriptor_is_left(tmp_path: Path, image: Image) -> None:
    with opened(tmp_path, 2) as stores:
        before = files_open(tmp_path)
        made = pulled(stores, Halved(image, lambda tail: tail))
        # the store may keep a blob open that was just read, for as long as it is there
        stores.metadata.images(SCOPE).delete(made.image.name)
        stores.metadata.collect()
        assert files_open(tmp_path) == before


def files_open(folder: Path) -> set[str]:
    """What this process has open below ``folder``."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return {path for path in found if path.startswith(str(folder))}
