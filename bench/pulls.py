"""Pulls from a registry on loopback: by Debian's ``ctr`` from both daemons, and by the engine."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard
from tests.support import images, registry
from tests.support.daemons import Daemon
from tests.support.images import Entry, Image, directory

from bench.fixtures import SEED, many_files_layer, text
from bench.measure import Comparison, interleaved, timed
from kontti.diff.compression import GZIP, compressor

PULL = """
import sys, time
from kontti import Engine
with Engine(sys.argv[1], state=sys.argv[1] + "-state") as engine:
    start = time.perf_counter()
    engine.pull(sys.argv[2], plain_http=True)
    print(time.perf_counter() - start)
    engine.remove_image(sys.argv[2])
"""


@dataclass(frozen=True)
class Fixture:
    """An image at the registry, and how much faster its pull is to be."""

    name: str
    tag: str
    target: float
    build: Callable[[], Image]


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
        Fixture("391 MB in 38,000 entries", "many", 3.0, lambda: many(gzipped, "+gzip")),
        Fixture("five layers of 717 MB", "five", 4.0, lambda: five(gzipped, "+gzip")),
        Fixture("391 MB in 38,000 entries, zstd", "many-zstd", 2.0, lambda: many(zstd, "+zstd")),
        Fixture("five layers of 717 MB, zstd", "five-zstd", 3.0, lambda: five(zstd, "+zstd")),
    )


def pulled(daemon: Daemon, name: str) -> float:
    """Seconds of one ``ctr images pull``; the image is removed afterwards."""
    seconds = timed(daemon, "images", "pull", "--plain-http", name)
    timed(daemon, "images", "rm", "--sync", name)
    subprocess.run(["sync"], check=True)
    return seconds


def pulled_by_engine(root: Path, name: str) -> float:
    """Seconds of one pull by an embedded engine, opened before."""
    command = [sys.executable, "-c", PULL, str(root), name]
    done = subprocess.run(command, check=True, capture_output=True, env={**os.environ}, timeout=300)
    subprocess.run(["sync"], check=True)
    return float(done.stdout)


def pull_rows(
    pair: tuple[Daemon, Daemon], base: Path, disk: Path, rounds: int, scale: float
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

            def client(daemon: Daemon, _number: int, name: str = name) -> float:
                return pulled(daemon, name)

            def engine(daemon: Daemon, _number: int, name: str = name) -> float:
                if daemon.kind == "kontti":
                    return pulled_by_engine(disk / "engine", name)
                return pulled(daemon, name)

            title, command = f"pull of {fixture.name}", "ctr images pull --plain-http IMAGE"
            target = fixture.target
            yield interleaved(title, command, target, rounds, client, pair)
            command = "Engine.pull(IMAGE), ctr images pull"
            yield interleaved(f"{title}, engine", command, target, rounds, engine, pair)
