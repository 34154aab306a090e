"""The files of one log: numbered, the highest the one that is written to, none ever renamed.

    00000006.log.gz   rotated and compressed
    00000007.log      rotated; left as it is until the next rotation, for who ships logs from disk
    00000008.log      written to

What was written is only ever appended to, compressed whole, or removed whole, so a reader that
goes by the numbers sees every byte once, whatever happens beside it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from kontti.errors import FailedPrecondition

PLAIN, PACKED, UNFINISHED = ".log", ".log.gz", ".log.gz.tmp"
FOLDER_MODE, PARENT_MODE, FILE_MODE = 0o750, 0o711, 0o640
LOCK_PAUSE = 0.02
TAIL = 64 << 10
REMOVE_ATTEMPTS = 20


def name_of(number: int, suffix: str = PLAIN) -> str:
    """A file's name."""
    return f"{number:08}{suffix}"


def found(folder: str) -> dict[int, set[str]]:
    """What there is of each number; nothing where the folder is not there."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return {}
    seen: dict[int, set[str]] = {}
    for name in names:
        digits, dot, rest = name.partition(".")
        if digits.isascii() and digits.isdigit() and dot + rest in (PLAIN, PACKED, UNFINISHED):
            seen.setdefault(int(digits), set()).add(dot + rest)
    return seen


def numbers(folder: str) -> list[int]:
    """The numbers of the files that can be read, oldest first."""
    return sorted(n for n, suffixes in found(folder).items() if suffixes & {PLAIN, PACKED})


def lock(folder: str, patience: float) -> int:
    """Be the one who writes to a log: a descriptor to close at the end.

    Raises FailedPrecondition where another does, and goes on to for ``patience`` seconds.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # a reader that looks whether somebody writes holds it for a moment
            if time.monotonic() >= deadline:
                os.close(fd)
                raise FailedPrecondition(f"log {folder} is written to by another") from None
            time.sleep(LOCK_PAUSE)
        except BaseException:
            os.close(fd)
            raise
        else:
            return fd


def written_to(folder: str) -> bool:
    """Whether somebody has the log open to write."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def remove(folder: str, number: int) -> None:
    """Remove every form of one file."""
    for suffix in (PLAIN, PACKED, UNFINISHED):
        unlink(os.path.join(folder, name_of(number, suffix)))


def remove_all(folder: str) -> None:
    """Remove a log, and its folder where nothing else is in it. Raises OSError."""
    for _ in range(REMOVE_ATTEMPTS):
        for number in found(folder):
            remove(folder, number)
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or not found(folder):
                return  # others' files
            # a compressor was amid a file: it sees now that it is not wanted
            time.sleep(LOCK_PAUSE)
        else:
            return


def unlink(path: str) -> bool:
    """Remove a file; False where there is none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def open_last(folder: str) -> tuple[int, int, int]:
    """The file to go on with: its number, descriptor and size. Raises OSError."""
    known = found(folder)
    number = max(known, default=0)
    if PLAIN not in known.get(number, ()):
        number += 1
    fd = open_new(folder, number)
    try:
        return number, fd, cut_torn(fd)
    except BaseException:
        os.close(fd)
        raise


def open_new(folder: str, number: int) -> int:
    """A file to append to; raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(os.path.join(folder, name_of(number)), flags, FILE_MODE)


def cut_torn(fd: int) -> int:
    """Cut off a last record that a crash of the host left without its end; the size then."""
    size = os.fstat(fd).st_size
    end = size
    while end:
        start = max(0, end - TAIL)
        data = os.pread(fd, end - start, start)
        newline = data.rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(fd, end)
    return end
