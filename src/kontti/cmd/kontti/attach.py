"""``kontti attach``: the console of a container that runs already."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
from collections.abc import Iterator

from kontti.cmd.ctr.output import write_log
from kontti.cmd.ctr.stdio import Streams
from kontti.cmd.kontti import waiting
from kontti.cmd.kontti.console import Console
from kontti.cmd.kontti.root import Root
from kontti.engine.logs import query
from kontti.errors import Error, FailedPrecondition
from kontti.logs.watch import Watched
from kontti.tasks.base import Stdio


def attach(root: Root, args: argparse.Namespace) -> int:
    """Show what a container writes from now on, pass signals to it; its exit code at its end.

    Streams that another client left are taken over. A container in the background has no input.
    """
    with root.engine() as engine:
        id = engine.resolve(args.container)
        if engine.container(id).status not in ("running", "paused"):
            raise FailedPrecondition(f"container {id} is not running")
        stdio = engine.processes.get(id).stdio
        folder = "" if is_fifo(stdio.stdout) else engine.log_folder(id)
        process = Watched(engine.container(id).pid)
    with process:
        if not folder:
            return take_over(root, waiting.Name(id), stdio)
        with forwarding(root, id):
            wanted = query(follow=True, tail=0, ended=process.ended)
            write_log(folder, wanted, timestamps=False)
            return waiting.wait(root, id)


def is_fifo(path: str) -> bool:
    """Whether output goes to a FIFO that is there."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def take_over(root: Root, name: waiting.Name, stdio: Stdio) -> int:
    """Copy a process's FIFOs until it ends."""
    console = Console.existing(stdio.stdin, stdio.stdout, stdio.stderr, tty=stdio.terminal)
    try:
        console.connect(root, name)
        code = waiting.wait(root, name.id)
        console.finish()
    finally:
        console.close()
    return code


@contextlib.contextmanager
def forwarding(root: Root, id: str) -> Iterator[None]:
    """Signals that we get are the container's."""

    def forward(number: int) -> None:
        with contextlib.suppress(Error), root.engine() as engine:
            engine.kill(id, number)

    streams = Streams()
    streams.forward = forward
    streams.start()
    try:
        yield
    finally:
        streams.close()
