"""``kontti pull``, ``push``, ``load``, ``images`` and ``rmi``."""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import sys

from kontti.cmd.ctr.output import age, decimal_size
from kontti.cmd.kontti.output import show_json, show_table
from kontti.cmd.kontti.progress import shown
from kontti.cmd.kontti.root import Root


def pull(root: Root, args: argparse.Namespace) -> int:
    """Pull an image from its registry and unpack it."""
    user, password = credentials(args.user)
    with root.engine() as engine, shown() as progress:
        found = engine.pull(
            args.image,
            plain_http=args.plain_http,
            user=user,
            password=password,
            progress=progress,
            snapshotter=args.snapshotter,
        )
    print(f"{found.name} {found.digest}")
    return 0


def push(root: Root, args: argparse.Namespace) -> int:
    """Push an image to its registry."""
    user, password = credentials(args.user)
    with root.engine() as engine, shown() as progress:
        engine.push(
            args.image,
            args.source,
            plain_http=args.plain_http,
            user=user,
            password=password,
            progress=progress,
        )
    return 0


def credentials(text: str) -> tuple[str, str]:
    """USER[:PASSWORD], the password asked for where only a user is given."""
    user, separator, password = text.partition(":")
    if user and not separator:
        password = getpass.getpass("Password: ")
    return user, password


def load(root: Root, args: argparse.Namespace) -> int:
    """Store the images of an archive."""
    with root.engine() as engine, shown() as progress:
        source = args.input if args.input != "-" else sys.stdin.buffer
        found = engine.import_image(source, progress=progress)
    for image in found:
        print(f"{image.name} {image.digest}")
    return 0


def images(root: Root, args: argparse.Namespace) -> int:
    """List the stored images."""
    with root.engine() as engine:
        found = engine.images(args.filter)
    if args.quiet:
        print("".join(f"{image.name}\n" for image in found), end="")
        return 0
    if args.format == "json":
        show_json([dataclasses.asdict(image) for image in found])
        return 0
    rows = [
        [
            image.name,
            image.digest if args.digests else image.digest[:19],
            decimal_size(image.size),
            ",".join(image.platforms),
            f"{age(image.created_at)} ago",
        ]
        for image in found
    ]
    show_table(["NAME", "DIGEST", "SIZE", "PLATFORMS", "CREATED"], rows)
    return 0


def rmi(root: Root, args: argparse.Namespace) -> int:
    """Remove images."""
    with root.engine() as engine:
        for name in args.image:
            engine.remove_image(name)
            print(name)
    return 0
