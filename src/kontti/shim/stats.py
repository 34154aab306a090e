"""A container's cgroup figures as containerd's metrics messages."""

from __future__ import annotations

import os

from kontti.linux import cgroups
from kontti.shim.stats_unified import huge_pages, rdma, unified
from kontti.wire.messages.cgroups.v1 import metrics as v1

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kontti.wire.protobuf import Message

_V1_MEMORY = (
    "cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout",
    "pgfault", "pgmajfault", "inactive_anon", "active_anon", "inactive_file", "active_file",
    "unevictable", "total_cache", "total_rss", "total_rss_huge", "total_mapped_file",
    "total_dirty", "total_writeback", "total_pgpgin", "total_pgpgout", "total_pgfault",
    "total_pgmajfault", "total_inactive_anon", "total_active_anon", "total_inactive_file",
    "total_active_file", "total_unevictable",
)  # fmt: skip
_TICK_NS = 10_000_000


def collect(groups: Mapping[str, str]) -> Message:
    """The metrics of the groups that cgroups.paths_of gave."""
    return unified(groups[""]) if "" in groups else _legacy(groups)


def _legacy(groups: Mapping[str, str]) -> v1.Metrics:
    metrics = v1.Metrics()
    if "pids" in groups:
        limit = cgroups.number(groups["pids"], "pids.max")
        current = cgroups.number(groups["pids"], "pids.current")
        metrics.pids = v1.PidsStat(current=current, limit=0 if limit == cgroups.NO_LIMIT else limit)
    if "cpuacct" in groups or "cpu" in groups:
        metrics.cpu = _legacy_cpu(groups)
    if "memory" in groups:
        metrics.memory = _legacy_memory(groups["memory"])
        control = cgroups.table(groups["memory"], "memory.oom_control")
        metrics.memory_oom_control = v1.MemoryOomControl(
            oom_kill_disable=control.get("oom_kill_disable", 0),
            under_oom=control.get("under_oom", 0),
            oom_kill=control.get("oom_kill", 0),
        )
    if "hugetlb" in groups:
        names = ("usage_in_bytes", "max_usage_in_bytes", "failcnt")
        metrics.hugetlb = [
            v1.HugetlbStat(pagesize=size, usage=usage, max=most, failcnt=failed)
            for size, usage, most, failed in huge_pages(groups["hugetlb"], names)
        ]
    if "rdma" in groups:
        used, limits = rdma(groups["rdma"])
        metrics.rdma = v1.RdmaStat(
            current=[v1.RdmaEntry(device=d, hca_handles=h, hca_objects=o) for d, h, o in used],
            limit=[v1.RdmaEntry(device=d, hca_handles=h, hca_objects=o) for d, h, o in limits],
        )
    if "blkio" in groups:
        metrics.blkio = _legacy_blkio(groups["blkio"])
    return metrics


def _legacy_cpu(groups: Mapping[str, str]) -> v1.CPUStat:
    folder = groups.get("cpuacct", groups.get("cpu", ""))
    times = cgroups.table(folder, "cpuacct.stat")
    per_cpu = [int(n) for n in cgroups.read(folder, "cpuacct.usage_percpu").split()]
    throttled = cgroups.table(groups.get("cpu", folder), "cpu.stat")
    return v1.CPUStat(
        usage=v1.CPUUsage(
            total=cgroups.number(folder, "cpuacct.usage"),
            kernel=times.get("system", 0) * _TICK_NS,
            user=times.get("user", 0) * _TICK_NS,
            per_cpu=per_cpu,
        ),
        throttling=v1.Throttle(
            periods=throttled.get("nr_periods", 0),
            throttled_periods=throttled.get("nr_throttled", 0),
            throttled_time=throttled.get("throttled_time", 0),
        ),
    )


def _legacy_memory(folder: str) -> v1.MemoryStat:
    stat = cgroups.table(folder, "memory.stat")
    memory = v1.MemoryStat(
        hierarchical_memory_limit=stat.get("hierarchical_memory_limit", 0),
        hierarchical_swap_limit=stat.get("hierarchical_memsw_limit", 0),
        usage=_entry(folder, "memory"),
        swap=_entry(folder, "memory.memsw"),
        kernel=_entry(folder, "memory.kmem"),
        kernel_tcp=_entry(folder, "memory.kmem.tcp"),
    )
    names = {n.replace("_", ""): n for n in memory.__slots__}
    for key in _V1_MEMORY:
        # pgpgin is the kernel's name, pg_pg_in the message's
        name = names.get(key.replace("_", ""))
        if name is not None:
            setattr(memory, name, stat.get(key, 0))
    return memory


def _entry(folder: str, prefix: str) -> v1.MemoryEntry:
    return v1.MemoryEntry(
        limit=cgroups.number(folder, f"{prefix}.limit_in_bytes"),
        usage=cgroups.number(folder, f"{prefix}.usage_in_bytes"),
        max=cgroups.number(folder, f"{prefix}.max_usage_in_bytes"),
        failcnt=cgroups.number(folder, f"{prefix}.failcnt"),
    )


def _legacy_blkio(folder: str) -> v1.BlkIOStat:
    def entries(name: str) -> list[v1.BlkIOEntry]:
        found = []
        for line in cgroups.read(folder, name).splitlines():
            parts = line.split()
            if len(parts) == 3 and ":" in parts[0]:
                major, _, minor = parts[0].partition(":")
                entry = v1.BlkIOEntry(
                    op=parts[1], major=int(major), minor=int(minor), value=int(parts[2])
                )
                found.append(entry)
        return found

    return v1.BlkIOStat(
        io_service_bytes_recursive=entries("blkio.throttle.io_service_bytes"),
        io_serviced_recursive=entries("blkio.throttle.io_serviced"),
    )


def oom_kills(groups: Mapping[str, str]) -> int:
    """How often the kernel has killed in the memory group."""
    if "" in groups:
        return cgroups.table(groups[""], "memory.events").get("oom_kill", 0)
    return cgroups.table(groups.get("memory", os.sep), "memory.oom_control").get("oom_kill", 0)
