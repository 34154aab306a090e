"""Compresses the rotated files of one log, all but the newest. A process of its own.

It may be killed at any instant: a file is there whole in one form or in both, and what is left
half done is done again by the next.
"""

from __future__ import annotations

import fcntl
import os
import sys
import zlib

from kontti.shim import log_files
from kontti.shim.log_files import PACKED, PLAIN, UNFINISHED

CHUNK = 256 << 10
LEVEL = 6
GZIP = 31
"""zlib's window bits for a gzip file."""
NICE = 19


def main() -> None:
    """``log_pack FOLDER``."""
    os.nice(NICE)
    pack_all(sys.argv[1])


def pack_all(folder: str) -> None:
    """Compress what there is to compress. Ends where the disk is full or another is at it."""
    tried: set[int] = set()
    while True:
        todo = [n for n in candidates(folder) if n not in tried]
        if not todo:
            return
        # the newest of them: the oldest may be removed while we work on it
        tried.add(todo[-1])
        try:
            if not pack(folder, todo[-1]):
                return
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError:
            return


def candidates(folder: str) -> list[int]:
    """Numbers that are not compressed, or of which the plain form was left behind."""
    known = log_files.found(folder)
    plain = sorted(n for n, suffixes in known.items() if PLAIN in suffixes)
    newest = max(known, default=0)
    return [n for n in plain if n < newest - 1]


def pack(folder: str, number: int) -> bool:
    """Compress one file; False where another process does. Raises OSError."""
    plain, packed, unfinished = (
        os.path.join(folder, log_files.name_of(number, suffix))
        for suffix in (PLAIN, PACKED, UNFINISHED)
    )
    if os.path.exists(packed):
        # whole: it got its name when it was
        log_files.unlink(plain)
        return True
    source = os.open(plain, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        target = os.open(unfinished, flags, log_files.FILE_MODE)
        try:
            if not is_ours(target, unfinished):
                return False
            compress(source, target)
            os.rename(unfinished, packed)
        except BaseException:
            log_files.unlink(unfinished)
            raise
        finally:
            os.close(target)
    finally:
        os.close(source)
    if not log_files.unlink(plain):
        # the log went on and has removed it: it must not come back
        log_files.unlink(packed)
    return True


def is_ours(fd: int, path: str) -> bool:
    """Whether the unfinished file is for us to write: no other process does or just did."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    here, there = os.fstat(fd), os.stat(path)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def compress(source: int, target: int) -> None:
    """Write one file's bytes to another, as gzip and on disk; raises OSError."""
    os.ftruncate(target, 0)
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
    while data := os.read(source, CHUNK):
        write_all(target, packer.compress(data))
    write_all(target, packer.flush())
    found = os.fstat(source)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    # the plain file is removed next
    os.fsync(target)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
