"""The difference that a container's changes make: ``ctr snapshots diff``."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemons import Daemon

from bench.measure import Comparison, Sample, interleaved, metered, timed
from bench.peers import Pair

KEY = "changed"
PLAIN = "application/vnd.oci.image.layer.v1.tar"
TARGET = 2.0


def diff_rows(
    pair: Pair, base: Path, rounds: int, archive: Path, name: str
) -> Iterator[Comparison]:
    """A third of the files of image ``name``, which is in ``archive``, is changed."""
    print("difference")
    for daemon in pair:
        timed(daemon, "snapshots", "prepare", KEY, _unpacked(daemon, archive))
        with _mounted(daemon, base) as root:
            count = _change(root)

    def measure(daemon: Daemon, number: int, media_type: str = "") -> Sample:
        # a layer that is there already need not be kept
        with _mounted(daemon, base) as root:
            (root / "round").write_text(f"{number} {media_type}\n")
        subprocess.run(["sync"], check=True)
        options = ("--media-type", media_type) if media_type else ()
        return metered(daemon, "snapshots", "diff", *options, KEY)

    title, command = f"difference of {count} changed files", "ctr snapshots diff KEY"
    yield interleaved(title, command, TARGET, rounds, measure, pair)

    def plain(daemon: Daemon, number: int) -> Sample:
        return measure(daemon, number, PLAIN)

    command = f"ctr snapshots diff --media-type {PLAIN} KEY"
    yield interleaved(f"{title}, uncompressed", command, TARGET, rounds, plain, pair)
    for daemon in pair:
        timed(daemon, "snapshots", "rm", KEY)
        timed(daemon, "images", "rm", "--sync", name)


def _committed(daemon: Daemon) -> dict[str, str]:
    """Snapshots' parents, by name."""
    listed = daemon.ctr("debian", "snapshots", "ls").stdout.decode().splitlines()[1:]
    rows = [line.split() for line in listed]
    return {row[0]: row[1] if len(row) > 2 else "" for row in rows if row[-1] == "Committed"}


def _unpacked(daemon: Daemon, archive: Path) -> str:
    """The snapshot of the image in ``archive``, which is imported."""
    before = _committed(daemon)
    timed(daemon, "images", "import", str(archive))
    after = _committed(daemon)
    (top,) = after.keys() - before.keys() - set(after.values())
    return top


@contextlib.contextmanager
def _mounted(daemon: Daemon, base: Path) -> Iterator[Path]:
    """The snapshot, as a container would see it."""
    target = base / "mounted"
    target.mkdir(exist_ok=True)
    command = daemon.ctr("debian", "snapshots", "mounts", str(target), KEY)
    subprocess.run(["sh", "-c", command.stdout], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)


def _change(root: Path) -> int:
    """Change every third file of the image; how many those are."""
    files = sorted(path for path in (root / "data").rglob("*") if path.is_file())[::3]
    for path in files:
        with path.open("ab") as file:
            file.write(b"changed\n")
    return len(files)
