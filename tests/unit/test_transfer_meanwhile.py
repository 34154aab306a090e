"""Transfers beside a collection: what one found, it has until it ends."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kontti.errors import Canceled, NotFound, Unavailable
from kontti.images.identity import chain_ids
from kontti.metadata.base import Image
from kontti.namespaces import Scope
from kontti.registry.parallel import Slots
from kontti.testing.content import put, sha256
from kontti.transfer.base import Unpacking
from kontti.transfer.download import Sink, Stop, download
from kontti.transfer.export import export_images
from kontti.transfer.flights import Flights, IsStopped, Unpacks, never
from kontti.transfer.import_ import ImportOptions, import_archive
from kontti.transfer.incoming import AllThere
from kontti.transfer.lease import leased
from kontti.transfer.parts import Parts
from kontti.transfer.progress import Progress, Reporter, silent
from kontti.transfer.unpack import Layer, Unpacker
from kontti.values import Descriptor, Digest, Mount, Resource
from tests.support import images
from tests.support.metadata import Stores, open_stores
from tests.support.stores import MemoryContent, MemorySnapshots, MemoryWriter

SCOPE = Scope("default")
TARS = [b"one", b"two", b"three"]
CHAIN = chain_ids([sha256(tar) for tar in TARS])


@dataclass
class TakesAnything:
    """diff.base.Applier of layers that are not packed."""

    applied: list[Digest] = field(default_factory=list)

    def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], sync_fs: bool = False
    ) -> Descriptor:
        self.applied.append(layer.digest)
        return layer


@dataclass
class Bench:
    """Real records, and an unpacker of the three layers under a lease."""

    stores: Stores
    applier: TakesAnything = field(default_factory=TakesAnything)

    def collect(self) -> None:
        self.stores.metadata.collect()

    def layers(self) -> list[Layer]:
        described = [Descriptor("application/x", sha256(tar), len(tar)) for tar in TARS]
        ids = [layer.digest for layer in described]
        return list(map(Layer, described, ids, CHAIN, ("", *CHAIN)))

    def config(self, scope: Scope) -> Descriptor:
        content = self.stores.metadata.content(scope)
        for tar in (b"config", *TARS):
            put(content, tar.decode(), tar)
        return Descriptor("application/x", sha256(b"config"), 6)

    def unpacker(self, scope: Scope) -> Unpacker:
        parts = Parts(self.stores.metadata, lambda _: self.applier)
        return parts.unpacker(scope, Unpacking("memory"), Reporter(silent)).unpacker

    def unpack_and_forget(self, count: int) -> None:
        """Have the first ``count`` snapshots as garbage."""
        with leased(self.stores.metadata, SCOPE) as held:
            config = self.config(held)
            self.unpacker(held).unpack(self.layers()[:count], config)
        content = self.stores.metadata.content(SCOPE)
        for info in list(content.walk()):
            content.delete(info.digest)
        self.applier.applied.clear()

    def keys(self) -> list[str]:
        return [info.name for info in self.stores.metadata.snapshots(SCOPE, "memory").walk()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_stores(tmp_path) as stores:
        yield Bench(stores)


def test_parents_that_were_found_outlive_a_collection(bench: Bench) -> None:
    bench.unpack_and_forget(2)

    class Collecting(AllThere):
        def fetched(self, descriptor: Descriptor, is_stopped: IsStopped = never) -> None:
            bench.collect()

    with leased(bench.stores.metadata, SCOPE) as held:
        config = bench.config(held)
        assert bench.unpacker(held).unpack(bench.layers(), config, Collecting()) == CHAIN[2]
        assert bench.applier.applied == [sha256(TARS[2])]
        assert bench.keys() == sorted(CHAIN)


def test_all_that_was_found_is_there_until_the_transfer_ends(bench: Bench) -> None:
    """Its configuration refers to it, but an image that refers to that comes last."""
    bench.unpack_and_forget(3)
    with leased(bench.stores.metadata, SCOPE) as held:
        bench.unpacker(held).unpack(bench.layers(), bench.config(held))
        bench.stores.metadata.content(SCOPE).delete(sha256(b"config"))
        bench.collect()
        assert bench.applier.applied == []
        assert bench.keys() == sorted(CHAIN)
    bench.collect()
    assert bench.keys() == []


def test_what_is_collected_before_it_is_held_is_made_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.unpack_and_forget(3)
    leases = type(bench.stores.metadata.leases(SCOPE))
    add = leases.add_resource

    def late(self: object, id: str, resource: Resource) -> None:
        bench.collect()
        add(self, id, resource)  # type: ignore[arg-type]

    monkeypatch.setattr(leases, "add_resource", late)
    with leased(bench.stores.metadata, SCOPE) as held:
        assert bench.unpacker(held).unpack(bench.layers(), bench.config(held)) == CHAIN[2]
        assert bench.applier.applied == [sha256(tar) for tar in TARS]
        bench.collect()
        assert bench.keys() == sorted(CHAIN)


def test_a_target_that_is_collected_before_it_is_held(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who prepares a snapshot for it is not told that it is there."""
    bench.unpack_and_forget(1)
    with leased(bench.stores.metadata, SCOPE) as held:
        snapshots = bench.stores.metadata.snapshots(held, "memory")
        exists = type(snapshots)._exists
        looks = 0

        def look(self: object, connection: object, key: str) -> bool:
            nonlocal looks
            looks += key == CHAIN[0]
            found = exists(self, connection, key)  # type: ignore[arg-type]
            return found and looks == 1

        monkeypatch.setattr(type(snapshots), "_exists", look)
        snapshots.prepare("key", "", {"containerd.io/snapshot.ref": CHAIN[0]})
        assert bench.stores.metadata.leases(SCOPE).list_resources(held.lease) == [
            Resource("key", "snapshots/memory")
        ]


