"""``kontti migrate``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter

from kontti.cmd.kontti.output import show_json
from kontti.cmd.kontti.root import Root
from kontti.migrate.adopt import Outcome


def migrate(root: Root, args: argparse.Namespace) -> int:
    """Take over a containerd root's images and stopped containers."""
    plain = args.format == "table"
    with root.engine() as engine:
        found = engine.migrate(args.source, copy=args.copy, tell=show if plain else silent)
    if plain:
        print(summary(found))
    else:
        show_json([dataclasses.asdict(outcome) for outcome in found])
    return int(any(outcome.problem for outcome in found))


def silent(_outcome: Outcome) -> None:
    """Tell nothing while it goes on."""


def show(outcome: Outcome) -> None:
    """A line for an image, a container, and whatever could not be had."""
    name = f"{outcome.namespace}/{outcome.name}"
    if outcome.problem:
        print(f"kontti: {outcome.kind} {name}: {outcome.problem}", file=sys.stderr)
    elif outcome.kind != "blob":
        print(f"{outcome.kind} {name}{': there already' if outcome.present else ''}", flush=True)


def summary(outcomes: tuple[Outcome, ...]) -> str:
    """How many of each kind came over."""
    counts = Counter(o.kind for o in outcomes if not o.problem and not o.present)
    return ", ".join(f"{kind}s: {counts[kind]}" for kind in ("image", "container", "blob"))
