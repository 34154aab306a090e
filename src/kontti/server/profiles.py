"""What the daemon's threads are doing: their stacks now, and where they spend the processor's time.

For who looks into a daemon that is slow or stuck, from a thread of its own.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from kontti.wire.pprof import Builder

if TYPE_CHECKING:
    from kontti.wire.pprof import Stack

INTERVAL = 0.01
MAX_DEPTH = 200
CPU = (("samples", "count"), ("cpu", "nanoseconds"))


def stack_of(frame: FrameType | None) -> Stack:
    """A frame and those that called it."""
    found: list[tuple[str, str, int]] = []
    while frame is not None and len(found) < MAX_DEPTH:
        code = frame.f_code
        found.append((code.co_qualname, code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def threads() -> Iterator[tuple[threading.Thread, FrameType]]:
    """Every other thread that Python knows, and where it is."""
    frames = sys._current_frames()  # noqa: SLF001 there is no other way
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is not None and thread.ident != threading.get_ident():
            yield thread, frame


def stacks_text(loop: asyncio.AbstractEventLoop) -> str:
    """The stacks of threads, and of what waits on the loop, for a person."""
    parts = [
        f"thread {thread.native_id} [{thread.name}]:\n{_lines(traceback.extract_stack(frame))}"
        for thread, frame in threads()
    ]
    for task in _tasks(loop):
        where = traceback.StackSummary.extract((f, f.f_lineno) for f in task.get_stack())
        parts.append(f"task [{task.get_name()}]:\n{_lines(where)}")
    return "\n".join(parts)


def _tasks(loop: asyncio.AbstractEventLoop) -> Sequence[asyncio.Task[object]]:
    return sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())


def _lines(stack: traceback.StackSummary) -> str:
    # the innermost first, as in Go's
    return "".join(f"{f.name}\n\t{f.filename}:{f.lineno}\n" for f in reversed(stack))


def stacks_profile() -> bytes:
    """The stacks of threads as a profile: how many threads are at each."""
    builder = Builder([("threads", "count")])
    for stack, count in Counter(stack_of(frame) for _, frame in threads()).items():
        builder.add(stack, [count])
    return builder.packed(time.time_ns(), period=("threads", "count", 1))


def cpu_profile(seconds: float, stop: threading.Event) -> bytes:
    """Where the threads spend the processor's time, for so long or until ``stop``.

    A hundred times a second each thread's time since the last look is put down to the line that it
    is at: a thread that waits costs nothing.
    """
    counts: Counter[Stack] = Counter()
    spent: Counter[Stack] = Counter()
    began, until, last = time.time_ns(), time.monotonic() + seconds, _times()
    while (left := until - time.monotonic()) > 0 and not stop.wait(min(left, INTERVAL)):
        now = _times()
        for thread, frame in threads():
            used = now.get(thread.native_id or 0, 0) - last.get(thread.native_id or 0, 0)
            if used > 0:
                stack = stack_of(frame)
                counts[stack] += 1
                spent[stack] += used
        last = now
    builder = Builder(CPU)
    for stack, count in counts.items():
        builder.add(stack, [count, spent[stack]])
    return builder.packed(
        began, time.time_ns() - began, ("cpu", "nanoseconds", int(INTERVAL * 1e9))
    )


def _times() -> dict[int, int]:
    """What each thread of ours has had of the processor, in ns."""
    found = {}
    for thread in threading.enumerate():
        if tid := thread.native_id:
            try:
                found[tid] = time.clock_gettime_ns(_clock(tid))
            except OSError:
                continue  # it has ended
    return found


def _clock(tid: int) -> int:
    """A thread's own clock, as the kernel numbers them (clock_getcpuclockid(3)).

    pthread_getcpuclockid(3) crashes where the thread has ended.
    """
    return (~tid << 3) | 6
