"""The processes of a container, as proc(5) tells of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from kontti.engine.values import ProcessUsage
from kontti.errors import Error
from kontti.oci.accounts import Accounts, read_accounts

MAX_COMMAND = 4096
STATES = {
    "R": "running", "S": "sleeping", "D": "waiting", "T": "stopped", "t": "traced",
    "Z": "zombie", "X": "dead", "I": "idle",
}  # fmt: skip


def processes(pids: Iterable[int], first: int) -> list[ProcessUsage]:
    """Of each that is there still, by number; users by the names of process ``first``'s root."""
    accounts = _accounts(first)
    found = [_process(pid, accounts) for pid in sorted(pids)]
    return [process for process in found if process is not None]


def _accounts(pid: int) -> Accounts:
    try:
        return read_accounts(f"/proc/{pid}/root")
    except (Error, OSError):
        # no accounts, or none that can be read: numbers will do
        return Accounts((), ())


def _process(pid: int, accounts: Accounts) -> ProcessUsage | None:
    try:
        status = os.stat(f"/proc/{pid}")
        stat = _read(pid, "stat")
        words = _read(pid, "cmdline").rstrip(b"\0").split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None  # it has ended
    # a name may hold blanks and parentheses
    name, _, rest = stat.partition(b" (")[2].rpartition(b") ")
    fields = rest.split()
    tick = os.sysconf("SC_CLK_TCK")
    cpu = (int(fields[11]) + int(fields[12])) / tick
    lived = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / tick
    user = accounts.user_by_id(status.st_uid)
    command = b" ".join(words) or b"[" + name + b"]"
    return ProcessUsage(
        pid=pid,
        ppid=int(fields[1]),
        user=user.name if user else str(status.st_uid),
        state=STATES.get(fields[0].decode(), "unknown"),
        cpu_percent=round(cpu / lived * 100, 1) if lived > 0 else 0.0,
        cpu_seconds=round(cpu, 2),
        memory_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        command=command.decode(errors="replace"),
    )


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read(MAX_COMMAND)
