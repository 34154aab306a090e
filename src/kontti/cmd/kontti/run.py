"""``kontti run`` and ``kontti exec``: processes in the foreground, and containers behind."""

from __future__ import annotations

import argparse
import contextlib
import os

from kontti.cmd.kontti.console import Session, foreground
from kontti.cmd.kontti.output import show_json
from kontti.cmd.kontti.root import Root
from kontti.cmd.kontti.waiting import Name
from kontti.engine.engine import Engine
from kontti.engine.values import ExecOptions, Options
from kontti.errors import InvalidArgument, NotFound
from kontti.tasks.base import Stdio
from kontti.wire.log_uri import options_of as options_of_log

SHIFTS = {"": 0, "b": 0, "k": 10, "kb": 10, "m": 20, "mb": 20, "g": 30, "gb": 30, "t": 40, "tb": 40}


def options_of(args: argparse.Namespace) -> Options:
    """How the flags say the container is made; raises InvalidArgument."""
    return Options(
        name=args.name,
        env=env_of(args.env),
        cwd=args.workdir,
        user=args.user,
        mounts=args.volume,
        hostname=args.hostname,
        network=args.network,
        read_only=args.read_only,
        privileged=args.privileged,
        memory=memory_of(args.memory),
        cpus=args.cpus,
        terminal=args.tty,
        snapshotter=args.snapshotter,
        runtime=args.runtime,
        labels=labels_of(args.label),
        restart=args.restart,
        log_driver=args.log_driver,
        log_options=options_of_log(args.log_opt),
    )


def memory_of(text: str) -> int:
    """Bytes of ``512m``, ``1g``, ``1048576``; "" is 0, no limit. Raises InvalidArgument."""
    digits, unit = text.rstrip("bBkKmMgGtT"), text.lower().lstrip("0123456789")
    if not text:
        return 0
    shift = SHIFTS.get(unit)
    if shift is None or not digits.isascii() or not digits.isdigit() or len(digits) > 15:
        raise InvalidArgument(f"memory limit {text!r:.40} is not a size such as 512m")
    return int(digits) << shift


def env_of(entries: list[str]) -> dict[str, str]:
    """``name=value`` entries; a name alone takes our own value, if we have one."""
    found = {}
    for entry in entries:
        name, separator, value = entry.partition("=")
        if not name:
            raise InvalidArgument(f"environment variable {entry!r} has no name")
        if separator or name in os.environ:
            found[name] = value if separator else os.environ[name]
    return found


def labels_of(entries: list[str]) -> dict[str, str]:
    """``name=value`` entries; raises InvalidArgument. containerd keeps no label without a value."""
    pairs = [entry.partition("=") for entry in entries]
    for name, _, value in pairs:
        if not name or not value:
            raise InvalidArgument(f"label {f'{name}={value}'!r:.60} is not NAME=VALUE")
    return {name: value for name, _, value in pairs}


def run(root: Root, args: argparse.Namespace) -> int:
    """Make a container and run it, here or in the background."""
    chosen = options_of(args)
    if args.detach:
        if args.rm or args.tty or args.interactive:
            raise InvalidArgument("-d does not go with --rm, -i or -t")
        with root.engine() as engine:
            report({"id": engine.start(args.image, args.command, chosen).id}, args.format)
        return 0
    if args.restart not in ("", "no"):
        raise InvalidArgument("--restart goes with -d")

    def begin(engine: Engine, stdio: Stdio) -> Name:
        return Name(engine.start(args.image, args.command, chosen, stdio=stdio).id)

    def end(engine: Engine, name: Name) -> None:
        if args.rm:
            engine.remove(name.id)

    session = Session(begin, end, keep_output=not args.rm)
    return foreground(root, session, terminal=args.tty, interactive=args.interactive)


def report(row: dict[str, object], format: str) -> None:
    """Print what was begun in the background."""
    if format == "json":
        show_json([row])
    else:
        print(row["id"])


def exec_(root: Root, args: argparse.Namespace) -> int:
    """Run a command in a running container."""
    chosen = ExecOptions(env_of(args.env), args.workdir, args.user, args.tty)
    if args.detach and (args.tty or args.interactive):
        raise InvalidArgument("-d does not go with -i or -t")

    def begin(engine: Engine, stdio: Stdio) -> Name:
        id = engine.resolve(args.container)
        exec_id = engine.begin_exec(id, args.command, chosen, stdio=stdio)
        try:
            engine.processes.start(id, exec_id)
        except BaseException:
            engine.processes.delete(id, exec_id)
            raise
        return Name(id, exec_id)

    if args.detach:
        with root.engine() as engine:
            name = begin(engine, Stdio())
        if args.format == "json":
            show_json([{"id": name.id, "exec_id": name.exec_id}])
        return 0

    def end(engine: Engine, name: Name) -> None:
        # the container's own end takes its processes along
        with contextlib.suppress(NotFound):
            engine.processes.delete(name.id, name.exec_id)

    session = Session(begin, end)
    return foreground(root, session, terminal=args.tty, interactive=args.interactive)
