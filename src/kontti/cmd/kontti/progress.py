"""What a transfer does, while it does it: bars on a terminal, a line for each step in a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from kontti.transfer.progress import OnProgress, Progress

STEPS = ("extracting", "downloading")


@contextlib.contextmanager
def shown() -> Iterator[OnProgress]:
    """A callback for a transfer; what it shows goes to stderr, and ends with the block."""
    if sys.stderr.isatty():
        with _bars() as callback:
            yield callback
    else:
        yield Lines()


class Lines:
    """A line for each step that is begun."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, progress: Progress) -> None:
        key = (progress.event, progress.name)
        if key in self._seen or progress.descriptor is None or progress.event not in STEPS:
            return
        self._seen.add(key)
        print(f"{progress.event} {progress.name.rpartition('-')[2][:19]}", file=sys.stderr)


@contextlib.contextmanager
def _bars() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        known: dict[str, TaskID] = {}

        def callback(progress: Progress) -> None:
            if progress.descriptor is None:
                return
            text = f"{progress.event} {progress.name.rpartition('-')[2][:19]}"
            if progress.name not in known:
                known[progress.name] = bars.add_task(text, total=progress.total)
            bars.update(known[progress.name], description=text, completed=progress.progress)

        yield callback
