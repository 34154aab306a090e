"""The most memory that a pull takes: it is not to grow with what is pulled."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tests.support import images, registry
from tests.support.daemons import Daemon

from bench import peers
from bench.measure import timed
from bench.memory import Footprint, descendants, footprint, pss
from bench.pulls import few_files_layer, gzipped

MEGABYTES = (16, 128, 1024)
PAUSE = 0.01


class Peak:
    """The largest PSS of a daemon and all that it has started, within the block, in MiB."""

    def __init__(self, daemon: Daemon) -> None:
        self.value = 0.0
        self._pid = daemon.pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            self.value = max(self.value, sum(pss(pid) for pid in descendants(self._pid)))
            time.sleep(PAUSE)


def pull_peaks(disk: Path, scale: float) -> list[Footprint]:
    """Of pulls of one layer each, from daemons that have not done anything before."""
    return [_peak(disk / f"peak-{size}", int(size * scale) or 1) for size in MEGABYTES]


def _peak(base: Path, megabytes: int) -> Footprint:
    base.mkdir()
    (base / "registry").mkdir()
    with registry.running(base / "registry") as address, peers.running(base) as found:
        image = images.build([few_files_layer(megabytes)], pack=gzipped)
        registry.push(address, "bench", "peak", image)
        del image
        most = {}
        for daemon in found.pair:
            name = f"{address}/bench:peak"
            with Peak(daemon) as peak:
                timed(daemon, "images", "pull", "--plain-http", name)
            timed(daemon, "images", "rm", "--sync", name)
            most[daemon.kind] = peak.value
    return footprint(f"a pull's peak, a layer of {megabytes} MB", most)
