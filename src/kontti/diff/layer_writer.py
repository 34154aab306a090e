"""Writes a layer's tar: items of a tree in, compressed bytes out, the diff id at the end."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from kontti.diff.extract import OPAQUE, WHITEOUT
from kontti.diff.packer import Packer
from kontti.diff.removal import join
from kontti.diff.rooted import Item
from kontti.diff.tar import (
    BLOCKDEV,
    CHAR,
    DIRECTORY,
    FIFO,
    HARDLINK,
    MAX_NAME,
    REGULAR,
    SYMLINK,
    Entry,
)
from kontti.diff.tar_writer import ARCHIVE_END, header, padding
from kontti.errors import Aborted, InvalidArgument

_KINDS = {
    stat.S_IFREG: REGULAR,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHAR,
    stat.S_IFBLK: BLOCKDEV,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFIFO: FIFO,
}
_BUFFER = 1 << 18


class LayerWriter:
    """Gives ``emit`` a compressed tar; ``latest``, in seconds, cuts off times."""

    def __init__(
        self, emit: Callable[[bytes], object], compression: str, latest: int | None = None
    ) -> None:
        self._packer = Packer(emit, compression)
        self._latest = None if latest is None else latest * 10**9
        self._held = bytearray()
        self._links: dict[tuple[int, int], bytes] = {}
        self._known: dict[tuple[int, int], bytes] = {}
        self._directories: set[bytes] = set()
        self.size = 0

    @property
    def diff_id(self) -> str:
        """Of the uncompressed tar, once it is finished."""
        return self._packer.diff_id

    def add(self, item: Item) -> None:
        """A file, directory or special file; a socket without its listener means nothing."""
        kind = _KINDS.get(stat.S_IFMT(item.status.st_mode))
        if kind is None:
            return
        self.check_name(item)
        if kind == DIRECTORY:
            if item.path in self._directories:
                return
            self._directories.add(item.path)
        elif item.status.st_nlink > 1:
            first = self._known.get(inode(item)) or self._links.setdefault(inode(item), item.path)
            if first != item.path:
                self.add_link(item, first)
                return
        self._add_entry(item, kind)

    def check_name(self, item: Item) -> None:
        """Raises InvalidArgument for a name that means something else in a layer."""
        if item.name.startswith(WHITEOUT):
            raise InvalidArgument(f"a layer cannot hold a file named {os.fsdecode(item.path)!r}")

    def _add_entry(self, item: Item, kind: bytes) -> None:
        entry = self._entry(item, kind)
        if kind == REGULAR:
            self._add_file(item, entry)
            return
        if kind == SYMLINK:
            entry.link = item.link()
        elif kind in (CHAR, BLOCKDEV):
            entry.device = (os.major(item.status.st_rdev), os.minor(item.status.st_rdev))
        self._put(header(entry))

    def linked(self, item: Item) -> bytes | None:
        """The path under which this item's inode was written, if it was."""
        return self._links.get(inode(item))

    def know_link(self, item: Item) -> None:
        """An inode that is in a parent layer at the item's path: more names become links to it."""
        self._known.setdefault(inode(item), item.path)

    def add_link(self, item: Item, target: bytes) -> None:
        """A hard link at the item's path."""
        entry = self._entry(item, HARDLINK)
        entry.link, entry.xattrs = target, None
        self._put(header(entry))

    def add_whiteout(self, path: bytes, mtime: int) -> None:
        """What parents have at ``path`` is gone."""
        parent, _, name = path.rpartition(b"/")
        self._add_mark(join(parent, WHITEOUT + name), mtime)

    def add_opaque(self, directory: bytes, mtime: int) -> None:
        """What parents have in ``directory`` is gone."""
        self._add_mark(join(directory, OPAQUE), mtime)

    def _add_mark(self, path: bytes, mtime: int) -> None:
        entry = Entry(REGULAR, path)
        entry.mtime = self._bounded(mtime)
        self._put(header(entry))

    def finish(self) -> None:
        """End the archive."""
        self._put(ARCHIVE_END)
        self._flush()
        self._packer.finish()

    def close(self) -> None:
        """Emit nothing from here on, whether it is finished or not."""
        self._packer.close()

    def _entry(self, item: Item, kind: bytes) -> Entry:
        name = item.path + b"/" if kind == DIRECTORY else item.path
        if len(name) >= MAX_NAME:
            raise InvalidArgument(f"{os.fsdecode(name[:200])!r}…: file name too long")
        entry = Entry(kind, name)
        entry.mode = stat.S_IMODE(item.status.st_mode)
        entry.uid, entry.gid = item.status.st_uid, item.status.st_gid
        entry.mtime = self._bounded(item.status.st_mtime_ns)
        entry.xattrs = item.xattrs()
        return entry

    def _bounded(self, mtime: int) -> int:
        return mtime if self._latest is None else min(mtime, self._latest)

    def _add_file(self, item: Item, entry: Entry) -> None:
        fd = item.open()
        try:
            now = os.fstat(fd)
            if not stat.S_ISREG(now.st_mode):
                raise _changed(item)
            entry.size = now.st_size
            self._put(header(entry))
            self._copy(fd, item, entry.size)
        finally:
            os.close(fd)
        self._put(padding(entry.size))

    def _copy(self, fd: int, item: Item, size: int) -> None:
        left = size
        while left:
            data = os.read(fd, min(left, _BUFFER))
            if not data:
                raise _changed(item)
            self._put(data)
            left -= len(data)

    def _put(self, data: bytes) -> None:
        self._held += data
        if len(self._held) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        data = bytes(self._held)
        self._held.clear()
        self.size += len(data)
        self._packer.put(data)


def inode(item: Item) -> tuple[int, int]:
    """What tells hard links of one file from other files."""
    return item.status.st_dev, item.status.st_ino


def _changed(item: Item) -> Aborted:
    return Aborted(f"{os.fsdecode(item.path)!r} changed while it was read")
