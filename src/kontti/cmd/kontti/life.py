"""``kontti stop``, ``start``, ``restart``, ``kill``, ``pause``, ``unpause``, ``rm``, ``wait``."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable

from kontti.cmd.kontti import waiting
from kontti.cmd.kontti.each import Reporter, Row, by_id, each, each_by_itself
from kontti.cmd.kontti.root import Root
from kontti.engine.engine import Engine
from kontti.errors import DeadlineExceeded, InvalidArgument, NotFound
from kontti.linux.process import signal_number


def quickly(root: Root, args: argparse.Namespace, act: Callable[[Engine, str], object]) -> int:
    """Do what takes no time to each container."""
    report = Reporter(args.format)

    def one(engine: Engine, name: str) -> Row:
        id = engine.resolve(name)
        act(engine, id)
        return {"id": id}

    code = each(root, args.container, one, report=report)
    report.finish()
    return code


def kill(root: Root, args: argparse.Namespace) -> int:
    """Send a signal to containers."""
    try:
        number = signal_number(args.signal)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
    return quickly(root, args, lambda engine, name: engine.kill(name, number))


def pause(root: Root, args: argparse.Namespace) -> int:
    """Freeze containers."""
    return quickly(root, args, lambda engine, name: engine.pause(name))


def unpause(root: Root, args: argparse.Namespace) -> int:
    """Let paused containers go on."""
    return quickly(root, args, lambda engine, name: engine.unpause(name))


def start(root: Root, args: argparse.Namespace) -> int:
    """Start containers that ended."""
    return quickly(root, args, lambda engine, name: engine.start_again(name))


def rm(root: Root, args: argparse.Namespace) -> int:
    """Remove containers."""
    return quickly(root, args, lambda engine, name: engine.remove(name, force=args.force))


def slowly(
    root: Root,
    args: argparse.Namespace,
    act: Callable[[str], Row],
    line: Callable[[Row], object] = by_id,
) -> int:
    """Do to each container what others must be able to go on beside."""
    report = Reporter(args.format, line)

    def one(name: str) -> Row:
        with root.engine() as engine:
            id = engine.resolve(name)
        return {"id": id, **act(id)}

    code = each_by_itself(args.container, one, report=report)
    report.finish()
    return code


def stop(root: Root, args: argparse.Namespace) -> int:
    """Ask containers to end, and make those that do not."""
    return slowly(root, args, lambda name: {"exit_code": until_stopped(root, name, args.time)})


def restart(root: Root, args: argparse.Namespace) -> int:
    """Stop containers and start them again."""

    def one(id: str) -> Row:
        with root.engine() as engine:
            there = engine.container(id).status != "none"
        if there:
            until_stopped(root, id, args.time)
        with root.engine() as engine:
            engine.start_again(id)
        return {}

    return slowly(root, args, one)


def until_stopped(root: Root, id: str, seconds: float) -> int:
    """Ask a container to end, make it after ``seconds``; its exit code."""
    with root.engine() as engine:
        if engine.container(id).status == "paused":
            # frozen it would not even hear that it is to end
            engine.unpause(id)
        asked = engine.ask_to_stop(id)
        if not asked and engine.container(id).status == "none":
            return 0  # between two turns of a restart policy, the last of which is over now
    if asked:
        try:
            return waiting.wait(root, id, seconds)
        except DeadlineExceeded:
            with root.engine() as engine, contextlib.suppress(NotFound):
                engine.kill(id)
    return waiting.wait(root, id, waiting.REPORT_SECONDS)


def wait(root: Root, args: argparse.Namespace) -> int:
    """Wait for containers and print their exit codes."""

    def line(row: Row) -> None:
        print(row["exit_code"], flush=True)

    return slowly(root, args, lambda name: {"exit_code": waiting.wait(root, name)}, line)
