"""An EROFS image of a directory. A process of its own runs this: it takes a core for a while."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator

from kontti.errors import Error
from kontti.linux import fs
from kontti.snapshots.erofs_image import write_metadata
from kontti.wire.erofs import DATA_START, Inode, Layout, aligned, device

# overlayfs's own notes about an upper directory, which mean nothing in a lower one
_OVERLAY = (b"trusted.overlay.", b"user.overlay.")
_KEPT = (b"opaque", b"whiteout", b"whiteouts")


class Builder:
    """Copies files' data to the image ``fd`` and notes their inodes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = DATA_START
        self._links: dict[tuple[int, int], Inode] = {}

    def tree(self, root: str) -> Inode:
        """The inode of ``root`` with all below it; their data is written."""
        top = self._inode(os.fsencode(root), os.lstat(root))
        stack = [(os.fsencode(root), top)]
        while stack:
            path, directory = stack.pop()
            with os.scandir(path) as entries:
                for entry in entries:
                    inode = self._inode(entry.path, entry.stat(follow_symlinks=False))
                    directory.children[entry.name] = inode
                    if stat.S_ISDIR(inode.mode):
                        stack.append((entry.path, inode))
        return top

    def _inode(self, path: bytes, found: os.stat_result) -> Inode:
        key = (found.st_dev, found.st_ino)
        if key in self._links:
            return self._links[key]
        inode = Inode(found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns)
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            self._links[key] = inode
        inode.xattrs = dict(_xattrs(path))
        if stat.S_ISREG(found.st_mode):
            inode.size, inode.offset = self._copy(path), self._end
            self._end += aligned(inode.size)
        elif stat.S_ISLNK(found.st_mode):
            inode.link = os.readlink(path)
        elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            inode.rdev = device(os.major(found.st_rdev), os.minor(found.st_rdev))
        return inode

    def _copy(self, path: bytes) -> int:
        """Copy a file's data to the end; its size."""
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.lseek(self._fd, self._end, os.SEEK_SET)
            return fs.copy_data(source, self._fd)
        finally:
            os.close(source)

    def finish(self, root: Inode) -> None:
        """Write what makes the data an image."""
        layout = Layout(root, self._end)
        write_metadata(self._fd, layout, os.urandom(16))


def _xattrs(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    for name in os.listxattr(path, follow_symlinks=False):
        raw = os.fsencode(name)
        own = next((raw.removeprefix(p) for p in _OVERLAY if raw.startswith(p)), b"")
        if not own or own in _KEPT:
            yield raw, os.getxattr(path, name, follow_symlinks=False)


def write_image(source: str, target: str) -> None:
    """Make the image ``target`` of the directory ``source``, synced; raises OSError, Error."""
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        builder = Builder(fd)
        builder.finish(builder.tree(source))
        os.fsync(fd)
    finally:
        os.close(fd)


def main() -> int:
    """``DIRECTORY IMAGE``: make the image; 1 with the reason on stderr."""
    source, target = sys.argv[1:3]
    try:
        write_image(source, target)
    except OSError as error:
        name = os.fsdecode(error.filename) if error.filename else target
        sys.stderr.write(f"{error.errno} {name}: {error.strerror}\n")
        return 1
    except Error as error:
        sys.stderr.write(f"0 {error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
