"""An EROFS image around data that is written already: inodes in, bytes out. No file.

https://erofs.docs.kernel.org/en/latest/core_ondisk.html. An image here is

    [1024 bytes][superblock, to 4096][the files' data, at block borders][inodes][directories, links]

with blocks of 512 bytes, so that a tar's own data can be the files' data where it stands. Inodes
are extended ones, data is flat and plain, extended attributes stand behind their inode.
"""

from __future__ import annotations

import stat
from struct import Struct
from types import MappingProxyType

from kontti.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

BLOCK = 512
DATA_START = 4096
SUPERBLOCK_OFFSET = 1024
MAX_BLOCKS = (1 << 32) - 1
PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
"""Attributes that an image can hold, and the number that stands for what they begin with."""
MAGIC, _BLOCK_BITS, _EXTENDED = 0xE0F5E1E2, 9, 1
EMPTY: Mapping[bytes, bytes] = MappingProxyType({})
_TYPE = 0o170000
_SLOT, _INODE_SIZE, _XATTR_HEAD = 32, 64, bytes(12)
INODE = Struct("<HHHHQIIIIQII16x")
DIRENT = Struct("<QHBx")
_XATTR = Struct("<BBH")
SUPERBLOCK = Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_MASK64 = (1 << 64) - 1
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


