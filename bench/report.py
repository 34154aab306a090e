"""The report of a benchmark run, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.measure import Comparison
from bench.memory import Footprint
from bench.pauses import Pauses


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
        "| what | kontti, median | containerd, median | ratio | target | rounds |",
        "|---|---|---|---|---|---|",
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
    ours, theirs = statistics.median(result.ours), statistics.median(result.theirs)
    return (
        f"| {result.name} | {_ms(ours)} | {_ms(theirs)} | {result.ratio:.2f} "
        f"| {result.target:.1f} | {len(result.ours)} |"
    )


def _memory(found: Footprint) -> str:
    return f"| {found.name} | {found.ours:.1f} MiB | {found.theirs:.1f} MiB | {found.ratio:.2f} |"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _range(values: Sequence[float]) -> str:
    return f"{_ms(min(values))} - {_ms(max(values))}"
