"""``kontti ps``, ``logs``, ``stop``, ``kill``, ``rm``, ``wait`` and ``inspect``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys

from kontti.cmd.ctr.output import age
from kontti.cmd.kontti import waiting
from kontti.cmd.kontti.output import show_json, show_table
from kontti.cmd.kontti.root import Root
from kontti.engine.values import ContainerInfo
from kontti.errors import DeadlineExceeded, NotFound
from kontti.linux.process import signal_number

COMMAND_WIDTH = 30


def ps(root: Root, args: argparse.Namespace) -> int:
    """List the containers that run, or all."""
    with root.engine() as engine:
        found = engine.containers(all=args.all)
    if args.format == "json":
        show_json([dataclasses.asdict(container) for container in found])
        return 0
    rows = [
        [
            c.id,
            c.image,
            c.command if len(c.command) <= COMMAND_WIDTH else f"{c.command[: COMMAND_WIDTH - 1]}…",
            f"{age(c.created_at)} ago",
            status_text(c),
            str(c.pid or "-"),
        ]
        for c in found
    ]
    show_table(["CONTAINER", "IMAGE", "COMMAND", "CREATED", "STATUS", "PID"], rows)
    return 0


def status_text(container: ContainerInfo) -> str:
    """A container's state, with the exit code of one that ended."""
    ended = container.status == "stopped"
    return f"stopped ({container.exit_code})" if ended else container.status


def stop(root: Root, args: argparse.Namespace) -> int:
    """Ask containers to end, and make those that do not."""
    for id in args.container:
        with root.engine() as engine:
            asked = engine.ask_to_stop(id)
        if asked:
            try:
                waiting.wait(root, id, args.time)
            except DeadlineExceeded:
                with root.engine() as engine, contextlib.suppress(NotFound):
                    engine.kill(id)
                waiting.wait(root, id, waiting.REPORT_SECONDS)
        print(id)
    return 0


def kill(root: Root, args: argparse.Namespace) -> int:
    """Send a signal to containers."""
    number = signal_number(args.signal)
    with root.engine() as engine:
        for id in args.container:
            engine.kill(id, number)
            print(id)
    return 0


def rm(root: Root, args: argparse.Namespace) -> int:
    """Remove containers."""
    with root.engine() as engine:
        for id in args.container:
            engine.remove(id, force=args.force)
            print(id)
    return 0


def wait(root: Root, args: argparse.Namespace) -> int:
    """Wait for containers and print their exit codes."""
    for id in args.container:
        print(waiting.wait(root, id), flush=True)
    return 0


def inspect(root: Root, args: argparse.Namespace) -> int:
    """Print all that is recorded of containers."""
    with root.engine() as engine:
        show_json([engine.inspect(id) for id in args.container])
    return 0


def version(root: Root, args: argparse.Namespace) -> int:
    """Print what this is."""
    import kontti

    found = {"version": kontti.__version__, "python": sys.version.split()[0], "root": root.root}
    if args.format == "json":
        show_json(found)
    else:
        print(f"kontti {found['version']} (Python {found['python']}, root {root.root})")
    return 0


def daemon(root: Root, args: argparse.Namespace) -> int:
    """Become the daemon, in the foreground, on this root and state."""
    program = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "containerd")
    argv = [program, "--root", root.root, "--state", root.state, *args.arguments]
    os.execv(program, argv)
