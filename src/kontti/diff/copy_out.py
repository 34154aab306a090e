"""A tree, or one file, as a plain tar: what ``kontti cp`` reads from either side."""

from __future__ import annotations

import os
from collections.abc import Callable

from kontti.diff.inside import DIRECTORY, Root, is_directory, split
from kontti.diff.layer_writer import LayerWriter
from kontti.diff.removal import join
from kontti.diff.rooted import Item, Rooted
from kontti.errors import NotFound
from kontti.linux import libc

# statfs(2): the kernel's own trees hold no files of anybody
_PSEUDO = frozenset(
    (
        0x9FA0, 0x62656572, 0x27E0EB, libc.CGROUP2_SUPER_MAGIC, 0x1CD1, 0x19800202, 0x64626720,
        0x74726163, 0xCAFE4A11, 0x73636673,
    )
)  # fmt: skip


class PlainWriter(LayerWriter):
    """A tar in which no name means anything but a file."""

    def check_name(self, item: Item) -> None:
        """Any is allowed."""


def write_tree(
    root: Root, path: bytes, prefix: bytes, emit: Callable[[bytes], object], *, follow: bool
) -> None:
    """Write what is at ``path``, named ``prefix`` there; b"" for what a directory holds.

    ``follow`` a symlink at the path's end. Raises NotFound.
    """
    path = root.final(path) if follow else path
    status = root.look(path, follow=False)
    if status is None:
        raise NotFound(os.fsdecode(path))
    writer = PlainWriter(emit, "none")
    if is_directory(status):
        fd = root.open(path, DIRECTORY)
        try:
            _write_directory(writer, fd, prefix)
        finally:
            os.close(fd)
    else:
        _write_file(writer, root, path, prefix)
    writer.finish()


def _write_file(writer: LayerWriter, root: Root, path: bytes, prefix: bytes) -> None:
    parent, name = split(path)
    fd = root.open(parent, DIRECTORY)
    try:
        item = Item(fd, b"", name, os.stat(name, dir_fd=fd, follow_symlinks=False))
        item.path = prefix
        writer.add(item)
    finally:
        os.close(fd)


def _write_directory(writer: LayerWriter, fd: int, prefix: bytes) -> None:
    if prefix:
        top = Item(fd, b"", b".", os.fstat(fd))
        top.path = prefix
        writer.add(top)
    tree = Rooted(fd)
    pending = [(b"", os.fstat(fd).st_dev)]
    while pending:
        directory, device = pending.pop()
        with tree.items(directory) as items:
            for item in items:
                here = item.path
                if item.is_directory and item.status.st_dev != device and _is_pseudo(item):
                    continue
                item.path = join(prefix, here)
                try:
                    writer.add(item)
                except FileNotFoundError:
                    continue  # its owner was quicker
                if item.is_directory:
                    pending.append((here, item.status.st_dev))


def _is_pseudo(item: Item) -> bool:
    try:
        return libc.statfs_type(b"/proc/self/fd/%d/%s" % (item.directory, item.name)) in _PSEUDO
    except OSError:
        return True
