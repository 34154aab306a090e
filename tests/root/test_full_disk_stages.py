"""A disk that is full at some moment of an import, a pull, an unpacking, a commit, a difference.

``KONTTI_DISK_STEPS`` says at how many (5 where it is not set).
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kontti.diff.base import DiffOptions
from kontti.errors import Error, ResourceExhausted
from kontti.images.identity import chain_ids
from kontti.linux.mounts import mounted
from kontti.namespaces import Scope
from kontti.registry.hosts import HostOptions, configured
from kontti.registry.resolver import Resolver
from kontti.registry.session import Session
from kontti.testing.content import sha256
from kontti.transfer.base import PullOptions, Unpacking
from kontti.transfer.import_ import ImportOptions, import_archive
from kontti.transfer.pull import pull
from tests.support.filesystems import make_ext4
from tests.support.hostile import NAME, image
from tests.support.images import Entry, layer
from tests.support.leftovers import Embedded, embedded_in, unchanged
from tests.support.shims import short_folder
from tests.support.web import serving

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]
STEPS = int(os.environ.get("KONTTI_DISK_STEPS", "5"))
SNAPSHOTTERS = ("overlayfs", "native", "erofs")
SIZE = 64 << 20
NOISE = random.Random(1).randbytes(700_000)


def tar(number: int) -> bytes:
    """Some of it packs well, and there are many small files."""
    small = [Entry(f"{number}/{n}", NOISE[n * 100 :][:3000]) for n in range(60)]
    return layer([*small, Entry(f"{number}/noise", NOISE), Entry(f"{number}/text", b"x" * 900_000)])


TARS = [tar(1), tar(2)]
CHAIN = chain_ids([sha256(data) for data in TARS])
DRAFT = image(*TARS)
ROOTED = {"containerd.io/gc.root": "yes"}
ARCHIVE = DRAFT.archive()


@dataclass(frozen=True)
class Bench:
    """An engine whose root is a small disk, and one of its snapshotters."""

    at: Embedded
    snapshotter: str

    @property
    def scope(self) -> Scope:
        return Scope.of(self.at.namespace)

    @property
    def root(self) -> Path:
        return self.at.base / "root"

    def load(self) -> None:
        options = ImportOptions(unpack=Unpacking(self.snapshotter))
        parts = self.at.engine._stores.transfer_parts()
        import_archive(parts, self.scope, io.BytesIO(ARCHIVE).read, options)

    def pull(self, name: str) -> None:
        parts = self.at.engine._stores.transfer_parts()
        with Session(configured(HostOptions(plain_http=True))) as session:
            options = PullOptions(unpack=Unpacking(self.snapshotter))
            pull(parts, self.scope, Resolver(session), name, options)

    def forget(self, name: str) -> None:
        self.at.engine.remove_image(name)

    def free(self) -> int:
        status = os.statvfs(self.root)
        return status.f_bfree * status.f_frsize

    @contextlib.contextmanager
    def with_room(self, room: int) -> Iterator[None]:
        """Others take the disk, but for ``room`` bytes."""
        filler = self.root / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            # some of it goes to the file's own description
            for size in (self.free() - room, 1 << 12):
                while size > 0 and self.free() > room:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
        try:
            yield
        finally:
            filler.unlink()

    def fails_or_not(self, room: int, act: Callable[[], object], undo: Callable[[], object]) -> str:
        """What ``act`` complains of with so much room; with more it works."""
        failure: Error | None = None
        with unchanged(self.at):
            with self.with_room(room), unchanged(self.at):
                try:
                    act()
                    undo()
                except Error as error:
                    failure = error
            act()
            undo()
        assert failure is None or isinstance(failure, ResourceExhausted), (room, failure)
        return "" if failure is None else failure.message


@pytest.fixture(scope="module")
def disk() -> Iterator[Embedded]:
    with short_folder() as base:
        make_ext4(base / "image", SIZE)
        (base / "root").mkdir()
        # the end of an engine unmounts all that is below its folder
        subprocess.run(["mount", "-o", "loop", base / "image", base / "root"], check=True)
        with embedded_in(base) as at:
            yield at


@pytest.fixture(params=SNAPSHOTTERS)
def bench(request: pytest.FixtureRequest, disk: Embedded) -> Bench:
    if request.param == "erofs" and not disk.engine._stores.snapshotters.get("erofs"):
        pytest.skip("the kernel mounts no erofs from a file")
    return Bench(disk, request.param)


def rooms(need: int) -> list[int]:
    """From nothing to about what is needed, and not the same blocks each time."""
    chance = random.Random(need)
    return [(need * step // STEPS) + chance.randrange(40_000) for step in range(STEPS)]


def needed(bench: Bench, act: Callable[[], object]) -> int:
    """Bytes that stay taken."""
    before = bench.free()
    act()
    return before - bench.free()


def sweep(bench: Bench, act: Callable[[], object], undo: Callable[[], object]) -> None:
    need = needed(bench, act)
    undo()
    told = [bench.fails_or_not(room, act, undo) for room in rooms(need)]
    assert told[0] != ""


def test_an_import(bench: Bench) -> None:
    sweep(bench, bench.load, lambda: bench.forget(NAME))


def test_a_pull(bench: Bench) -> None:
    with serving(DRAFT.registry()) as web:
        name = f"{web.host}/a/b:1"
        sweep(bench, lambda: bench.pull(name), lambda: bench.forget(name))


def test_a_commit_and_a_difference(bench: Bench) -> None:
    stores = bench.at.engine._stores
    snapshots = stores.metadata.snapshots(bench.scope, bench.snapshotter)
    with unchanged(bench.at):
        bench.load()

        def fill() -> None:
            mounts = snapshots.prepare("changed", CHAIN[-1], ROOTED)
            with mounted(mounts) as path:
                (Path(path) / "changed").write_bytes(NOISE)
                (Path(path) / "1/text").write_bytes(b"other")

        for room in (0, 300_000, 600_000, 900_000):
            fill()
            failed = False
            with bench.with_room(room):
                try:
                    snapshots.commit("done", "changed", ROOTED)
                except ResourceExhausted:
                    failed = True
            if failed:
                assert snapshots.stat("changed").name == "changed"
                snapshots.commit("done", "changed", ROOTED)
            difference(bench, room)
            snapshots.remove("done")
        bench.forget(NAME)


def difference(bench: Bench, room: int) -> None:
    """Of the snapshots ``done`` and below it; a blob, or nothing."""
    stores = bench.at.engine._stores
    snapshots = stores.metadata.snapshots(bench.scope, bench.snapshotter)
    content = stores.metadata.content(bench.scope)
    lower = snapshots.view("lower", CHAIN[-1], ROOTED)
    upper = snapshots.view("upper", "done", ROOTED)

    def compare() -> None:
        made = stores.comparer(bench.scope).compare(lower, upper, DiffOptions())
        content.delete(made.digest)

    try:
        bench.fails_or_not(room, compare, lambda: None)
    finally:
        snapshots.remove("lower")
        snapshots.remove("upper")


def test_a_copy_of_the_database(disk: Embedded) -> None:
    """One that cannot be written leaves the one before, and no part of itself."""
    bench = Bench(disk, "native")
    metadata = disk.engine._stores.metadata
    metadata.back_up()
    folder = next(disk.base.glob("root/*/meta.db.backup")).parent
    before = (folder / "meta.db.backup").read_bytes()
    for room in range(0, len(before), max(4096, len(before) // STEPS)):
        with bench.with_room(room):
            with pytest.raises(ResourceExhausted):
                metadata.back_up()
            assert (folder / "meta.db.backup").read_bytes() == before
            assert sorted(p.name for p in folder.glob("*.new*")) == []
    metadata.back_up()


def test_records(disk: Embedded) -> None:
    """All that fit; what does not leaves nothing."""
    bench = Bench(disk, "native")
    leases = disk.engine._stores.metadata.leases(bench.scope)
    for step in range(STEPS):
        made = 0
        with unchanged(disk):
            with bench.with_room(step * 50_000), contextlib.suppress(ResourceExhausted):
                while made < 5000:
                    leases.create(f"{made}", {"label": "x" * 3000})
                    made += 1
            assert made < 5000
            assert [lease.id for lease in leases.list()] == sorted(str(n) for n in range(made))
            for number in range(made):
                leases.delete(str(number))
