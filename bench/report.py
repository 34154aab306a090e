"""The report of a benchmark run, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.measure import Comparison, Sample
from bench.memory import Footprint
from bench.pauses import Pauses

HEAD = (
    "| what | kontti, median | containerd, median | ratio | target "
    "| CPU, kontti | containerd | ratio | rounds |"
)
TICK = 0.01
"""What the kernel counts a process's CPU in, in seconds."""


def render(
    results: Sequence[Comparison],
    footprints: Sequence[Footprint],
    machine: str,
    peers: Sequence[str],
    pauses: Pauses,
) -> str:
    """A table of medians and ratios, the commands, and what it ran on."""
    lines = [
        "# Measured against Debian's containerd",
        "",
        "Made by `make bench`: whole client commands, the same client (Debian's `ctr`) on both",
        "daemons, in turn, both on one fresh ext4 in a loop file, both with their default",
        "durability. Ratio: the median over the pairs of containerd's time divided by kontti's.",
        "",
        f"Machine: {machine}. Peers: {'; '.join(peers)}.",
        "",
        "CPU is the daemon's and its children's (with the engine, its process's), of the median",
        "round: other work on the machine changes it less than the clock's time.",
        "",
        HEAD,
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(r) for r in results),
        "",
        "| memory (PSS) | kontti | containerd | ratio |",
        "|---|---|---|---|",
        *(
            f"| {f.name} | {f.ours:.1f} MiB | {f.theirs:.1f} MiB | {f.ratio:.2f} |"
            for f in footprints
        ),
        "",
        "| `Containers.Create` beside a collection (100,000 blobs, 10,000 snapshots) | |",
        "|---|---|",
        f"| median | {pauses.median:.1f} ms |",
        f"| 99th percentile (target: 50 ms) | {pauses.p99:.1f} ms |",
        f"| longest | {pauses.worst:.1f} ms |",
        f"| the collection | {pauses.collection:.1f} s |",
        "",
        "| what | command | kontti min-max | containerd min-max |",
        "|---|---|---|---|",
        *(f"| {r.name} | {r.command} | {_range(r.ours)} | {_range(r.theirs)} |" for r in results),
        "",
    ]
    return "\n".join(lines)


def _row(result: Comparison) -> str:
    ours, theirs = (
        statistics.median(sample.seconds for sample in side)
        for side in (result.ours, result.theirs)
    )
    return (
        f"| {result.name} | {_ms(ours)} | {_ms(theirs)} | {result.ratio:.2f} "
        f"| {result.target:.1f} | {_cpu(result)} | {len(result.ours)} |"
    )


def _cpu(result: Comparison) -> str:
    if result.cpu is None:
        return "| |"
    ours, theirs = result.cpu
    return f"{ours:.2f} s | {theirs:.2f} s | {theirs / max(ours, TICK):.2f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _range(samples: Sequence[Sample]) -> str:
    values = [sample.seconds for sample in samples]
    return f"{_ms(min(values))} - {_ms(max(values))}"
