"""The file of an image that is made of a layer: the tar as it comes, then what makes it an image.

Later, when the layer's parents are there, it is brought in line with them where it stands.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from kontti.diff.image import ImageFiles
from kontti.diff.lowers import NeedsParents
from kontti.diff.sparse import Sparse
from kontti.snapshots.erofs_image import write_metadata
from kontti.wire.erofs import (
    DATA_START,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    Inode,
    Layout,
    aligned,
    directory_body,
)
from kontti.wire.erofs_read import (
    Entries,
    Head,
    Superblock,
    parse_directory,
    parse_inode,
    parse_superblock,
    with_inodes,
)

_COPY = 1 << 20
_PAGE = 4096


class ImageWriter:
    """Writes an image to ``fd``, which is empty."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = DATA_START
        self._in_archive = True
        os.lseek(fd, DATA_START, os.SEEK_SET)

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, written until the archive ends."""
        for chunk in chunks:
            if self._in_archive:
                write_all(self._fd, chunk)
                self._end += len(chunk)
            yield chunk

    def archive_ended(self) -> None:
        """What follows is no part of the image."""
        self._in_archive = False

    def finish(self, files: ImageFiles) -> None:
        """Write what makes the tar an image of ``files``."""
        reachable = set(files.inodes()) if files.sparse else ()
        for inode, (sparse, place) in files.sparse.items():
            if inode in reachable:
                self._spread(inode, sparse, place)
        layout = Layout(files.root, self._end)
        with _named():
            write_metadata(self._fd, layout, os.urandom(16))

    def _spread(self, inode: Inode, sparse: Sparse, place: int) -> None:
        """Put a sparse file's parts where they belong, behind all else."""
        inode.offset = aligned(self._end, _PAGE)
        self._end = inode.offset + sparse.size
        for offset, length in sparse.parts:
            self._copy(place, inode.offset + offset, length)
            place += length

    def _copy(self, source: int, target: int, length: int) -> None:
        while length:
            data = os.pread(self._fd, min(length, _COPY), source)
            if not data:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            put(self._fd, data, target)
            source, target, length = source + len(data), target + len(data), length - len(data)


def write_all(fd: int, data: bytes) -> None:
    """write(2) until all is written."""
    with _named():
        written = os.write(fd, data)
        while written < len(data):
            written += os.write(fd, memoryview(data)[written:])


def put(fd: int, data: bytes, offset: int) -> None:
    """pwrite(2) until all is written."""
    done = 0
    with _named():
        while done < len(data):
            done += os.pwrite(fd, memoryview(data)[done:], offset + done)


@contextmanager
def _named() -> Iterator[None]:
    """A call by descriptor does not say of which file its error is."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, "image of the layer") from None


class SettledImage:
    """diff.ahead.Settled: the image in ``fd``, of which directories are changed in place."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._superblock: Superblock = parse_superblock(self._head())
        # of directories that were looked into: thousands of names may be asked for in one
        self._names: dict[int, dict[bytes, int]] = {}

    def _head(self) -> bytes:
        return os.pread(self._fd, SUPERBLOCK.size, SUPERBLOCK_OFFSET)

    def _inode(self, slot: int) -> Head:
        return parse_inode(os.pread(self._fd, 64, self._superblock.place(slot)))

    def _put(self, slot: int, inode: Head) -> None:
        put(self._fd, inode.encode(), self._superblock.place(slot))

    def _entries(self, inode: Head) -> Entries:
        return parse_directory(os.pread(self._fd, inode.size, inode.place))

    def _slot(self, path: bytes) -> int:
        """The directory at ``path``; raises FileNotFoundError."""
        slot = self._superblock.root
        for name in path.split(b"/") if path else ():
            if slot not in self._names:
                entries = self._entries(self._inode(slot))
                self._names[slot] = {entry: at for entry, at, _ in entries}
            found = self._names[slot].get(name)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            slot = found
        return slot

    def unlink(self, paths: Sequence[bytes]) -> None:
        gone: dict[bytes, set[bytes]] = {}
        for path in paths:
            parent, _, name = path.rpartition(b"/")
            gone.setdefault(parent, set()).add(name)
        for parent, names in gone.items():
            self._unlink(self._slot(parent), names)
        if paths:
            self._count(self._superblock.inodes - len(paths))

    def _unlink(self, slot: int, names: set[bytes]) -> None:
        inode = self._inode(slot)
        # what is left takes no more room
        body = directory_body(entry for entry in self._entries(inode) if entry[0] not in names)
        put(self._fd, body.ljust(inode.size, b"\0"), inode.place)
        self._put(slot, inode.sized(len(body)))
        self._names.pop(slot, None)

    def _count(self, inodes: int) -> None:
        put(self._fd, with_inodes(self._head(), inodes), SUPERBLOCK_OFFSET)
        self._superblock = parse_superblock(self._head())

    def mark_opaque(self, path: bytes) -> None:
        """Nothing: it was marked when the image was made."""

    def take_after(
        self, path: bytes, status: os.stat_result, xattrs: Mapping[bytes, bytes]
    ) -> None:
        if xattrs:
            # an inode has the room that it was given
            raise NeedsParents(path)
        slot = self._slot(path)
        mode = stat.S_IMODE(status.st_mode)
        inode = self._inode(slot).owned(mode, status.st_uid, status.st_gid)
        self._put(slot, inode.timed(status.st_mtime_ns) if path else inode)

    def root(self) -> list[int]:
        inode = self._inode(self._superblock.root)
        return [stat.S_IMODE(inode.mode), *inode.owner]
