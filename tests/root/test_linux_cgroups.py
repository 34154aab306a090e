"""Control groups: how the host has them, what is in one, what it uses, and its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kontti.linux import cgroups
from kontti.shim import stats

pytestmark = pytest.mark.root
CONTROLLERS = ("pids", "memory", "cpuacct", "cpu", "blkio")


class Group:
    """A group of its own in each controller's hierarchy, or the one group of a unified host."""

    def __init__(self, name: str) -> None:
        ours = cgroups.paths_of(os.getpid())
        self.unified = "" in ours
        wanted = ("",) if self.unified else [c for c in CONTROLLERS if c in ours]
        # beside the root, not below a group that may have limits or processes
        self.folders = {c: f"{self.top(c, ours[c])}/{name}" for c in wanted}
        for folder in self.folders.values():
            os.makedirs(folder, exist_ok=True)

    @staticmethod
    def top(controller: str, path: str) -> str:
        parts = Path(path).parts
        return "/sys/fs/cgroup" if not controller else os.path.join(*parts[:5])

    def add(self, pid: int) -> None:
        for folder in set(map(os.path.realpath, self.folders.values())):
            Path(folder, "cgroup.procs").write_text(str(pid))

    def write(self, controller: str, v1: str, v2: str, value: str) -> None:
        if self.unified:
            Path(self.folders[""], v2).write_text(value)
        else:
            Path(self.folders[controller], v1).write_text(value)

    def remove(self) -> None:
        deadline = time.monotonic() + 10
        while any(map(os.path.exists, self.folders.values())) and time.monotonic() < deadline:
            for folder in self.folders.values():
                cgroups.remove(folder)


@pytest.fixture
def group() -> Iterator[Group]:
    made = Group(f"kontti-test-{os.getpid()}")
    yield made
    made.remove()
    assert [f for f in made.folders.values() if os.path.exists(f)] == []


def python(group: Group, script: str) -> subprocess.Popen[bytes]:
    """Runs ``script`` once it is in the group; it may say that it is done."""
    started = subprocess.Popen(
        [sys.executable, "-I", "-c", f"input()\n{script}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    group.add(started.pid)
    assert started.stdin
    started.stdin.write(b"\n")
    started.stdin.flush()
    return started


def figures(group: Group) -> Any:
    """Metrics of the first or the second version: which, the host says."""
    return stats.collect(group.folders)


def end(started: subprocess.Popen[bytes]) -> int:
    with started:
        started.kill()
    return started.returncode


def test_the_mode_is_what_is_mounted() -> None:
    kinds = {
        line.split()[4]: line.split(" - ")[1].split()[0]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    }
    if kinds.get("/sys/fs/cgroup") == "cgroup2":
        wanted = cgroups.UNIFIED
    elif kinds.get("/sys/fs/cgroup/unified") == "cgroup2":
        wanted = cgroups.HYBRID
    else:
        wanted = cgroups.LEGACY
    assert cgroups.mode() == wanted


def test_a_tree_without_the_second_version_is_legacy(tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    assert cgroups.mode(str(tmp_path)) == cgroups.LEGACY
    assert not cgroups.hybrid_with_controllers(str(tmp_path))
    (tmp_path / "unified/cgroup.controllers").write_text("\n")
    assert not cgroups.hybrid_with_controllers(str(tmp_path))
    (tmp_path / "unified/cgroup.controllers").write_text("hugetlb\n")
    assert cgroups.hybrid_with_controllers(str(tmp_path))


def test_files_of_a_group_are_numbers_and_tables(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("42\n")
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "minus").write_text("-1\n")
    (tmp_path / "odd").write_text("what\n")
    (tmp_path / "table").write_text("a 1\nodd\nb x\nc 2 3\n\nd 4\n")
    read = {name: cgroups.number(str(tmp_path), name) for name in os.listdir(tmp_path)}
    assert (read["number"], read["max"], read["minus"]) == (42, cgroups.NO_LIMIT, -1)
    assert read["odd"] == cgroups.number(str(tmp_path), "none") == 0
    assert cgroups.table(str(tmp_path), "table") == {"a": 1, "d": 4}
    assert cgroups.table(str(tmp_path), "none") == {}


def test_a_process_is_found_in_its_groups(group: Group) -> None:
    started = python(group, "input()")
    try:
        found = cgroups.paths_of(started.pid)
        for controller, folder in group.folders.items():
            assert os.path.realpath(found[controller]) == os.path.realpath(folder)
    finally:
        end(started)
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        cgroups.paths_of(started.pid)


def test_processes_of_groups_below_count(group: Group) -> None:
    folder = next(iter(group.folders.values()))
    os.makedirs(f"{folder}/a/b")
    # in a unified tree a process may be in a leaf only
    with (
        subprocess.Popen(["/bin/sleep", "60"]) as one,
        subprocess.Popen(["/bin/sleep", "60"]) as two,
    ):
        try:
            Path(f"{folder}/a/b/cgroup.procs").write_text(str(one.pid))
            assert cgroups.pids(folder) == [one.pid]
            os.mkdir(f"{folder}/c")
            Path(f"{folder}/c/cgroup.procs").write_text(str(two.pid))
            assert sorted(cgroups.pids(folder)) == sorted([one.pid, two.pid])
            cgroups.remove(folder)
            assert sorted(cgroups.pids(folder)) == sorted([one.pid, two.pid])
        finally:
            one.kill()
            two.kill()
    assert cgroups.pids(f"{folder}/nosuch") == []
    cgroups.remove(f"{folder}/nosuch")


def test_figures_are_of_what_ran(group: Group) -> None:
    group.write("pids", "pids.max", "pids.max", "37")
    group.write("memory", "memory.limit_in_bytes", "memory.max", str(256 << 20))
    script = """
import time
held = bytearray(b"x" * (32 << 20))
while time.process_time() < 0.2: pass
print("ready", flush=True)
input()
"""
    started = python(group, script)
    try:
        assert started.stdout
        assert started.stdout.readline() == b"ready\n"
        found = figures(group)
    finally:
        end(started)
    assert (found.pids.current, found.pids.limit) == (1, 37)
    if group.unified:
        assert found.cpu.usage_usec >= 150_000
        assert (found.memory.usage >= 32 << 20, found.memory.usage_limit) == (True, 256 << 20)
    else:
        assert found.cpu.usage.total >= 150_000_000
        assert found.cpu.usage.user > 0
        usage = found.memory.usage
        assert (usage.usage >= 32 << 20, usage.limit) == (True, 256 << 20)
        assert found.memory.rss >= 32 << 20


def test_no_limit_is_none(group: Group) -> None:
    found = figures(group)
    assert found.pids.current == 0
    assert found.pids.limit == (cgroups.NO_LIMIT if group.unified else 0)


def test_running_out_of_memory_is_counted(group: Group) -> None:
    assert stats.oom_kills(group.folders) == 0
    group.write("memory", "memory.limit_in_bytes", "memory.max", str(24 << 20))
    started = python(group, "held = bytearray(b'x' * (512 << 20))\nprint('survived')")
    with started:
        assert started.stdout
        assert started.stdout.read() == b""
    assert started.returncode == -9
    assert stats.oom_kills(group.folders) == 1
