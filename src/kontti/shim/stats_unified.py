"""A group of cgroup v2 as containerd's metrics message, and what both versions have alike."""

from __future__ import annotations

import os

from kontti.linux import cgroups
from kontti.wire.messages.cgroups.v2 import metrics as v2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Rdma = list[tuple[str, int, int]]

_V2_MEMORY = (
    "anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty",
    "file_writeback", "anon_thp", "inactive_anon", "active_anon", "inactive_file",
    "active_file", "unevictable", "slab_reclaimable", "slab_unreclaimable", "pgfault",
    "pgmajfault", "workingset_refault", "workingset_activate", "workingset_nodereclaim",
    "pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree", "pglazyfreed",
    "thp_fault_alloc", "thp_collapse_alloc",
)  # fmt: skip


def unified(folder: str) -> v2.Metrics:
    """A group's figures."""
    cpu = cgroups.table(folder, "cpu.stat")
    events = cgroups.table(folder, "memory.events")
    return v2.Metrics(
        pids=v2.PidsStat(
            current=cgroups.number(folder, "pids.current"),
            limit=cgroups.number(folder, "pids.max"),
        ),
        cpu=v2.CPUStat(
            usage_usec=cpu.get("usage_usec", 0),
            user_usec=cpu.get("user_usec", 0),
            system_usec=cpu.get("system_usec", 0),
            nr_periods=cpu.get("nr_periods", 0),
            nr_throttled=cpu.get("nr_throttled", 0),
            throttled_usec=cpu.get("throttled_usec", 0),
            nr_bursts=cpu.get("nr_bursts", 0),
            burst_usec=cpu.get("burst_usec", 0),
            psi=_pressure(folder, "cpu.pressure"),
        ),
        memory=_memory(folder),
        rdma=_rdma(folder),
        io=v2.IOStat(usage=_io(folder), psi=_pressure(folder, "io.pressure")),
        hugetlb=[
            v2.HugeTlbStat(pagesize=size, current=current, max=most, failcnt=failed)
            for size, current, most, failed in huge_pages(folder, ("current", "max", "events"))
        ],
        memory_events=v2.MemoryEvents(
            low=events.get("low", 0),
            high=events.get("high", 0),
            max=events.get("max", 0),
            oom=events.get("oom", 0),
            oom_kill=events.get("oom_kill", 0),
            oom_group_kill=events.get("oom_group_kill", 0),
        ),
    )


def _memory(folder: str) -> v2.MemoryStat:
    stat = cgroups.table(folder, "memory.stat")
    memory = v2.MemoryStat(
        usage=cgroups.number(folder, "memory.current"),
        usage_limit=cgroups.number(folder, "memory.max"),
        swap_usage=cgroups.number(folder, "memory.swap.current"),
        swap_limit=cgroups.number(folder, "memory.swap.max"),
        max_usage=cgroups.number(folder, "memory.peak"),
        swap_max_usage=cgroups.number(folder, "memory.swap.peak"),
        psi=_pressure(folder, "memory.pressure"),
    )
    for key in _V2_MEMORY:
        if key in memory.__slots__:
            setattr(memory, key, stat.get(key, 0))
    return memory


def _io(folder: str) -> list[v2.IOEntry]:
    found = []
    for line in cgroups.read(folder, "io.stat").splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        numbers = {k: int(values.get(k, 0)) for k in ("rbytes", "wbytes", "rios", "wios")}
        found.append(v2.IOEntry(major=int(major), minor=int(minor), **numbers))
    return found


def _pressure(folder: str, name: str) -> v2.PSIStats | None:
    """How long tasks were held up (Documentation/accounting/psi.rst); None where not counted."""
    found = {}
    for line in cgroups.read(folder, name).splitlines():
        kind, *pairs = line.split()
        found[kind] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if not found:
        return None
    return v2.PSIStats(some=_stalled(found.get("some")), full=_stalled(found.get("full")))


def _stalled(values: dict[str, str] | None) -> v2.PSIData | None:
    if values is None:
        return None
    averages = {name: float(values.get(name, 0)) for name in ("avg10", "avg60", "avg300")}
    return v2.PSIData(total=int(values.get("total", 0)), **averages)


def huge_pages(folder: str, names: tuple[str, str, str]) -> Iterator[tuple[str, int, int, int]]:
    """Page size, usage, limit or most, and failures of each size, by the files' ``names``."""
    try:
        files = sorted(os.listdir(folder))
    except OSError:
        return
    for file in files:
        kind, _, rest = file.partition(".")
        size, _, name = rest.partition(".")
        if kind != "hugetlb" or name != names[0]:
            continue
        usage, most = (cgroups.number(folder, f"hugetlb.{size}.{n}") for n in names[:2])
        last = f"hugetlb.{size}.{names[2]}"
        failed = cgroups.table(folder, last).get("max", 0) or cgroups.number(folder, last)
        yield size, usage, most, failed


def rdma(folder: str) -> tuple[Rdma, Rdma]:
    """Device, handles and objects: in use, and at most."""
    return _rdma_entries(folder, "rdma.current"), _rdma_entries(folder, "rdma.max")


def _rdma_entries(folder: str, name: str) -> Rdma:
    found = []
    for line in cgroups.read(folder, name).splitlines():
        device, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        handles, objects = (_count(values.get(f"hca_{what}", "0")) for what in ("handle", "object"))
        found.append((device, handles, objects))
    return found


def _count(text: str) -> int:
    return int(text) if text.isdigit() else (1 << 32) - 1  # "max"


def _rdma(folder: str) -> v2.RdmaStat | None:
    current, limit = rdma(folder)
    if not current and not limit:
        return None
    return v2.RdmaStat(
        current=[v2.RdmaEntry(device=d, hca_handles=h, hca_objects=o) for d, h, o in current],
        limit=[v2.RdmaEntry(device=d, hca_handles=h, hca_objects=o) for d, h, o in limit],
    )