def test_an_image_is_exported_whole_that_is_removed_meanwhile(bench: Bench) -> None:
    metadata = bench.stores.metadata
    parts = Parts(metadata, lambda _: bench.applier)
    made = images.archive(images.build([b"x" * 10_000, b"y" * 10_000]), "kept:1")
    import_archive(parts, SCOPE, io.BytesIO(made).read, ImportOptions(unpack=None))
    written = io.BytesIO()

    def write(data: bytes) -> None:
        if not written.tell():
            metadata.images(SCOPE).delete("kept:1")
        bench.collect()
        written.write(data)

    export_images(metadata, SCOPE, ["kept:1"], write)
    bench.collect()
    assert list(metadata.content(SCOPE).walk()) == []
    written.seek(0)
    again = import_archive(parts, SCOPE, written.read, ImportOptions(unpack=None))
    assert [image.name for image in again.images] == ["kept:1"]


def test_an_image_that_goes_before_it_is_exported(bench: Bench) -> None:
    target = Descriptor("application/vnd.oci.image.manifest.v1+json", sha256(b"gone"), 4)
    bench.stores.metadata.images(SCOPE).create(Image("gone:1", target))
    written: list[bytes] = []
    with pytest.raises(NotFound):
        export_images(bench.stores.metadata, SCOPE, ["gone:1"], written.append)
    assert written == []
    assert bench.stores.metadata.leases(SCOPE).list() == []


class Busy(MemoryContent):
    """Its first ingests cannot be opened, for ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason, self.asked = reason, 0

    def writer(self, ref: str, total: int = 0, expected: str = "") -> MemoryWriter:
        self.asked += 1
        if self.asked < 4:
            raise Unavailable(self.reason)
        return super().writer(ref, total, expected)


@dataclass
class Bytes:
    """transfer.download.Source of one blob."""

    data: bytes

    def fetch(self, descriptor: Descriptor, offset: int = 0) -> Generator[bytes, None, None]:
        yield self.data[offset:]

    def several(self) -> bool:
        return False

    def distrust(self, descriptor: Descriptor) -> bool:
        return False


def download_to(content: Busy) -> list[float]:
    """How long a download of what another process writes waited."""
    slept: list[float] = []
    flights, blob = Flights(), Descriptor("application/x", sha256(b"blob"), 4)
    sink = Sink(content, lambda: content, Reporter(silent), flights, sleep=slept.append)
    download(Bytes(b"blob"), sink, blob, Stop())
    return slept


def test_another_process_that_writes_a_blob_is_waited_for() -> None:
    content = Busy('ref "layer" locked')
    assert len(download_to(content)) == 3
    assert content.blobs == {sha256(b"blob"): b"blob"}


def test_a_daemon_that_has_died_is_not_waited_for() -> None:
    content = Busy("connection to /run/x.sock: refused")
    with pytest.raises(Unavailable, match="refused"):
        download_to(content)
    assert content.asked == 1


@dataclass
class Broken(Bytes):
    """Its connection breaks."""

    def fetch(self, descriptor: Descriptor, offset: int = 0) -> Generator[bytes, None, None]:
        yield self.data[:2]
        raise Unavailable("unexpected EOF")


def test_who_waits_for_another_download_is_cancelled() -> None:
    """With the key held, and with no slot free: in both nothing is done that tells progress."""
    blob = Descriptor("application/x", sha256(b"blob"), 4)
    told: list[str] = []
    wrong = "waiting"

    def cancelled(progress: Progress) -> None:
        told.append(progress.event)
        if progress.event == wrong:
            raise Canceled("transfer")

    content, flights, slots = MemoryContent(), Flights(), Slots(1)
    sink = Sink(content, lambda: content, Reporter(cancelled), flights, slots=slots)
    for held in (flights.hold(blob.digest), slots.hold(never)):
        with held, pytest.raises(Canceled, match="transfer"):
            download(Bytes(b"blob"), sink, blob, Stop())
    assert (told, content.blobs, content.ingests) == (["waiting"] * 2, {}, {})
    # who waits for another's unpacking as well
    layer = Layer(blob, blob.digest, "chain", "")
    unpacks = Unpacks(1)
    snapshots = MemorySnapshots()
    unpacker = Unpacker(
        content,
        snapshots,
        TakesAnything(),
        Unpacking("memory"),
        Reporter(cancelled),
        flights,
        "default",
        lambda _: None,
        unpacks,
    )
    with unpacker.flight(layer), pytest.raises(Canceled, match="transfer"):
        unpacker.unpack([layer], blob)
    with unpacks.hold(), pytest.raises(Canceled, match="transfer"):
        unpacker.unpack([layer], blob)
    assert list(snapshots.walk()) == []
    wrong = "extracting"
    with pytest.raises(Canceled, match="transfer"):
        unpacker.unpack([layer], blob)
    assert list(snapshots.walk()) == []


def test_what_a_broken_connection_brought_outlives_the_lease() -> None:
    """Also where the daemon has not heard yet that its writer is closed."""
    leased_content, content = MemoryContent(), Busy('ref "layer" locked')
    blob = Descriptor("application/vnd.oci.image.layer.v1.tar", sha256(b"blob"), 4)
    slept: list[float] = []
    sink = Sink(leased_content, lambda: content, Reporter(silent), Flights(), sleep=slept.append)
    with pytest.raises(Unavailable, match="unexpected EOF"):
        download(Broken(b"blob"), sink, blob, Stop())
    assert (len(slept), content.asked, len(content.ingests)) == (3, 4, 1)
    assert [bytes(data) for data in leased_content.ingests.values()] == [b"bl"]
