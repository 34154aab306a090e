"""``kontti logs``."""

from __future__ import annotations

import argparse

from kontti.cmd.ctr.output import write_log
from kontti.cmd.kontti.root import Root
from kontti.engine.logs import query


def logs(root: Root, args: argparse.Namespace) -> int:
    """Print what a container wrote, and with ``follow`` what it writes until its end."""
    wanted = query(follow=args.follow, tail=args.tail, since=args.since, until=args.until)
    with root.engine() as engine:
        folder = engine.log_folder(args.container)
    write_log(folder, wanted, timestamps=args.timestamps)
    return 0
