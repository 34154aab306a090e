"""The daemon is killed while images come, go and are written: the store stays whole.

``KONTTI_STORE_KILLS`` says how often (6 where it is not set).
"""

from __future__ import annotations

import contextlib
import os
import random
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kontti import Engine
from kontti.client.stores import RemoteStores
from kontti.doctor.base import Remedy
from kontti.images.graph import walk
from kontti.images.identity import chain_ids
from kontti.images.manifest import parse_config
from kontti.namespaces import Scope
from kontti.snapshots.base import Kind
from kontti.testing.content import sha256
from kontti.transfer.lease import EXPIRE_LABEL
from kontti.values import Digest
from tests.support import images, registry
from tests.support.host import Host, host
from tests.support.images import Entry, Image, layer

pytestmark = [pytest.mark.root, pytest.mark.timeout(7200)]
KILLS = int(os.environ.get("KONTTI_STORE_KILLS", "6"))
SEED = int(os.environ.get("KONTTI_STORE_SEED", "20261127"))
SNAPSHOTTERS = ("overlayfs", "native")
STEADY = "docker.io/library/steady:1"
CONTENT = "root/io.containerd.content.v1.content"
SECONDS = 120.0


def noise(name: str, size: int) -> bytes:
    """A layer of many files that packing does not make smaller."""
    parts = [Entry(f"{name}/{n}", random.Random(f"{name}{n}").randbytes(1 << 14)) for n in range(8)]
    return layer([*parts, Entry(f"{name}/large", random.Random(name).randbytes(size))])


BASE = images.base_layer()
IMAGES = {
    "1": images.build([BASE, noise("shared", 1 << 20), noise("one", 3 << 20)]),
    "2": images.build([BASE, noise("shared", 1 << 20), noise("two", 2 << 20)]),
    "3": images.build([BASE, noise("three", 2 << 20), noise("four", 1 << 20)]),
}
FIXED = images.build([BASE, noise("steady", 2 << 20)])


class Interrupted(Exception):
    """A command that ended with its daemon."""


class Load:
    """What several clients do at once until the daemon dies, and what they were promised.

    Of a name that a command was about when the daemon died nothing is promised.
    """

    def __init__(self, here: Host, address: str) -> None:
        self.here, self.address = here, address
        self.images: dict[str, str | None] = {STEADY: FIXED.digest}
        self.snapshots: dict[str, Kind | None] = {}
        self.blobs: dict[str, bool] = {}
        self.done: dict[str, int] = {}
        self.wrong: list[str] = []
        self.dying = threading.Event()

    def run_and_kill(self, chance: random.Random) -> None:
        """One round of some of the work, beside collections."""
        self.dying.clear()
        works = (self.pull_one, self.pull_two, self.pull_many, self.load, self.save, self.commit)
        chosen = (*chance.sample(works, 3), self.collect)
        threads = [threading.Thread(target=self._repeat, args=(work,)) for work in chosen]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.05, 2.5))
        self.dying.set()
        self.here.kill()
        for thread in threads:
            thread.join()

    def _repeat(self, work: Callable[[], None]) -> None:
        try:
            while not self.dying.is_set():
                work()
                self.done[work.__name__] = self.done.get(work.__name__, 0) + 1
        except Interrupted:
            pass
        except Exception as error:  # noqa: BLE001 told by the test's own thread
            self.wrong.append(f"{work.__name__}: {error!r}")

    def ctr(self, *args: str) -> bytes:
        done = self.here.ctr(*args, timeout=SECONDS)
        if done.returncode == 0:
            return done.stdout
        if not self.dying.is_set() or done.returncode == 124:
            self.wrong.append(f"{args}: {done}")
        raise Interrupted

    def _image(self, name: str, digest: str | None, *args: str) -> None:
        self.images.pop(name, None)
        self.ctr("images", *args)
        self.images[name] = digest

    def _pull(self, tag: str, repository: str, *flags: str) -> None:
        name = f"{self.address}/{repository}:{tag}"
        self._image(name, IMAGES[tag].digest, "pull", "--plain-http", *flags, name)
        self._image(name, None, "rm", "--sync", name)

    def pull_one(self) -> None:
        self._pull("1", "a")

    def pull_two(self) -> None:
        self._pull("2", "a", "--snapshotter", "native")

    def pull_many(self) -> None:
        """What others pull too, by other names."""
        for tag in IMAGES:
            self._pull(tag, "b")

    def load(self) -> None:
        name = "docker.io/library/loaded:3"
        self._image(name, IMAGES["3"].digest, "import", str(self.here.base / "3.tar"))
        self._image(name, None, "rm", "--sync", name)

    def save(self) -> None:
        path = self.here.base / "saved.tar"
        self.ctr("images", "export", str(path), STEADY)
        with tarfile.open(path) as tar:
            found = {n.rpartition("/")[2] for n in tar.getnames() if "sha256" in n}
            assert {d.removeprefix("sha256:") for d in FIXED.blobs} <= found

    def commit(self) -> None:
        stamp = time.time_ns()
        key, name, parent = f"key-{stamp}", f"name-{stamp}", chain_of(FIXED)
        self._snapshots({key: Kind.ACTIVE}, "prepare", key, parent)
        self._snapshots({key: None, name: Kind.COMMITTED}, "commit", name, key)
        label = "containerd.io/gc.root=yes"
        self.blobs.clear()  # it is the same one each time
        made = sha256(self.ctr("snapshots", "diff", "--keep", "--label", label, parent))
        self.blobs[made] = True
        self._snapshots({name: None}, "rm", name)
        self.blobs.pop(made)
        self.ctr("content", "rm", made)
        self.blobs[made] = False

    def _snapshots(self, after: Mapping[str, Kind | None], *args: str) -> None:
        for name in after:
            self.snapshots[name] = Kind.UNKNOWN
        self.ctr("snapshots", *args)
        self.snapshots |= after

    def collect(self) -> None:
        self.ctr("leases", "create", "--id", "collect-now")
        self.ctr("leases", "rm", "--sync", "collect-now")


