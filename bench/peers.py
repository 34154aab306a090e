"""The daemons that are compared: ours, and Debian's with and without unpigz."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import daemons
from tests.support.daemons import Daemon

from bench.measure import Sample

Pair = tuple[Daemon, Daemon]
ALONE = {"CONTAINERD_DISABLE_PIGZ": "1"}
WITH_UNPIGZ = {"CONTAINERD_DISABLE_PIGZ": ""}
TRIES = 2


@dataclass(frozen=True)
class Peers:
    """containerd inflates layers by itself, or by an ``unpigz`` that it finds."""

    ours: Daemon
    alone: Daemon
    unpigz: Daemon

    @property
    def pair(self) -> Pair:
        """Ours and theirs, for what has no gzip in it."""
        return self.ours, self.alone

    def quicker(self, measure: Callable[[Daemon, int], Sample]) -> tuple[Pair, str]:
        """Ours and the quicker one of theirs, the best of a few tries each; how to call that."""
        tries = [
            (measure(d, n).seconds, d) for n in range(TRIES) for d in (self.alone, self.unpigz)
        ]
        best = min(tries, key=lambda found: found[0])[1]
        return (self.ours, best), f"containerd with{'' if best is self.unpigz else 'out'} unpigz"


@contextlib.contextmanager
def running(disk: Path) -> Iterator[Peers]:
    """All three on ``disk``."""
    with (
        daemons.running("kontti", disk / "kontti") as ours,
        daemons.running("containerd", disk / "containerd", environment=ALONE) as alone,
        daemons.running(
            "containerd", disk / "containerd-unpigz", environment=WITH_UNPIGZ
        ) as unpigz,
    ):
        yield Peers(ours, alone, unpigz)
