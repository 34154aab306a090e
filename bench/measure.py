"""Times whole client commands, interleaved between the two daemons."""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.support.daemons import DEBIAN_CTR, Daemon

from bench.cpu import cpu_seconds

LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Sample:
    """Seconds of one round, and those of CPU that the daemon and its children took."""

    seconds: float
    cpu: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Samples per round. ``ratio`` is theirs over ours: how many times as fast."""

    name: str
    command: str
    target: float
    ours: tuple[Sample, ...]
    theirs: tuple[Sample, ...]

    @property
    def ratio(self) -> float:
        return statistics.median(
            t.seconds / o.seconds for o, t in zip(self.ours, self.theirs, strict=True)
        )

    @property
    def cpu(self) -> tuple[float, float] | None:
        """The medians of both sides' CPU seconds, None where they were not taken."""
        ours = [s.cpu for s in self.ours if s.cpu is not None]
        theirs = [s.cpu for s in self.theirs if s.cpu is not None]
        return (statistics.median(ours), statistics.median(theirs)) if ours and theirs else None


def interleaved(
    name: str,
    command: str,
    target: float,
    rounds: int,
    measure: Callable[[Daemon, int], float | Sample],
    daemons: tuple[Daemon, Daemon],
) -> Comparison:
    """``measure(daemon, round)`` in turn on ours and theirs, after a round that does not count."""
    ours, theirs = daemons
    pairs = []
    for number in range(rounds + 1):
        first, second = (ours, theirs) if number % 2 else (theirs, ours)
        found = {d.kind: _sample(measure(d, number)) for d in (first, second)}
        if number:
            pairs.append((found[ours.kind], found[theirs.kind]))
    return Comparison(name, command, target, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs))


def _sample(measured: float | Sample) -> Sample:
    return measured if isinstance(measured, Sample) else Sample(measured)


def started(daemon: Daemon, args: Sequence[str]) -> subprocess.Popen[bytes]:
    """Debian's ``ctr``, whichever the daemon."""
    return subprocess.Popen(
        [DEBIAN_CTR, "--address", daemon.address, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code, as soon as there is one: a wait with a timeout sleeps up to 50 ms at a time
    (subprocess.Popen.wait), which is as long as what is measured."""
    pidfd = os.pidfd_open(process.pid)
    try:
        if not select.select([pidfd], [], [], LIMIT_SECONDS)[0]:
            process.kill()
            raise TimeoutError(f"{process.args!r} did not end")
    finally:
        os.close(pidfd)
    return process.wait()


def timed(daemon: Daemon, *args: str) -> float:
    """Wall seconds of one ``ctr``; raises where it fails."""
    return timed_together(daemon, [args])


def metered(daemon: Daemon, *args: str) -> Sample:
    """The same with the CPU that it cost the daemon."""
    before = cpu_seconds(daemon.pid)
    seconds = timed(daemon, *args)
    return Sample(seconds, cpu_seconds(daemon.pid) - before)


def timed_together(daemon: Daemon, commands: Sequence[Sequence[str]]) -> float:
    """Wall seconds until all of ``commands``, started at once, have ended well."""
    start = time.perf_counter()
    running = [started(daemon, args) for args in commands]
    codes = [ended(process) for process in running]
    seconds = time.perf_counter() - start
    if any(codes):
        raise RuntimeError(f"{daemon.kind}: exit codes {codes}")
    return seconds
