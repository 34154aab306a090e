"""What a daemon, its zygote and its shims hold: descriptors, threads, memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SETTLE_SECONDS = 15.0
POOLS = 24
"""Threads that a daemon's pools may still start: they fill up as they are used."""
SLACK_KIB = 8 << 10
"""Of memory: an allocator keeps what it was once given."""


@dataclass(frozen=True)
class Figures:
    """Of one process. ``rss`` in KiB."""

    name: str
    descriptors: tuple[str, ...]
    threads: int
    rss: int


def of(pid: int) -> Figures:
    """A process's, now; raises FileNotFoundError, ProcessLookupError where it is gone."""
    open_now = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            # each thread of a pool has a connection of its own to the database
            if "/meta.db" not in target:
                open_now.append("socket" if target.startswith("socket:") else target)
    status = _status(pid)
    return Figures(
        Path(f"/proc/{pid}/comm").read_text().strip(),
        tuple(sorted(open_now)),
        int(status["Threads"]),
        int(status["VmRSS"].split()[0]),
    )


def peak(pid: int) -> int:
    """The most memory that a process ever held, KiB."""
    return int(_status(pid)["VmHWM"].split()[0])


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def family(daemon: int) -> dict[int, Figures]:
    """The daemon and what it started and waits for: its zygote, a worker ahead of need."""
    found = {}
    for pid in (daemon, *_children(daemon)):
        with contextlib.suppress(OSError, KeyError):
            found[pid] = of(pid)
    return found


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def grown(before: Mapping[int, Figures], after: Mapping[int, Figures], slack: int) -> list[str]:
    """What the processes of ``before`` hold more of, ``slack`` KiB of memory apart."""
    said = []
    for pid, old in before.items():
        new = after.get(pid)
        if new is None:
            continue
        extra = list(new.descriptors)
        for name in old.descriptors:
            if name in extra:
                extra.remove(name)
        if len(new.descriptors) > len(old.descriptors):
            said.append(f"{new.name} {pid}: open {extra}")
        if new.threads > old.threads + POOLS:
            said.append(f"{new.name} {pid}: {old.threads} threads became {new.threads}")
        if new.rss > old.rss + slack:
            said.append(f"{new.name} {pid}: {old.rss} KiB became {new.rss}")
    return said


@contextlib.contextmanager
def steady(daemon: int, slack: int = SLACK_KIB) -> Iterator[None]:
    """The daemon and its helpers hold no more after the block than before, some memory apart."""
    before = family(daemon)
    yield
    deadline = time.monotonic() + SETTLE_SECONDS
    while said := grown(before, family(daemon), slack):
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
