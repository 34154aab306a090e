"""``kontti tag``, ``save``, ``history``, ``df`` and ``prune``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from kontti.cmd.ctr.output import decimal_size
from kontti.cmd.kontti.output import show_json, show_table
from kontti.cmd.kontti.root import Root
from kontti.engine.disk import DiskUsage
from kontti.engine.prune import Pruned, PrunePlan
from kontti.errors import InvalidArgument

WORDS = 60


def tag(root: Root, args: argparse.Namespace) -> int:
    """Give an image more names."""
    with root.engine() as engine:
        for image in engine.tag(args.source, *args.names):
            print(image.name)
    return 0


def save(root: Root, args: argparse.Namespace) -> int:
    """Write images as an archive."""
    if args.output == "-" and sys.stdout.isatty():
        raise InvalidArgument("an archive is not for a terminal: use -o FILE, or a pipe")
    with root.engine() as engine, destination(args.output) as file:
        engine.save(args.image, file.write, args.platform)
    return 0


@contextlib.contextmanager
def destination(path: str) -> Iterator[BinaryIO]:
    """A file to write, or stdout for ``-``. A file is there whole at the end, or not at all."""
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):
        # a FIFO or a device is written in place
        with open(path, "wb") as file:
            yield file
        return
    folder = os.path.dirname(os.path.abspath(path))
    fd, name = tempfile.mkstemp(dir=folder, prefix=".save-")
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            os.fchmod(fd, 0o666 & ~_umask())
            os.fsync(fd)
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def history(root: Root, args: argparse.Namespace) -> int:
    """Show how an image was built."""
    with root.engine() as engine:
        steps = engine.history(args.image)
    if args.format == "json":
        show_json([dataclasses.asdict(step) for step in steps])
    elif args.quiet:
        print("".join(f"{step.layer}\n" for step in steps if step.layer), end="")
    else:
        whole = args.no_trunc
        rows = [
            [
                (step.layer if whole else step.layer[:19]) or "-",
                step.created[:19] or "-",
                decimal_size(step.size),
                _words(step.created_by, whole),
                _words(step.comment, whole),
            ]
            for step in steps
        ]
        show_table(["LAYER", "CREATED", "SIZE", "CREATED BY", "COMMENT"], rows)
    return 0


def _words(text: str, whole: bool) -> str:
    # an image's author wrote it: no line breaks, and nothing that a terminal obeys
    plain = "".join(c if c.isprintable() else " " for c in text).strip()
    return plain if whole or len(plain) <= WORDS else plain[: WORDS - 1] + "…"


def df(root: Root, args: argparse.Namespace) -> int:
    """Show what images and containers take on the disk."""
    with root.engine() as engine:
        found = engine.disk_usage()
    if args.format == "json":
        show_json(dataclasses.asdict(found))
    else:
        print_usage(found)
    for snapshotter, problem in found.left_out.items():
        print(f"kontti: snapshotter {snapshotter} is left out: {problem}", file=sys.stderr)
    return 0


def print_usage(found: DiskUsage) -> None:
    """Totals, then images, then what containers wrote."""
    show_table(
        ["TYPE", "SNAPSHOTTER", "COUNT", "SIZE", "RECLAIMABLE"],
        [
            [
                total.kind,
                total.snapshotter or "-",
                str(total.count),
                decimal_size(total.size),
                _share(total.reclaimable, total.size),
            ]
            for total in found.totals
        ],
    )
    snapshotters = sorted({name for image in found.images for name in image.unpacked})
    titles = ["SHARED", "UNIQUE", "RECLAIMABLE", "CONTAINERS"]
    rows = [
        [
            image.name,
            *_sizes([image.compressed, *(image.unpacked.get(n, 0) for n in snapshotters)]),
            *_sizes([image.shared, image.unique, image.reclaimable]),
            str(image.containers),
        ]
        for image in found.images
    ]
    print()
    show_table(["IMAGE", "COMPRESSED", *(n.upper() for n in snapshotters), *titles], rows)
    if found.containers:
        print()
        written = [[c.id, c.snapshotter, decimal_size(c.size)] for c in found.containers]
        show_table(["CONTAINER", "SNAPSHOTTER", "WRITTEN"], written)


def _sizes(sizes: Sequence[int]) -> list[str]:
    return [decimal_size(size) for size in sizes]


def _share(part: int, whole: int) -> str:
    return f"{decimal_size(part)} ({100 * part // whole if whole else 0}%)"


def prune(root: Root, args: argparse.Namespace) -> int:
    """Remove what is not used; says what went and how many bytes are free now."""
    with root.engine() as engine:
        plan = engine.plan_prune(all=args.all)
    if not args.force and sys.stdin.isatty() and not agreed(plan):
        return 1
    with root.engine() as engine:
        done = engine.prune(plan)
    if args.format == "json":
        show_json(dataclasses.asdict(done))
    else:
        print_pruned(done)
    return 0


def agreed(plan: PrunePlan) -> bool:
    """Whether the person at the terminal wants this."""
    for what, names in (("container", plan.containers), ("image", plan.images)):
        for name in names:
            print(f"{what} {name}", file=sys.stderr)
    counts = f"{len(plan.containers)} containers and {len(plan.images)} images"
    print(f"Remove these {counts}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def print_pruned(done: Pruned) -> None:
    """A line for each, and the sum."""
    for what, names in (("container", done.containers), ("image", done.images)):
        for name in names:
            print(f"removed {what} {name}")
    counts = f"{len(done.containers)} containers, {len(done.images)} images"
    print(f"{counts}: {decimal_size(done.freed)} freed")
