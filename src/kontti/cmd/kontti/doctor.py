"""``kontti doctor``."""

from __future__ import annotations

import argparse
import dataclasses

from kontti.cmd.kontti.output import show_json
from kontti.cmd.kontti.root import Root
from kontti.cmd.kontti.run import memory_of
from kontti.doctor.base import Finding
from kontti.engine.checkup import set_database_aside
from kontti.errors import DataLoss


def doctor(root: Root, args: argparse.Namespace) -> int:
    """Check everything that is kept, and mend it where asked; 1 where something stays wrong."""
    plain = args.format == "table"
    try:
        found = examine(root, args, plain)
    except DataLoss as error:
        if not args.repair:
            raise
        aside = set_database_aside(root.root)
        if plain:
            print(f"database: {error.message}; it is in {aside} now, and made anew")
        found = examine(root, args, plain)
    if not plain:
        show_json([{**dataclasses.asdict(f), "remedy": f.remedy.value} for f in found])
    left = [finding for finding in found if not finding.mended]
    if plain and not left:
        print("all is well" if not found else "all is well again")
    return int(bool(left))


def examine(root: Root, args: argparse.Namespace, plain: bool) -> tuple[Finding, ...]:
    """Open the root and go through it."""
    with root.engine() as engine:
        return engine.doctor(
            repair=args.repair,
            deep=not args.quick,
            rate=memory_of(args.rate),
            plain_http=args.plain_http,
            tell=show if plain else silent,
        )


def silent(_finding: Finding) -> None:
    """Tell nothing while it goes on."""


def show(finding: Finding) -> None:
    """A line for what is wrong, and whether it is any more."""
    name = f"{finding.namespace}/{finding.name}" if finding.namespace else finding.name
    print(f"{finding.kind} {name}: {finding.problem}{': mended' if finding.mended else ''}")
