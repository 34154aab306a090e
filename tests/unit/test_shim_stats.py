"""A group's files as metrics messages, of both versions."""

from __future__ import annotations

from pathlib import Path

from kontti.linux.cgroups import NO_LIMIT
from kontti.shim import stats
from kontti.wire.messages.cgroups.v1 import metrics as v1
from kontti.wire.messages.cgroups.v2 import metrics as v2

UNIFIED = {
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": (
        "usage_usec 100\nuser_usec 60\nsystem_usec 40\nnr_periods 5\nnr_throttled 2\n"
        "throttled_usec 9\nnr_bursts 1\nburst_usec 8\n"
    ),
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n",
    "memory.current": "4096\n",
    "memory.max": "8192\n",
    "memory.peak": "6000\n",
    "memory.swap.current": "1\n",
    "memory.swap.max": "max\n",
    "memory.swap.peak": "2\n",
    "memory.stat": "anon 11\nfile 12\nworkingset_refault 13\nnot_ours 14\n",
    "memory.pressure": (
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
        "full avg10=0.10 avg60=0.20 avg300=0.30 total=2\n"
    ),
    "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
    "io.stat": "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:0 rbytes=9\n",
    "rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
    "rdma.max": "mlx4_0 hca_handle=max hca_object=9000\n",
    "hugetlb.2MB.current": "2097152\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.2MB.events": "max 7\n",
}


def write(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


def test_a_group_of_version_two(tmp_path: Path) -> None:
    found = stats.collect({"": write(tmp_path, UNIFIED)})
    assert isinstance(found, v2.Metrics)
    # over the wire and back: what is told is what a client reads
    told = v2.Metrics.decode(found.encode())
    assert told.pids is not None
    assert (told.pids.current, told.pids.limit) == (3, NO_LIMIT)
    cpu = told.cpu
    assert cpu is not None
    assert (cpu.usage_usec, cpu.user_usec, cpu.system_usec) == (100, 60, 40)
    assert (cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec) == (5, 2, 9)
    assert (cpu.nr_bursts, cpu.burst_usec) == (1, 8)
    assert cpu.psi is not None
    assert cpu.psi.some is not None
    assert (cpu.psi.some.avg10, cpu.psi.some.total, cpu.psi.full) == (1.5, 77, None)
    check_memory(told)
    assert told.io is not None
    assert [(e.major, e.minor, e.rbytes, e.wios) for e in told.io.usage] == [
        (8, 16, 1, 4),
        (254, 0, 9, 0),
    ]
    assert told.io.psi is None
    assert told.rdma is not None
    assert [(e.device, e.hca_handles, e.hca_objects) for e in told.rdma.current] == [
        ("mlx4_0", 2, 2000)
    ]
    assert told.rdma.limit[0].hca_handles == (1 << 32) - 1
    assert [(h.pagesize, h.current, h.max, h.failcnt) for h in told.hugetlb] == [
        ("2MB", 2097152, NO_LIMIT, 7)
    ]


def check_memory(told: v2.Metrics) -> None:
    memory, events = told.memory, told.memory_events
    assert memory is not None
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (4096, 8192, 6000)
    assert (memory.swap_usage, memory.swap_limit, memory.swap_max_usage) == (1, NO_LIMIT, 2)
    assert (memory.anon, memory.file, memory.workingset_refault) == (11, 12, 13)
    assert memory.psi is not None
    assert memory.psi.full is not None
    assert memory.psi.full.avg300 == 0.3
    assert events is not None
    assert (events.low, events.high, events.max, events.oom) == (1, 2, 3, 4)
    assert (events.oom_kill, events.oom_group_kill) == (5, 6)


def test_a_group_that_has_nothing(tmp_path: Path) -> None:
    found = stats.collect({"": str(tmp_path / "none")})
    assert isinstance(found, v2.Metrics)
    assert (found.rdma, found.hugetlb) == (None, [])
    assert found.cpu is not None
    assert found.cpu.psi is None


def test_version_ones_rarer_controllers(tmp_path: Path) -> None:
    files = {
        "hugetlb.2MB.usage_in_bytes": "10\n",
        "hugetlb.2MB.max_usage_in_bytes": "20\n",
        "hugetlb.2MB.failcnt": "3\n",
        "hugetlb.1GB.usage_in_bytes": "0\n",
        "hugetlb.2MB.rsvd.usage_in_bytes": "99\n",
        "rdma.current": "mlx4_0 hca_handle=1 hca_object=2\n",
        "rdma.max": "",
    }
    folder = write(tmp_path, files)
    found = stats.collect({"hugetlb": folder, "rdma": folder})
    assert isinstance(found, v1.Metrics)
    assert [(h.pagesize, h.usage, h.max, h.failcnt) for h in found.hugetlb] == [
        ("1GB", 0, 0, 0),
        ("2MB", 10, 20, 3),
    ]
    assert found.rdma is not None
    assert found.rdma.current[0].hca_objects == 2
    assert found.memory is None
