"""Pulls from a registry on loopback: by Debian's ``ctr`` from both daemons, and by the engine."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard
from tests.support import images, registry
from tests.support.daemons import Daemon
from tests.support.images import Entry, Image, directory

from bench import engine
from bench.fixtures import SEED, many_files_layer, text
from bench.measure import Comparison, Sample, interleaved, metered, timed
from bench.peers import Peers
from kontti.diff.compression import GZIP, compressor


@dataclass(frozen=True)
class Fixture:
    """An image at the registry, and how much faster its pull is to be.

    ``erofs`` is the target of a pull to EROFS, 0 where that is not measured.
    """

    name: str
    tag: str
    target: float
    build: Callable[[], Image]
    gzip: bool = True
    erofs: float = 0


def gzipped(tar: bytes) -> bytes:
    packer = compressor(GZIP)
    return packer.compress(tar) + packer.flush()


def zstd(tar: bytes) -> bytes:
    return zstandard.compress(tar, 3)


def few_files_layer(megabytes: float, files: int = 13, seed: int = 0) -> bytes:
    """``files`` large files, ``megabytes`` in all."""
    rng = random.Random(SEED + seed)
    words = [rng.randbytes(rng.randint(3, 12)) for _ in range(3000)]
    size = int(megabytes * (1 << 20)) // files
    block = b"".join(text(rng, words, 60_000) for _ in range(20))
    data = (block * (size // len(block) + 1))[:size]
    names = (f"data/{seed}-{number}" for number in range(files))
    return images.layer([directory("data"), *(Entry(name, data) for name in names)])


def five_layers(scale: float) -> Iterator[bytes]:
    """Of 717 MB together: two of many files, three of few."""
    yield few_files_layer(137 * scale, seed=1)
    yield many_files_layer(int(15_000 * scale), int(170 * scale) or 1, "one")
    yield few_files_layer(120 * scale, seed=2)
    yield many_files_layer(int(15_000 * scale), int(170 * scale) or 1, "two")
    yield few_files_layer(120 * scale, seed=3)


def fixtures(scale: float) -> tuple[Fixture, ...]:
    """What is pulled; ``scale`` makes all of it smaller, or larger."""

    def few() -> Image:
        return images.build([few_files_layer(258 * scale)], pack=gzipped)

    def many(pack: Callable[[bytes], bytes], suffix: str) -> Image:
        layer = many_files_layer(int(37_400 * scale), int(391 * scale) or 1)
        return images.build([layer], pack=pack, suffix=suffix)

    def five(pack: Callable[[bytes], bytes], suffix: str) -> Image:
        return images.build(five_layers(scale), pack=pack, suffix=suffix)

    return (
        Fixture("258 MB in 13 files", "few", 2.0, few),
        Fixture("391 MB in 38,000 entries", "many", 3.0, lambda: many(gzipped, "+gzip"), erofs=4),
        Fixture("five layers of 717 MB", "five", 4.0, lambda: five(gzipped, "+gzip"), erofs=5),
        Fixture(
            "391 MB in 38,000 entries, zstd", "many-zstd", 2.0, lambda: many(zstd, "+zstd"), False
        ),
        Fixture(
            "five layers of 717 MB, zstd", "five-zstd", 3.0, lambda: five(zstd, "+zstd"), False
        ),
    )


def pulled(daemon: Daemon, name: str, snapshotter: str = "") -> Sample:
    """One ``ctr images pull``; the image is removed afterwards."""
    to = ("--snapshotter", snapshotter) if snapshotter else ()
    sample = metered(daemon, "images", "pull", "--plain-http", *to, name)
    timed(daemon, "images", "rm", "--sync", name)
    subprocess.run(["sync"], check=True)
    return sample


def pull_rows(
    peers: Peers, base: Path, disk: Path, rounds: int, scale: float
) -> Iterator[Comparison]:
    """Each fixture pulled by the same client from both, and by our engine against that."""
    (base / "registry").mkdir()
    with registry.running(base / "registry") as address:
        for fixture in fixtures(scale):
            print(f"pull of {fixture.name}")
            image = fixture.build()
            registry.push(address, "bench", fixture.tag, image)
            del image
            name = f"{address}/bench:{fixture.tag}"
            rows = _Rows(peers, name, disk / "engine", rounds, gzip=fixture.gzip)
            yield from rows.of(f"pull of {fixture.name}", fixture.target)
            if fixture.erofs:
                yield from rows.of(f"pull of {fixture.name}, erofs", fixture.erofs, "erofs")


class _Rows:
    """Comparisons of one image's pulls."""

    def __init__(self, peers: Peers, name: str, root: Path, rounds: int, *, gzip: bool) -> None:
        self._name, self._root, self._rounds = name, root, rounds
        self._pair, self._theirs = peers.pair, "containerd"
        if gzip:
            self._pair, self._theirs = peers.quicker(lambda daemon, _: pulled(daemon, name))

    def of(self, title: str, target: float, snapshotter: str = "") -> Iterator[Comparison]:
        """By the client, and by the engine; ``snapshotter`` is ours alone: they have overlayfs."""
        to = f"--snapshotter {snapshotter} " if snapshotter else ""
        command = f"ctr images pull --plain-http {to}IMAGE; {self._theirs}"

        def client(daemon: Daemon, _number: int) -> Sample:
            return pulled(daemon, self._name, snapshotter if daemon.kind == "kontti" else "")

        def by_engine(daemon: Daemon, number: int) -> Sample:
            if daemon.kind != "kontti":
                return pulled(daemon, self._name)
            action = ("pull-with", self._name, snapshotter) if to else ("pull", self._name)
            return engine.measured(self._root, *action)

        yield interleaved(title, command, target, self._rounds, client, self._pair)
        command = f"Engine.pull(IMAGE) by {snapshotter or 'overlayfs'}; {self._theirs}"
        yield interleaved(f"{title}, engine", command, target, self._rounds, by_engine, self._pair)
