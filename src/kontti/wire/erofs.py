"""An EROFS image around data that is written already: inodes in, bytes out. No file.

https://erofs.docs.kernel.org/en/latest/core_ondisk.html. An image here is

    [1024 bytes][superblock, to 4096][the files' data, at block borders][inodes][directories, links]

with blocks of 512 bytes, so that a tar's own data can be the files' data where it stands. Inodes
are extended ones, data is flat and plain, extended attributes stand behind their inode.
"""

from __future__ import annotations

import stat
from struct import Struct

from kontti.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

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
_MAGIC, _BLOCK_BITS, _EXTENDED = 0xE0F5E1E2, 9, 1
_SLOT, _INODE_SIZE, _XATTR_HEAD = 32, 64, bytes(12)
_INODE = Struct("<HHHHQIIIIQII16x")
_DIRENT = Struct("<QHBx")
_XATTR = Struct("<BBH")
_SUPERBLOCK = Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
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

    def __init__(self, mode: int, uid: int = 0, gid: int = 0, mtime: int = 0) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.size = 0
        self.offset = 0
        self.rdev = 0
        self.nlink = 0
        self.link = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.children: dict[bytes, Inode] = {}
        self.slot = 0


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
        self._inodes = self._number(root)
        self._bodies: list[bytes] = []
        end = self.start + aligned(self._table_size)
        for directory, parent in self._directories:
            end = self._place(directory, directory_body(directory, parent), end)
        for inode in self._inodes:
            if stat.S_ISLNK(inode.mode):
                end = self._place(inode, inode.link, end)
        self.size = aligned(end, DATA_START)
        if self.size // BLOCK > MAX_BLOCKS:
            raise InvalidArgument(f"erofs: an image of {self.size} bytes is too large")

    def _number(self, root: Inode) -> list[Inode]:
        """Give each inode its slot, a hard link's once, and count the names of each."""
        found: list[Inode] = []
        position = _INODE_SIZE  # no inode has the number 0
        stack = [(root, root)]
        while stack:
            inode, parent = stack.pop()
            inode.nlink += 1
            if inode.slot:
                continue
            inode.slot = position // _SLOT
            position += _INODE_SIZE + aligned(len(xattr_body(inode)), _INODE_SIZE)
            found.append(inode)
            if stat.S_ISDIR(inode.mode):
                self._directories.append((inode, parent))
                inode.nlink += 1
                parent.nlink += parent is not inode
                stack.extend((child, inode) for child in inode.children.values())
        self._table_size = position
        return found

    def _place(self, inode: Inode, body: bytes, end: int) -> int:
        inode.offset, inode.size = end, len(body)
        self._bodies.append(body.ljust(aligned(len(body)), b"\0"))
        return end + aligned(len(body))

    def metadata(self) -> Iterator[bytes]:
        """What is to be written at ``start``, in pieces."""
        yield bytes(_INODE_SIZE)
        for number, inode in enumerate(self._inodes, 1):
            yield inode_body(inode, number)
        yield bytes(aligned(self._table_size) - self._table_size)
        yield from self._bodies

    def superblock(self, uuid: bytes) -> bytes:
        """What is to be written at SUPERBLOCK_OFFSET; ``uuid`` has 16 bytes."""
        return _SUPERBLOCK.pack(
            _MAGIC, 0, 0, _BLOCK_BITS, 0, self._root.slot, len(self._inodes), 0, 0,
            self.size // BLOCK, self.start // BLOCK, 0, uuid, b"", 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip


def inode_body(inode: Inode, number: int) -> bytes:
    """An inode with its attributes."""
    xattrs = xattr_body(inode)
    kind = stat.S_IFMT(inode.mode)
    place = inode.offset // BLOCK if inode.size else 0
    head = _INODE.pack(
        _EXTENDED,
        (len(xattrs) - len(_XATTR_HEAD)) // 4 + 1 if xattrs else 0,
        inode.mode,
        0,
        inode.size,
        inode.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else place,
        number & 0xFFFFFFFF,
        inode.uid,
        inode.gid,
        (inode.mtime // 10**9) & _MASK64,
        inode.mtime % 10**9,
        inode.nlink,
    )
    return head + xattrs.ljust(aligned(len(xattrs), _INODE_SIZE), b"\0")


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


def directory_body(directory: Inode, parent: Inode) -> bytes:
    """A directory's blocks: in each the entries, then their names, all in the order of names."""
    entries = sorted([(b".", directory), (b"..", parent), *directory.children.items()])
    blocks: list[bytes] = []
    pending: list[tuple[bytes, Inode]] = []
    used = 0
    for name, inode in entries:
        size = _DIRENT.size + len(name)
        if not name or size > BLOCK:
            raise InvalidArgument(f"erofs: a name of {len(name)} bytes")
        if used + size > BLOCK:
            blocks.append(_block(pending).ljust(BLOCK, b"\0"))
            pending, used = [], 0
        pending.append((name, inode))
        used += size
    return b"".join((*blocks, _block(pending)))


def _block(entries: list[tuple[bytes, Inode]]) -> bytes:
    offset = _DIRENT.size * len(entries)
    heads = b""
    for name, inode in entries:
        heads += _DIRENT.pack(inode.slot, offset, _TYPES[stat.S_IFMT(inode.mode)])
        offset += len(name)
    return heads + b"".join(name for name, _ in entries)
