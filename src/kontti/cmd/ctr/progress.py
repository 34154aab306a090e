"""Progress for a person: bars where stdout is a terminal, lines elsewhere."""

from __future__ import annotations

import os
import sys
import time

from kontti.cmd.ctr.output import binary_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Shown(Protocol):
        """An event, from this side or over the wire."""

        @property
        def event(self) -> str: ...
        @property
        def name(self) -> str: ...
        @property
        def progress(self) -> int: ...
        @property
        def total(self) -> int: ...

    Show = Callable[[Shown], None]

BAR = 30
PAUSE = 0.1
DONE = frozenset(("complete", "extracted", "already exists"))
MOVING = frozenset(("downloading", "uploading", "extracting"))


def shown() -> Show:
    """What shows progress on stdout."""
    return Bars() if sys.stdout.isatty() else Lines()


class Lines:
    """Progress as lines: one for each object that begins and one when it is done."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def __call__(self, progress: Shown) -> None:
        key = (progress.name, progress.event)
        if key in self._told:
            return
        self._told.add(key)
        text = f"{progress.name}: {progress.event}" if progress.name else progress.event
        print(text, file=sys.stdout, flush=True)


class Bars:
    """Progress as a line for each object, painted over and over."""

    def __init__(self) -> None:
        self._rows: dict[str, Shown] = {}
        self._status = ""
        self._painted = 0
        self._next = 0.0

    def __call__(self, progress: Shown) -> None:
        if progress.name:
            self._rows[progress.name] = progress
        else:
            self._status = progress.event
        # what ends is always painted; who only moves waits for his turn
        if progress.event not in MOVING or time.monotonic() >= self._next:
            self._next = time.monotonic() + PAUSE
            self._paint()

    def _paint(self) -> None:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
        rows = [row_of(progress) for progress in self._rows.values()]
        # what is above the screen cannot be painted over
        text = [row[: columns - 1] for row in [*rows, self._status][-(lines - 1) :]]
        back = f"\x1b[{self._painted}A" if self._painted else ""
        sys.stdout.write(back + "".join(f"\x1b[2K{line}\n" for line in text))
        sys.stdout.flush()
        self._painted = len(text)


def row_of(progress: Shown) -> str:
    """One object's line."""
    name = f"{short(progress.name):40.40} {progress.event:15}"
    if progress.event not in DONE and progress.event not in MOVING:
        return name
    if progress.event == "extracting":
        return f"{name} {'':{BAR + 2}} {binary_size(progress.total)}"
    part = min(1.0, progress.progress / progress.total) if progress.total else 1.0
    filled = "+" * int((1.0 if progress.event in DONE else part) * BAR)
    return f"{name} |{filled:-<{BAR}}| {binary_size(progress.total)}"


def short(name: str) -> str:
    """``layer-sha256:0123456789ab``, with less of its digest."""
    kind, colon, digest = name.partition("sha256:")
    return f"{kind}{colon}{digest[:12]}" if len(digest) == 64 else name