def chain_of(image: Image) -> str:
    """The topmost snapshot's name."""
    return chain_ids(parse_config(image.blobs[image.config_digest]).diff_ids)[-1]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    with registry.running(tmp_path) as address, host(image=False) as here:
        for tag, image in IMAGES.items():
            for repository in ("a", "b"):
                registry.push(address, repository, tag, image)
        archive = images.archive(IMAGES["3"], "docker.io/library/loaded:3")
        (here.base / "3.tar").write_bytes(archive)
        (here.base / "steady.tar").write_bytes(images.archive(FIXED, STEADY))
        here.out("images", "import", str(here.base / "steady.tar"))
        yield Load(here, address)


def test_the_store_is_whole_whenever_the_daemon_dies(load: Load) -> None:
    chance = random.Random(SEED)
    for number in range(KILLS):
        load.run_and_kill(chance)
        assert load.wrong == []
        if number % 3 == 0:
            look_without_a_daemon(load)
        start(load.here)
        if chance.random() < 0.25:
            time.sleep(chance.uniform(0.0, 0.3))
            load.here.kill()
            start(load.here)
        check_promises(load)
        check_what_can_be_done_again(load, chance)
        check_nothing_is_left(load)
    load.here.stop()
    assert examine(load.here, deep=True) == []
    assert KILLS < 6 or sum(load.done.values()) > 0


def start(here: Host) -> None:
    """Start, when what the dead one was just starting has let go of the root."""
    deadline = time.monotonic() + 5.0
    while True:
        try:
            here.start()
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
        else:
            return


def examine(here: Host, *, deep: bool) -> list[str]:
    """What is found wrong in a root that no daemon has, garbage aside."""
    with Engine(str(here.base / "root"), str(here.base / "state"), here.namespace) as engine:
        found = engine.doctor(deep=deep)
    return [f"{f.kind} {f.name}: {f.problem}" for f in found if f.remedy is not Remedy.COLLECT]


def look_without_a_daemon(load: Load) -> None:
    assert examine(load.here, deep=False) == []


@contextlib.contextmanager
def stores_of(load: Load) -> Iterator[tuple[RemoteStores, Scope]]:
    with contextlib.closing(RemoteStores(load.here.address)) as stores:
        yield stores, Scope.of(load.here.namespace)


