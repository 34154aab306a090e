"""How much memory daemons and shims hold: PSS, which counts a shared page in parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.daemons import Daemon

CONTAINERS_SHIM = "kontti-shim"
"""What a shim is called once it keeps a container; it was forked from the zygote as the spares."""


@dataclass(frozen=True)
class Footprint:
    """MiB of ours and theirs."""

    name: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def footprint(name: str, values: dict[str, float]) -> Footprint:
    """From MiB by kind of daemon."""
    return Footprint(name, values["kontti"], values["containerd"])


def pss(pid: int) -> float:
    """A process's proportional set size in MiB; 0 for one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def descendants(pid: int) -> list[int]:
    """A process and all that it started, from whichever of its threads; [] for one that is gone."""
    try:
        children = [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except OSError:
        return []
    return [pid, *(found for child in children for found in descendants(child))]


def daemon_pss(daemon: Daemon) -> float:
    """A daemon with its helpers (for kontti: the zygote and the spare shims), shims not counted."""
    return sum(pss(pid) for pid in {*descendants(daemon.pid), *spare_shims(daemon)})


def spare_shims(daemon: Daemon) -> list[int]:
    """Processes that were forked ahead of need: of the zygote's session, and no one's child."""
    zygotes = [pid for pid in descendants(daemon.pid) if pid != daemon.pid]
    lines = {command(pid) for pid in zygotes}
    return [
        pid
        for pid in everyone()
        if command(pid) in lines and parent(pid) == 1 and name(pid) != CONTAINERS_SHIM
    ]


def name(pid: int) -> str:
    """What a process calls itself, "" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def everyone() -> list[int]:
    """All pids."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def command(pid: int) -> bytes:
    """A process's command line, b"" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def parent(pid: int) -> int:
    """A process's parent, 0 for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def shims_of(pids: list[int]) -> set[int]:
    """The shims of containers' first processes: their parents."""
    return {parent(pid) for pid in pids} - {0}
