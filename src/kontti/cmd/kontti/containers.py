"""``kontti logs``, ``version`` and ``daemon``."""

from __future__ import annotations

import argparse
import os
import sys

from kontti.cmd.kontti.output import show_json
from kontti.cmd.kontti.root import Root


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
