"""``kontti logs``, ``version`` and ``daemon``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

from kontti.cmd.kontti import waiting
from kontti.cmd.kontti.output import show_json
from kontti.cmd.kontti.root import Root
from kontti.engine.logs import tail_offset
from kontti.errors import NotFound

FOLLOW_SECONDS = 0.1


def logs(root: Root, args: argparse.Namespace) -> int:
    """Print what a container wrote, and with ``follow`` what it writes until its end."""
    with contextlib.ExitStack() as stack:
        with root.engine() as engine:
            file = stack.enter_context(open(engine.log_path(args.container), "rb"))
            pidfd = None
            with contextlib.suppress(NotFound):  # there is no process, so nothing more to come
                watched = waiting.watched(engine, waiting.Name(args.container))
                pidfd = stack.enter_context(watched) if args.follow else None
        if args.tail is not None:
            file.seek(tail_offset(file, args.tail))
        while True:
            over = pidfd is None or waiting.ended(pidfd, FOLLOW_SECONDS)
            while data := file.read(1 << 16):
                sys.stdout.buffer.write(data)
            sys.stdout.flush()
            if over:
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
