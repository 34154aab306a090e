"""Files and trees: durable writes, removal, usage."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FICLONE = 0x40049409
_COMPARED = ("st_mode", "st_uid", "st_gid", "st_rdev", "st_size", "st_mtime_ns")
# PATH_MAX is 4096, a name 255
_REACH = 3072


def fsync_dir(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: str) -> None:
    """Make a file's data and size durable."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: str, data: bytes, mode: int = 0o644, *, sync: bool = True) -> None:
    """Put ``data`` at ``path``: a reader sees the old file or the new one, also after a crash."""
    # of this call alone: two threads may write the same file
    temporary = f"{path}.tmp-{os.urandom(6).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if sync:
        fsync_dir(os.path.dirname(path) or ".")


def fill_ahead(path: str, size: int) -> None:
    """Make a new file of ``size`` zeros, on disk; one that is there, or a full disk, is left be.

    Writing over blocks that exist is half the work for an fsync: there is no metadata to journal.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    try:
        while size > 0:
            size -= os.write(fd, bytes(min(size, 1 << 20)))
        os.fsync(fd)
    except OSError as error:
        os.unlink(path)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(fd)


def remove_tree(path: str) -> None:
    """Remove a tree, of whatever modes and depth; one that is not there is no error.

    Raises OSError.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    else:
        return
    # an explicit stack: a hostile tree can be deeper than Python's
    stack = [(path, False)]
    while stack:
        current, emptied = stack.pop()
        if emptied:
            os.rmdir(current)
            continue
        stack.append((current, True))
        if not os.access(current, os.R_OK | os.W_OK | os.X_OK):
            os.chmod(current, 0o700)
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append((_within_reach(entry.path, path), False))
                else:
                    os.unlink(entry.path)


def _within_reach(path: str, top: str) -> str:
    """``path``, moved up to ``top`` where names below it could be longer than the kernel takes."""
    if len(os.fsencode(path)) <= _REACH:
        return path
    if not os.access(path, os.W_OK):
        os.chmod(path, 0o700)
    nearer = os.path.join(top, f".deep-{os.urandom(8).hex()}")
    os.rename(path, nearer)
    return nearer


def usage(root: str) -> tuple[int, int]:
    """Bytes on disk and inodes of a tree, hard links once; what vanishes meanwhile is left out."""
    seen: set[int] = set()
    size = 0
    for entry in _walk(root):
        if entry.st_ino in seen and not stat.S_ISDIR(entry.st_mode):
            continue
        seen.add(entry.st_ino)
        size += entry.st_blocks * 512
    return size, len(seen)


def usage_over(root: str, below: str) -> tuple[int, int]:
    """``usage`` of what a copy ``root`` of the tree ``below`` has in addition, or changed."""
    seen: set[int] = set()
    size = 0
    stack = [""]
    while stack:
        inside = stack.pop()
        for name in ("", *_names(os.path.join(root, inside))):
            path = os.path.join(inside, name) if name else inside
            found = _lstat(os.path.join(root, path))
            if found is None:
                continue
            if name and stat.S_ISDIR(found.st_mode):
                stack.append(path)
                continue
            if found.st_ino not in seen and _differs(found, _lstat(os.path.join(below, path))):
                seen.add(found.st_ino)
                size += found.st_blocks * 512
    return size, len(seen)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _differs(one: os.stat_result, other: os.stat_result | None) -> bool:
    return other is None or any(getattr(one, name) != getattr(other, name) for name in _COMPARED)


def _walk(root: str) -> Iterator[os.stat_result]:
    try:
        yield os.lstat(root)
    except FileNotFoundError:
        return
    stack = [root]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        stack.append(entry.path)
                    yield found
        except (FileNotFoundError, NotADirectoryError):
            continue


def copy_tree(source: str, target: str) -> None:
    """Copy what is in ``source`` into ``target``: owners, modes, times, xattrs, links, devices.

    Sockets are left out: they mean nothing without their process.
    """
    links: dict[tuple[int, int], str] = {}
    stack = [(source, target)]
    finished: list[tuple[str, str]] = []
    while stack:
        here, there = stack.pop()
        finished.append((here, there))
        with os.scandir(here) as entries:
            for entry in entries:
                destination = os.path.join(there, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    os.mkdir(destination)
                    stack.append((entry.path, destination))
                else:
                    _copy_one(entry, destination, links)
    for here, there in reversed(finished):
        copy_attributes(here, there)


def _copy_one(entry: os.DirEntry[str], target: str, links: dict[tuple[int, int], str]) -> None:
    found = entry.stat(follow_symlinks=False)
    if stat.S_ISSOCK(found.st_mode):
        return
    key = (found.st_dev, found.st_ino)
    if key in links:
        os.link(links[key], target, follow_symlinks=False)
        return
    if found.st_nlink > 1:
        links[key] = target
    if stat.S_ISREG(found.st_mode):
        _copy_file(entry.path, target)
    elif stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(entry.path), target)
    else:
        os.mknod(target, found.st_mode, found.st_rdev)
    copy_attributes(entry.path, target)


def _copy_file(source: str, target: str) -> None:
    read = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_data(read, write)
        finally:
            os.close(write)
    finally:
        os.close(read)


def copy_data(read: int, write: int) -> int:
    """Copy from where one descriptor stands to where the other does, to the file's end; how much.

    The kernel copies, or shares the blocks, where the file systems can.
    """
    size = left = os.fstat(read).st_size
    while left > 0:
        done = _copy_range(read, write, left)
        if not done:
            break
        left -= done
    return size - left


def copy_image(read: int, write: int) -> None:
    """Copy a whole file to an empty one: its blocks are shared where that can be, holes stay."""
    try:
        fcntl.ioctl(write, FICLONE, read)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY):
            raise
    else:
        return
    size, end = os.fstat(read).st_size, 0
    os.ftruncate(write, size)
    while end < size:
        try:
            start = os.lseek(read, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # a hole up to the end
        end = os.lseek(read, start, os.SEEK_HOLE)
        _copy_extent(read, write, start, end)


def _copy_extent(read: int, write: int, start: int, end: int) -> None:
    os.lseek(read, start, os.SEEK_SET)
    os.lseek(write, start, os.SEEK_SET)
    while start < end:
        done = _copy_range(read, write, end - start)
        if not done:
            return
        start += done


def _copy_range(read: int, write: int, count: int) -> int:
    try:
        return os.copy_file_range(read, write, min(count, 1 << 30))
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        data = os.read(read, min(count, 1 << 20))
        left = memoryview(data)
        while left:
            left = left[os.write(write, left) :]
        return len(data)


def copy_attributes(source: str, target: str) -> None:
    """Owner, mode, xattrs and times of ``source``, itself and not what it points to."""
    found = os.lstat(source)
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        value = os.getxattr(source, name, follow_symlinks=False)
        os.setxattr(target, name, value, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)