def check_promises(load: Load) -> None:
    """All that was acknowledged, and no image that is not complete and unpacked."""
    with stores_of(load) as (stores, scope):
        content = stores.content(scope)
        there = {image.name: image.target for image in stores.images(scope).list()}
        for name, digest in load.images.items():
            assert (str(there[name].digest) if name in there else None) == digest, name
        for target in there.values():
            for node in walk(content, target):
                data = whole(stores, scope, str(node.descriptor.digest))
                assert sha256(data) == node.descriptor.digest
        snapshots = stores.snapshots(scope, "overlayfs")
        assert snapshots.stat(chain_of(FIXED)).kind is Kind.COMMITTED
        kinds = {info.name: info.kind for info in snapshots.walk()}
        for name, kind in load.snapshots.items():
            assert kind is Kind.UNKNOWN or kinds.get(name) is kind, (name, kinds.get(name))
        blobs = {str(info.digest) for info in content.walk()}
        for made, is_there in load.blobs.items():
            assert (made in blobs) is is_there


def whole(stores: RemoteStores, scope: Scope, digest: str) -> bytes:
    with stores.content(scope).reader(Digest(digest)) as reader:
        return b"".join(
            reader.read_at(offset, 1 << 20) for offset in range(0, reader.size, 1 << 20)
        )


def check_what_can_be_done_again(load: Load, chance: random.Random) -> None:
    """Whatever was interrupted."""
    here = load.here
    tag = chance.choice(list(IMAGES))
    name = f"{load.address}/a:{tag}"
    flags = ("--snapshotter", "native") if tag == "2" else ()
    here.out("images", "pull", "--plain-http", *flags, name)
    with stores_of(load) as (stores, scope):
        target = stores.images(scope).get(name).target
        assert target.digest == IMAGES[tag].digest
        blobs = {
            str(n.descriptor.digest): n.descriptor for n in walk(stores.content(scope), target)
        }
        assert blobs.keys() == IMAGES[tag].blobs.keys()
        assert all(whole(stores, scope, d) == IMAGES[tag].blobs[d] for d in blobs)
        snapshots = stores.snapshots(scope, flags[1] if flags else "overlayfs")
        assert snapshots.stat(chain_of(IMAGES[tag])).kind is Kind.COMMITTED
    here.out("images", "rm", name)
    for name, kind in list(load.snapshots.items()):
        if kind is not None:
            here.ctr("snapshots", "rm", name)
            here.out("snapshots", "prepare", name)
            here.out("snapshots", "rm", name)
        del load.snapshots[name]
    load.images = {STEADY: FIXED.digest}
    load.blobs.clear()
    for line in here.out("images", "ls", "-q").split():
        if line != STEADY:
            here.out("images", "rm", line)


def check_nothing_is_left(load: Load) -> None:
    """When the leases of dead clients end, all that they held goes."""
    here = load.here
    with stores_of(load) as (stores, scope):
        leases, content = stores.leases(scope), stores.content(scope)
        latest = datetime.now(UTC) + timedelta(days=1, minutes=1)
        for lease in leases.list():
            leases.delete(lease.id)
            if lease.id != "collect-now":
                expiry = datetime.fromisoformat(lease.labels[EXPIRE_LABEL])
                assert datetime.now(UTC) < expiry < latest
        for info in content.walk(['labels."containerd.io/gc.root"']):
            content.delete(info.digest)
        # what a broken connection brought has a day to be resumed, with a lease or without
        for status in content.list_statuses():
            content.abort(status.ref)
        leases.create("collect-now")
        leases.delete("collect-now", sync=True)
        assert {str(i.digest) for i in content.walk()} == set(FIXED.blobs)
        expected = {"overlayfs": 2, "native": 0}
        for name in SNAPSHOTTERS:
            names = [info.name for info in stores.snapshots(scope, name).walk()]
            assert len(names) == expected[name], names
            folder = here.base / f"root/io.containerd.snapshotter.v1.{name}/snapshots"
            assert len(list(folder.iterdir())) == expected[name], list(folder.iterdir())
    files = {p.name for p in (here.base / CONTENT / "blobs/sha256").iterdir()}
    assert files == {digest.removeprefix("sha256:") for digest in FIXED.blobs}
    assert list((here.base / CONTENT / "ingest").iterdir()) == []
    assert here.out("leases", "ls", "-q") == ""
