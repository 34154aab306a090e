"""Out of the content store: an image to an archive, and to a registry that has nothing of it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support import images, registry
from tests.support.daemons import Daemon

from bench import engine
from bench.measure import Comparison, Sample, interleaved, metered, timed
from bench.peers import Pair
from bench.pulls import five_layers, gzipped

NAME = "docker.io/library/five:bench"
TARGET = 2.0


def transfer_rows(
    pair: Pair, base: Path, disk: Path, rounds: int, scale: float
) -> Iterator[Comparison]:
    """Export and push of the image of five layers, by the client and by our engine."""
    print("export and push")
    archive = base / "five.tar"
    archive.write_bytes(images.archive(images.build(five_layers(scale), pack=gzipped), NAME))
    for daemon in pair:
        timed(daemon, "images", "import", "--no-unpack", str(archive))
    root = disk / "engine-transfers"
    engine.measured(root, "import", str(archive))
    size = archive.stat().st_size >> 20
    archive.unlink()
    yield from _exports(pair, root, disk / "exported.tar", rounds, size)
    yield from _pushes(pair, root, base, rounds, size)
    for daemon in pair:
        timed(daemon, "images", "rm", "--sync", NAME)


def _exports(pair: Pair, root: Path, target: Path, rounds: int, size: int) -> Iterator[Comparison]:
    def client(daemon: Daemon, _number: int) -> Sample:
        return _cleared(target, metered(daemon, "images", "export", str(target), NAME))

    def by_engine(daemon: Daemon, number: int) -> Sample:
        if daemon.kind != "kontti":
            return client(daemon, number)
        return _cleared(target, engine.measured(root, "save", NAME, str(target)))

    title = "export of five layers"
    command = f"ctr images export FILE IMAGE ({size} MiB)"
    yield interleaved(title, command, TARGET, rounds, client, pair)
    yield interleaved(f"{title}, engine", "Engine.save", TARGET, rounds, by_engine, pair)


def _cleared(target: Path, sample: Sample) -> Sample:
    target.unlink()
    subprocess.run(["sync"], check=True)
    return sample


def _pushes(pair: Pair, root: Path, base: Path, rounds: int, size: int) -> Iterator[Comparison]:
    """Each to a new registry: there is nothing that it has, or could be mounted from."""

    def client(daemon: Daemon, _number: int) -> Sample:
        with tempfile.TemporaryDirectory(dir=base) as data, registry.running(Path(data)) as address:
            name = f"{address}/bench:pushed"
            return metered(daemon, "images", "push", "--plain-http", name, NAME)

    def by_engine(daemon: Daemon, number: int) -> Sample:
        if daemon.kind != "kontti":
            return client(daemon, number)
        with tempfile.TemporaryDirectory(dir=base) as data, registry.running(Path(data)) as address:
            return engine.measured(root, "push", f"{address}/bench:pushed", NAME)

    title = "push of five layers"
    command = f"ctr images push --plain-http NAME IMAGE ({size} MiB)"
    yield interleaved(title, command, TARGET, rounds, client, pair)
    yield interleaved(f"{title}, engine", "Engine.push", TARGET, rounds, by_engine, pair)
