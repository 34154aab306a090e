"""Finds what one tree has more, less or else than another, and writes it as a layer.

Two ways: an overlay's upper directory says by itself what changed; any other two trees are walked
side by side. Parents of a change are written before it, with what they are in the upper tree.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import closing

from kontti.diff.attributes import is_copied
from kontti.diff.job import CompareJob, Result, frame
from kontti.diff.layer_writer import LayerWriter
from kontti.diff.lowers import NeedsParents, is_whiteout
from kontti.diff.rooted import Item, Rooted

_OPAQUE = frozenset(("trusted.overlay.opaque", "user.overlay.opaque"))
_ORIGIN = frozenset(
    f"{space}.overlay.{name}"
    for space in ("trusted", "user")
    for name in ("origin", "impure", "uuid", "upper", "protattr", "nlink")
)
_CHUNK = 1 << 18
_SECOND = 10**9


def compare(job: CompareJob, emit: Callable[[bytes], None]) -> Result:
    """Do the job, giving frames to ``emit``; raises NeedsParents if the upper one will not do."""
    writer = LayerWriter(lambda data: emit(frame(data)), job["compression"], job["latest"])
    with closing(writer):
        _write(job, writer)
        writer.finish()
    return {"diff_id": writer.diff_id, "size": writer.size}


def _write(job: CompareJob, writer: LayerWriter) -> None:
    upper = Rooted(job["upper"]["root"])
    if job["upper"]["kind"] == "upper":
        _walk_upper(upper, writer)
        return
    lower = Rooted(job["lower"]["root"]) if job["lower"] is not None else None
    _Sides(lower, upper, writer).walk()


def _walk_upper(upper: Rooted, writer: LayerWriter) -> None:
    pending = [b""]
    while pending:
        with upper.items(pending.pop()) as items:
            for item in items:
                _add_upper(item, writer)
            pending.extend(item.path for item in reversed(items) if item.is_directory)


def _add_upper(item: Item, writer: LayerWriter) -> None:
    if is_whiteout(item.status):
        writer.add_whiteout(item.path, item.status.st_mtime_ns)
        return
    marks = {name for name in item.xattr_names() if not is_copied(os.fsencode(name))}
    if any(".overlay." in name for name in marks - _OPAQUE - _ORIGIN):
        # redirect, metacopy: data or children are elsewhere
        raise NeedsParents(item.path)
    writer.add(item)
    if item.is_directory and marks & _OPAQUE:
        writer.add_opaque(item.path, item.status.st_mtime_ns)


class _Sides:
    """Two trees, walked side by side."""

    def __init__(self, lower: Rooted | None, upper: Rooted, writer: LayerWriter) -> None:
        self._lower = lower
        self._upper = upper
        self._writer = writer
        # unchanged directories, to be written if something below them is
        self._parents: dict[bytes, os.stat_result] = {}
        self._pending: list[tuple[bytes, bool]] = [(b"", lower is not None)]

    def walk(self) -> None:
        """Write all differences."""
        while self._pending:
            path, in_both = self._pending.pop()
            if in_both and self._lower is not None:
                with self._lower.items(path) as below, self._upper.items(path) as items:
                    self._directory(path, {item.name: item for item in below}, items)
            else:
                with self._upper.items(path) as items:
                    self._directory(path, {}, items)

    def _directory(self, path: bytes, below: dict[bytes, Item], items: list[Item]) -> None:
        names = {item.name for item in items}
        for name, item in below.items():
            if name not in names:
                self._write_parents(path)
                self._writer.add_whiteout(item.path, item.status.st_mtime_ns)
        for item in items:
            self._item(path, below.get(item.name), item)
        for item in reversed(items):
            if item.is_directory:
                old = below.get(item.name)
                self._pending.append((item.path, old is not None and old.is_directory))

    def _item(self, parent: bytes, old: Item | None, item: Item) -> None:
        if old is None or is_changed(old, item):
            self._write_parents(parent)
            self._writer.add(item)
        elif item.is_directory:
            self._parents[item.path] = item.status
        elif item.status.st_nlink > 1:
            self._unchanged_link(parent, item)

    def _unchanged_link(self, parent: bytes, item: Item) -> None:
        # one name of a file that has got others: they are to be links of each other again
        first = self._writer.linked(item)
        if first is None:
            self._writer.know_link(item)
        elif first != item.path:
            self._write_parents(parent)
            self._writer.add_link(item, first)

    def _write_parents(self, directory: bytes) -> None:
        path = b""
        for component in directory.split(b"/") if directory else ():
            parent, path = path, path + b"/" + component if path else component
            if self._parents.pop(path, None) is not None:
                self._write_directory(parent, component)

    def _write_directory(self, parent: bytes, name: bytes) -> None:
        with self._upper.items(parent) as items:
            for item in items:
                if item.name == name and item.is_directory:
                    self._writer.add(item)


def is_changed(old: Item, new: Item) -> bool:
    """Whether a name must be written again."""
    before, after = old.status, new.status
    if _identity(before) != _identity(after):
        return True
    if old.xattrs() != new.xattrs():
        return True
    kind = stat.S_IFMT(after.st_mode)
    if kind == stat.S_IFDIR:
        return False
    if kind == stat.S_IFLNK:
        return before.st_mtime_ns != after.st_mtime_ns or old.link() != new.link()
    if before.st_size != after.st_size or before.st_mtime_ns != after.st_mtime_ns:
        return True
    # times out of archives are whole seconds: equal ones prove nothing
    whole = kind == stat.S_IFREG and after.st_mtime_ns % _SECOND == 0
    return whole and _inode(before) != _inode(after) and _differ(old, new)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mode, status.st_uid, status.st_gid, status.st_rdev


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _differ(old: Item, new: Item) -> bool:
    left, right = old.open(), new.open()
    try:
        while True:
            data = os.read(left, _CHUNK)
            if data != os.read(right, _CHUNK):
                return True
            if not data:
                return False
    finally:
        os.close(left)
        os.close(right)
