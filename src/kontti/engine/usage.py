"""What containers use: cgroup metrics as figures, the same ones from either version."""

from __future__ import annotations

from kontti.engine.values import Usage
from kontti.errors import Unimplemented
from kontti.tasks.base import Metric
from kontti.wire.typeurl import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kontti.wire.messages.cgroups.v1.metrics import BlkIOEntry
    from kontti.wire.messages.cgroups.v1.metrics import Metrics as MetricsV1
    from kontti.wire.messages.cgroups.v2.metrics import Metrics as MetricsV2

V1, V2 = "io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics"
# version 1 has no word for no limit: the largest number of pages, which is past any memory
UNLIMITED = 1 << 62


def usage(metric: Metric) -> Usage:
    """The figures of a metric; raises Unimplemented for a kind that is not known."""
    name = name_of(metric.data.type_url)
    if name == V1:
        from kontti.wire.messages.cgroups.v1.metrics import Metrics as Version1

        return _v1(metric, Version1.decode(metric.data.value))
    if name == V2:
        from kontti.wire.messages.cgroups.v2.metrics import Metrics as Version2

        return _v2(metric, Version2.decode(metric.data.value))
    raise Unimplemented(f"metrics of type {metric.data.type_url}")


def cpu_percent(before: Usage, after: Usage) -> float:
    """Of one processor, between two samples."""
    passed = after.sampled_at - before.sampled_at
    return max(0.0, (after.cpu_ns - before.cpu_ns) / passed * 100) if passed > 0 else 0.0


def _v1(metric: Metric, found: MetricsV1) -> Usage:
    memory, pids = found.memory, found.pids
    used = memory.usage.usage if memory and memory.usage else 0
    limit = memory.usage.limit if memory and memory.usage else 0
    entries = found.blkio.io_service_bytes_recursive if found.blkio else ()
    return Usage(
        id=metric.id,
        sampled_at=metric.timestamp,
        cpu_ns=found.cpu.usage.total if found.cpu and found.cpu.usage else 0,
        memory_bytes=max(0, used - (memory.total_inactive_file if memory else 0)),
        memory_limit_bytes=_limit(limit),
        pids=pids.current if pids else 0,
        pids_limit=_limit(pids.limit if pids else 0),
        block_read_bytes=_bytes(entries, "read"),
        block_write_bytes=_bytes(entries, "write"),
    )


def _bytes(entries: Iterable[BlkIOEntry], operation: str) -> int:
    return sum(entry.value for entry in entries if entry.op.lower() == operation)


def _v2(metric: Metric, found: MetricsV2) -> Usage:
    memory, pids = found.memory, found.pids
    devices = found.io.usage if found.io else ()
    return Usage(
        id=metric.id,
        sampled_at=metric.timestamp,
        cpu_ns=found.cpu.usage_usec * 1000 if found.cpu else 0,
        memory_bytes=max(0, memory.usage - memory.inactive_file) if memory else 0,
        memory_limit_bytes=_limit(memory.usage_limit if memory else 0),
        pids=pids.current if pids else 0,
        pids_limit=_limit(pids.limit if pids else 0),
        block_read_bytes=sum(device.rbytes for device in devices),
        block_write_bytes=sum(device.wbytes for device in devices),
    )


def _limit(number: int) -> int:
    return 0 if number >= UNLIMITED else number
