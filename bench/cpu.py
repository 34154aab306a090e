"""CPU time of a daemon: it says more than the clock's where others use the machine too."""

from __future__ import annotations

import os
from pathlib import Path

from bench.memory import descendants

TICKS = os.sysconf("SC_CLK_TCK")
# man 5 proc_pid_stat: utime, stime, cutime and cstime, counted from the state
TIMES = slice(11, 15)


def cpu_seconds(pid: int) -> float:
    """Of a process, of what it has started, and of those of both that have ended.

    Shims do not count: they are nobody's children.
    """
    return sum(_ticks(each) for each in descendants(pid)) / TICKS


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[TIMES]))
