"""``kontti logs``."""

from __future__ import annotations

import argparse

from kontti.cmd.ctr.output import write_log
from kontti.cmd.kontti.root import Root
from kontti.engine.logs import query
from kontti.logs.watch import Watched


def logs(root: Root, args: argparse.Namespace) -> int:
    """Print what a container wrote, and with ``follow`` what it writes until its end."""
    with root.engine() as engine:
        id = engine.resolve(args.container)
        folder = engine.log_folder(id)
        process = Watched(engine.container(id).pid)
    with process:
        wanted = query(
            follow=args.follow,
            tail=args.tail,
            since=args.since,
            until=args.until,
            ended=process.ended,
        )
        write_log(folder, wanted, timestamps=args.timestamps)
    return 0