class Inode:
    """A file of any kind. ``mode`` has its type, ``mtime`` is in ns, ``offset`` where a regular
    file's data is in the image; ``link`` is a symlink's target, ``children`` a directory's."""

    __slots__ = (
        "children", "gid", "link", "mode", "mtime", "nlink", "offset", "rdev", "size", "slot",
        "uid", "xattrs",
    )  # fmt: skip

    def __init__(
        self,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        xattrs: Mapping[bytes, bytes] = EMPTY,
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.size = 0
        self.offset = 0
        self.rdev = 0
        self.nlink = 0
        self.link = b""
        self.xattrs = xattrs
        # what is no directory has none: there may be millions
        self.children: dict[bytes, Inode] = {} if mode & _TYPE == stat.S_IFDIR else _CHILDLESS
        self.slot = 0


_CHILDLESS: dict[bytes, Inode] = {}


def device(major: int, minor: int) -> int:
    """A device's number as an image has it."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def aligned(size: int, to: int = BLOCK) -> int:
    """``size`` rounded up."""
    return size + -size % to


class Layout:
    """Where everything of the tree below ``root`` goes, ``start`` being the end of the data.

    Raises InvalidArgument for what an image cannot hold.
    """

    def __init__(self, root: Inode, start: int) -> None:
        self.start = aligned(start)
        self._root = root
        self._directories: list[tuple[Inode, Inode]] = []
        self._links: list[Inode] = []
        self._bodies: list[bytes] = []
        # no inode has the number 0
        self._end = _INODE_SIZE
        self._inodes = self._number(root)
        end = self.start + aligned(self._end)
        for directory, parent in self._directories:
            entries = [(b".", directory), (b"..", parent), *directory.children.items()]
            end = self._place(directory, directory_body(map(_entry, entries)), end)
        for inode in self._links:
            end = self._place(inode, inode.link, end)
        self.size = aligned(end, DATA_START)
        if self.size // BLOCK > MAX_BLOCKS:
            raise InvalidArgument(f"erofs: an image of {self.size} bytes is too large")

    def _number(self, root: Inode) -> list[Inode]:
        """Give each inode its slot, a hard link's once, and count the names of each."""
        found = [root]
        self._take_slot(root)
        root.nlink += 2
        pending = [(root, root)]
        while pending:
            directory, parent = pending.pop()
            self._directories.append((directory, parent))
            for child in directory.children.values():
                child.nlink += 1
                if child.slot:
                    continue
                self._take_slot(child)
                found.append(child)
                kind = child.mode & _TYPE
                if kind == stat.S_IFDIR:
                    child.nlink += 1
                    directory.nlink += 1
                    pending.append((child, directory))
                elif kind == stat.S_IFLNK:
                    self._links.append(child)
        return found

    def _take_slot(self, inode: Inode) -> None:
        inode.slot = self._end // _SLOT
        self._end += _INODE_SIZE
        if inode.xattrs:
            self._end += aligned(len(xattr_body(inode)), _INODE_SIZE)

    def _place(self, inode: Inode, body: bytes, end: int) -> int:
        inode.offset, inode.size = end, len(body)
        self._bodies.append(body.ljust(aligned(len(body)), b"\0"))
        return end + aligned(len(body))

    def metadata(self) -> Iterator[bytes]:
        """What is to be written at ``start``, in pieces."""
        yield bytes(_INODE_SIZE)
        for number, inode in enumerate(self._inodes, 1):
            yield inode_body(inode, number)
        yield bytes(aligned(self._end) - self._end)
        yield from self._bodies

    def superblock(self, uuid: bytes) -> bytes:
        """What is to be written at SUPERBLOCK_OFFSET; ``uuid`` has 16 bytes."""
        return SUPERBLOCK.pack(
            MAGIC, 0, 0, _BLOCK_BITS, 0, self._root.slot, len(self._inodes), 0, 0,
            self.size // BLOCK, self.start // BLOCK, 0, uuid, b"", 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip


def inode_body(inode: Inode, number: int) -> bytes:
    """An inode with its attributes."""
    xattrs = xattr_body(inode) if inode.xattrs else b""
    kind = inode.mode & _TYPE
    seconds, nanoseconds = divmod(inode.mtime, 10**9)
    place = inode.offset // BLOCK if inode.size else 0
    head = INODE.pack(
        _EXTENDED,
        (len(xattrs) - len(_XATTR_HEAD)) // 4 + 1 if xattrs else 0,
        inode.mode,
        0,
        inode.size,
        inode.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else place,
        number & 0xFFFFFFFF,
        inode.uid,
        inode.gid,
        seconds & _MASK64,
        nanoseconds,
        inode.nlink,
    )
    return head + xattrs.ljust(aligned(len(xattrs), _INODE_SIZE), b"\0") if xattrs else head


def xattr_body(inode: Inode) -> bytes:
    """Extended attributes as they stand behind an inode; those an image cannot hold are left out.

    Raises InvalidArgument for one that is too long.
    """
    body = b""
    for name, value in sorted(inode.xattrs.items()):
        prefix, index = next(((p, i) for p, i in PREFIXES if name.startswith(p)), (b"", 0))
        if not index:
            continue
        rest = name[len(prefix) :]
        if len(rest) > 255 or len(value) > 0xFFFF:
            raise InvalidArgument(f"erofs: extended attribute {name[:80]!r} is too long")
        entry = _XATTR.pack(len(rest), index, len(value)) + rest + value
        body += entry.ljust(aligned(len(entry), 4), b"\0")
    return _XATTR_HEAD + body if body else b""


def directory_body(entries: Iterable[tuple[bytes, int, int]]) -> bytes:
    """A directory's blocks of names, slots and types: in each the entries, then their names, all
    in the order of names."""
    blocks: list[bytes] = []
    pending: list[tuple[bytes, int, int]] = []
    used = 0
    for entry in sorted(entries):
        size = DIRENT.size + len(entry[0])
        if not entry[0] or size > BLOCK:
            raise InvalidArgument(f"erofs: a name of {len(entry[0])} bytes")
        if used + size > BLOCK:
            blocks.append(_block(pending).ljust(BLOCK, b"\0"))
            pending, used = [], 0
        pending.append(entry)
        used += size
    return b"".join((*blocks, _block(pending)))


def _entry(named: tuple[bytes, Inode]) -> tuple[bytes, int, int]:
    name, inode = named
    return name, inode.slot, _TYPES[inode.mode & _TYPE]


def _block(entries: list[tuple[bytes, int, int]]) -> bytes:
    offset = DIRENT.size * len(entries)
    parts = []
    for name, slot, kind in entries:
        parts.append(DIRENT.pack(slot, offset, kind))
        offset += len(name)
    return b"".join(parts) + b"".join(entry[0] for entry in entries)
