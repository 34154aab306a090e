"""``kontti ps``, ``top`` and ``inspect``."""

from __future__ import annotations

import argparse
import dataclasses

from kontti.cmd.ctr.output import age, binary_size
from kontti.cmd.kontti.each import each
from kontti.cmd.kontti.output import show_json, show_table
from kontti.cmd.kontti.root import Root
from kontti.engine.engine import Engine
from kontti.engine.values import ContainerInfo
from kontti.errors import Error, NotFound

COMMAND_WIDTH = 30


def ps(root: Root, args: argparse.Namespace) -> int:
    """List the containers that run, or all."""
    with root.engine() as engine:
        found = engine.containers(all=args.all, filters=args.filter)
    if args.format == "json":
        show_json([dataclasses.asdict(container) for container in found])
    elif args.quiet:
        for container in found:
            print(container.id)
    else:
        titles = ["CONTAINER", "IMAGE", "COMMAND", "CREATED", "STATUS", "PID"]
        show_table(titles, [row(container) for container in found])
    return 0


def row(container: ContainerInfo) -> list[str]:
    """A container's line."""
    return [
        container.id,
        container.image,
        shortened(container.command),
        f"{age(container.created_at)} ago",
        status_text(container),
        str(container.pid or "-"),
    ]


def shortened(command: str) -> str:
    """A command that fits a column."""
    return command if len(command) <= COMMAND_WIDTH else f"{command[: COMMAND_WIDTH - 1]}…"


def status_text(container: ContainerInfo) -> str:
    """A container's state, with the exit code of one that ended."""
    ended = container.status == "stopped"
    return f"stopped ({container.exit_code})" if ended else container.status


def top(root: Root, args: argparse.Namespace) -> int:
    """List a container's processes."""
    with root.engine() as engine:
        found = engine.top(engine.resolve(args.container))
    if args.format == "json":
        show_json([dataclasses.asdict(process) for process in found])
        return 0
    rows = [
        [
            str(process.pid),
            str(process.ppid),
            process.user,
            process.state,
            f"{process.cpu_percent:.1f}",
            clock(process.cpu_seconds),
            binary_size(process.memory_bytes),
            process.command,
        ]
        for process in found
    ]
    show_table(["PID", "PPID", "USER", "STATE", "%CPU", "TIME", "MEMORY", "COMMAND"], rows)
    return 0


def clock(seconds: float) -> str:
    """``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def inspect(root: Root, args: argparse.Namespace) -> int:
    """Print all that is recorded of containers and images, as one list."""
    found = []

    def look(engine: Engine, name: str) -> dict[str, object]:
        found.append(details(engine, name, args.type))
        return {}

    code = each(root, args.name, look, report=None)
    show_json(found)
    return code


def details(engine: Engine, name: str, type: str) -> dict[str, object]:
    """A container's, or an image's; of either, a container's first. Raises NotFound."""
    if type != "image":
        try:
            return {"type": "container", **engine.inspect(engine.resolve(name))}
        except NotFound:
            if type == "container":
                raise
    try:
        return {"type": "image", **engine.inspect_image(name)}
    except Error:
        if type == "image":
            raise
        raise NotFound(f"container or image {name}") from None
