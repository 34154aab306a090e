"""``kontti cp``."""

from __future__ import annotations

import argparse
import sys

from kontti.cmd.kontti.output import show_json
from kontti.cmd.kontti.root import Root
from kontti.diff.copy_in import Copied
from kontti.engine.files import Files
from kontti.errors import InvalidArgument


def cp(root: Root, args: argparse.Namespace) -> int:
    """Copy between a container and here: files, directories, or tar streams."""
    id, source = parse(args.source)
    to, target = parse(args.target)
    if bool(id) == bool(to):
        raise InvalidArgument("one of source and target is CONTAINER:PATH, the other a path here")
    if args.source == "-" and sys.stdin.isatty():
        raise InvalidArgument("the tar to copy is read from stdin, which is a terminal")
    if args.target == "-" and sys.stdout.isatty():
        raise InvalidArgument("a tar is not for a terminal: redirect stdout")
    with root.engine() as engine:
        name = engine.resolve(id or to)
        files = engine.files(name)
    # the copy itself needs the files alone, not the root
    with files:
        copied = out(files, source, target, args) if id else into(files, source, target, args)
    if args.format == "json" and copied is not None:
        here = {"id": name, "source": args.source, "target": args.target}
        show_json([{**here, "files": copied.files, "bytes": copied.bytes}])
    return 0


def parse(text: str) -> tuple[str, str]:
    """Container and path of ``CONTAINER:PATH``; no container for a path here, or ``-``."""
    id, separator, path = text.partition(":")
    if not separator or not id or id.startswith(".") or "/" in id:
        return "", text
    if not path:
        raise InvalidArgument(f"{text}: a path in the container is missing")
    return id, path


def out(files: Files, source: str, target: str, args: argparse.Namespace) -> Copied | None:
    """From the container."""
    if target == "-":
        files.read_tar(source, sys.stdout.buffer.write, follow=args.follow_link)
        sys.stdout.buffer.flush()
        return None
    return files.get(source, target, archive=args.archive, follow=args.follow_link)


def into(files: Files, source: str, target: str, args: argparse.Namespace) -> Copied:
    """To the container."""
    if source == "-":
        return files.write_tar(sys.stdin.buffer, target)
    return files.put(source, target, archive=args.archive, follow=args.follow_link)
