"""The files of a layer as an EROFS image: their data is the tar's own, where it stands in it.

Nothing is made on disk but the image. What a directory would be needed for (attributes that the
kernel checks or hands on to children, more than fits the memory) raises NeedsFiles.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping

from kontti.diff.attributes import OVERLAY, bounded_time
from kontti.diff.files import Kind
from kontti.diff.lowers import NeedsFiles
from kontti.diff.sparse import Sparse
from kontti.diff.tar import CHAR, DIRECTORY, REGULAR, Entry, TarReader
from kontti.wire.erofs import BLOCK, DATA_START, EMPTY, MAX_BLOCKS, Inode, device

MAX_INODES = 2_000_000
"""More would take more memory than a worker has."""
MAX_NAME = 255
# what any file system takes: more may be too much for it, which it then says itself
_MAX_XATTRS = 900
_CAPABILITY = b"security.capability"
_CAPABILITY_SIZE, _CAPABILITY_REVISION = 20, 2
# namespaces of which the kernel has a say
_KNOWN = (b"user.", b"trusted.", b"security.", b"system.", b"btrfs.")
_PLAIN = (b"user.", b"trusted.")
_KINDS = {stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}


class ImageFiles:
    """diff.files.Files in memory: a tree of inodes, from a root that looks like ``root``."""

    def __init__(self, root: os.stat_result) -> None:
        self.root = Inode(root.st_mode, root.st_uid, root.st_gid, root.st_mtime_ns)
        self.sparse: dict[Inode, tuple[Sparse, int]] = {}
        """Files whose data is in parts, with the place of these."""
        self._directories = {b"": self.root}
        self._left = MAX_INODES

    def _find(self, path: bytes) -> Inode | None:
        parent, _, name = path.rpartition(b"/")
        directory = self._directories.get(parent)
        if not path:
            return self.root
        return None if directory is None else directory.children.get(name)

    def kind(self, path: bytes) -> Kind:
        inode = self._find(path)
        if inode is None:
            return Kind.NOTHING
        if stat.S_ISCHR(inode.mode) and not inode.rdev:
            return Kind.WHITEOUT
        return _KINDS.get(stat.S_IFMT(inode.mode), Kind.OTHER)

    def root_time(self) -> int:
        return self.root.mtime

    def _add(self, path: bytes, inode: Inode) -> Inode:
        """The directory that it is in now."""
        parent, _, name = path.rpartition(b"/")
        if len(name) > MAX_NAME:
            raise os_error(errno.ENAMETOOLONG, path)
        directory = self._directories[parent]
        if name in directory.children:
            raise os_error(errno.EEXIST, path)
        directory.children[name] = inode
        self._left -= 1
        if self._left < 0:
            raise NeedsFiles(path)
        return directory

    def file(self, entry: Entry, path: bytes, reader: TarReader) -> None:
        inode = _inode(stat.S_IFREG, entry)
        inode.size, inode.offset = entry.size, DATA_START + reader.position
        if entry.sparse is not None:
            if entry.sparse.size > MAX_BLOCKS * BLOCK:
                raise os_error(errno.EFBIG, path)
            self.sparse[inode] = entry.sparse, inode.offset
            inode.size = entry.sparse.size
        self._add(path, inode)

    def hard_link(self, source: bytes, path: bytes) -> None:
        inode = self._find(source) if source else None
        if inode is None:
            raise os_error(errno.ENOENT, source)
        if stat.S_ISDIR(inode.mode):
            raise os_error(errno.EPERM, source)
        self._add(path, inode)

    def symlink(self, entry: Entry, path: bytes) -> None:
        if not entry.link:
            raise os_error(errno.ENOENT, path)
        inode = _inode(stat.S_IFLNK, entry)
        inode.mode = stat.S_IFLNK | 0o777
        inode.link = entry.link
        self._add(path, inode)

    def device(self, entry: Entry, path: bytes) -> None:
        major, minor = entry.device
        if major >> 12 or minor >> 20:
            raise os_error(errno.EINVAL, path)
        inode = _inode(stat.S_IFCHR if entry.kind == CHAR else stat.S_IFBLK, entry)
        inode.rdev = device(major, minor)
        self._add(path, inode)

    def fifo(self, entry: Entry, path: bytes) -> None:
        self._add(path, _inode(stat.S_IFIFO, entry))

    def directory(self, path: bytes, mode: int) -> None:
        inode = Inode(stat.S_IFDIR | mode)
        above = self._add(path, inode)
        if above.mode & stat.S_ISGID:
            inode.gid = above.gid
            inode.mode |= stat.S_ISGID
        self._directories[path] = inode

    def describe(self, path: bytes, entry: Entry, fresh: bool) -> None:
        inode = self._directories[path]
        inode.mode = stat.S_IFDIR | entry.mode
        inode.uid, inode.gid = entry.uid, entry.gid
        marks = {n: v for n, v in inode.xattrs.items() if n.startswith(OVERLAY)}
        inode.xattrs = {**marks, **_xattrs(entry)} if marks or entry.xattrs else EMPTY

    def copy_up(self, path: bytes, status: os.stat_result, xattrs: Mapping[bytes, bytes]) -> None:
        if not all(name.startswith(_PLAIN) for name in xattrs):
            raise NeedsFiles(path)
        inode = Inode(status.st_mode, status.st_uid, status.st_gid, 0, xattrs)
        self._add(path, inode)
        self._directories[path] = inode

    def whiteout(self, path: bytes) -> None:
        self._add(path, Inode(stat.S_IFCHR))

    def set_xattr(self, path: bytes, name: str, value: bytes) -> None:
        inode = self._directories[path]
        inode.xattrs = {**inode.xattrs, os.fsencode(name): value}

    def set_time(self, path: bytes, time: int) -> None:
        self._directories[path].mtime = time

    def remove(self, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        inode = self._directories[parent].children.pop(name, None)
        if inode is None or not stat.S_ISDIR(inode.mode):
            return
        pending = [(path, inode)]
        while pending:
            path, inode = pending.pop()
            del self._directories[path]
            pending += [
                (path + b"/" + name, child)
                for name, child in inode.children.items()
                if stat.S_ISDIR(child.mode)
            ]

    def inodes(self) -> Iterator[Inode]:
        """All that are in the tree but the root, hard links as often as they have names."""
        for directory in self._directories.values():
            yield from directory.children.values()


def os_error(number: int, path: bytes) -> OSError:
    """The error that a system call would give."""
    return OSError(number, os.strerror(number), path)


def _inode(kind: int, entry: Entry) -> Inode:
    xattrs = _xattrs(entry) if entry.xattrs else EMPTY
    return Inode(kind | entry.mode, entry.uid, entry.gid, bounded_time(entry.mtime), xattrs)


def _xattrs(entry: Entry) -> dict[bytes, bytes]:
    """Those that a file would get; raises NeedsFiles where only the kernel knows."""
    found = {
        name: value
        for name, value in (entry.xattrs or {}).items()
        if name.startswith(_KNOWN)
        and not name.startswith(OVERLAY)
        # user.* exists on files and directories only (xattr(7))
        and (entry.kind in (REGULAR, DIRECTORY) or not name.startswith(b"user."))
    }
    sizes = sum(len(name) + len(value) + 20 for name, value in found.items())
    if sizes > _MAX_XATTRS or not all(_is_plain(entry, name, found[name]) for name in found):
        raise NeedsFiles(entry.name)
    return found


def _is_plain(entry: Entry, name: bytes, value: bytes) -> bool:
    """Whether the kernel takes an xattr as it is."""
    if name == _CAPABILITY:
        revision = value[3:4] == bytes((_CAPABILITY_REVISION,))
        return entry.kind == REGULAR and revision and len(value) == _CAPABILITY_SIZE
    return name.startswith(_PLAIN) and name not in _PLAIN
