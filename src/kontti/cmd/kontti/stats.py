"""``kontti stats``: what containers use, again and again on a terminal, once in a pipe."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from kontti.cmd.ctr.output import binary_size
from kontti.cmd.kontti.each import Row
from kontti.cmd.kontti.output import rich_table, show_json, show_table
from kontti.cmd.kontti.root import Root
from kontti.engine.engine import Engine
from kontti.engine.usage import cpu_percent
from kontti.engine.values import Usage
from kontti.errors import Error, FailedPrecondition

SAMPLE_SECONDS = 0.5
REFRESH_SECONDS = 2.0
TITLES = ["CONTAINER", "CPU %", "MEMORY / LIMIT", "MEM %", "PIDS", "BLOCK READ / WRITE"]

Sample = dict[str, Usage]


def stats(root: Root, args: argparse.Namespace) -> int:
    """Show what containers use, all that run or those named."""
    with root.engine() as engine:
        ids, code = named(engine, args.container)
        if args.container and not ids:
            return code
        before = sample(engine, ids)
    streams = sys.stdout.isatty() and args.format == "table" and not args.no_stream
    time.sleep(SAMPLE_SECONDS)
    with root.engine() as engine:
        after = sample(engine, ids)
    if streams:
        refresh(root, ids, before, after)
    elif args.format == "json":
        show_json(rows(before, after))
    else:
        show_table(TITLES, [cells(row) for row in rows(before, after)])
    return code


def named(engine: Engine, names: Sequence[str]) -> tuple[list[str], int]:
    """The ids of containers that run, and the exit code; the others are told of."""
    found, code = [], 0
    for name in names:
        try:
            id = engine.resolve(name)
            if engine.container(id).status not in ("running", "paused"):
                raise FailedPrecondition(f"container {id} is not running")
            found.append(id)
        except Error as error:
            print(f"kontti: {error.message}", file=sys.stderr)
            code = 1
    return found, code


def sample(engine: Engine, ids: Sequence[str]) -> Sample:
    """What each uses now."""
    return {found.id: found for found in engine.usage(*ids)}


def refresh(root: Root, ids: Sequence[str], before: Sample, after: Sample) -> None:
    """Draw the table again and again, until interrupted or nothing runs any more."""
    from rich.live import Live

    def drawn() -> object:
        return rich_table(TITLES, [cells(row) for row in rows(before, after)])

    live = Live(drawn(), auto_refresh=False)  # type: ignore[arg-type]
    with interruptible() as interrupted, live:
        while after and not interrupted.is_set():
            live.update(drawn(), refresh=True)  # type: ignore[arg-type]
            time.sleep(REFRESH_SECONDS)
            before = after
            with root.engine() as engine:
                after = sample(engine, ids)
        if interrupted.is_set():
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupted]:
    """Tells of an interrupt whose exception got lost: Python drops what is raised in a finalizer
    or a library's callback."""
    interrupted = Interrupted()
    before = signal.signal(signal.SIGINT, interrupted.set)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


class Interrupted:
    """Whether there was an interrupt."""

    def __init__(self) -> None:
        self._was = False

    def set(self, _signal: int, _frame: object) -> None:
        """There is one."""
        self._was = True
        raise KeyboardInterrupt

    def is_set(self) -> bool:
        """Whether there was one."""
        return self._was


def rows(before: Sample, after: Sample) -> list[Row]:
    """Figures of those that are in both samples, by id."""
    return [figures(before[id], after[id]) for id in sorted(after) if id in before]


def figures(before: Usage, after: Usage) -> Row:
    """One container's; a limit of 0 is none, and the share of memory is of the host's then."""
    limit = after.memory_limit_bytes or memory_of_host()
    return {
        "id": after.id,
        "cpu_percent": round(cpu_percent(before, after), 2),
        "cpu_seconds": round(after.cpu_ns / 1e9, 3),
        "memory_bytes": after.memory_bytes,
        "memory_limit_bytes": after.memory_limit_bytes,
        "memory_percent": round(after.memory_bytes / limit * 100, 2),
        "pids": after.pids,
        "pids_limit": after.pids_limit,
        "block_read_bytes": after.block_read_bytes,
        "block_write_bytes": after.block_write_bytes,
    }


def memory_of_host() -> int:
    """In bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cells(row: Row) -> list[str]:
    """A line of the table."""
    limit = int(str(row["memory_limit_bytes"])) or memory_of_host()
    return [
        str(row["id"]),
        f"{row['cpu_percent']:.2f}",
        f"{_size(row['memory_bytes'])} / {binary_size(limit)}",
        f"{row['memory_percent']:.2f}",
        str(row["pids"]),
        f"{_size(row['block_read_bytes'])} / {_size(row['block_write_bytes'])}",
    ]


def _size(value: object) -> str:
    return binary_size(int(str(value)))
