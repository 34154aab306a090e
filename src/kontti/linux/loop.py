"""Loop devices: files as block devices (loop(4))."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from kontti.errors import Unavailable

CONTROL = "/dev/loop-control"
BLOCK = "/sys/block"
LOOP_CTL_GET_FREE, LOOP_CONFIGURE = 0x4C82, 0x4C0A
LOOP_SET_STATUS64, LOOP_GET_STATUS64 = 0x4C04, 0x4C05
LO_FLAGS_READ_ONLY, LO_FLAGS_AUTOCLEAR = 1, 4
# struct loop_info64: five u64, four u32 (the last are the flags), two names, a key, two u64
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_FLAGS, _NAME = 8, 9
# struct loop_config: descriptor and block size, an info, eight u64
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64x")
ATTEMPTS = 100
MAX_PAUSE = 0.05


class Loop:
    """A file as a block device, which is let go of when this is closed and nobody uses it."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def info(self) -> list[int]:
        """The numbers of its loop_info64. Raises OSError."""
        raw = fcntl.ioctl(self._fd, LOOP_GET_STATUS64, bytes(_INFO.size))
        return [value for value in _INFO.unpack(raw) if isinstance(value, int)]

    def keep(self, kept: bool) -> None:
        """Have it stay without a user, or not any more. Raises OSError."""
        info = list(_INFO.unpack(fcntl.ioctl(self._fd, LOOP_GET_STATUS64, bytes(_INFO.size))))
        flags = info[_FLAGS] & ~LO_FLAGS_AUTOCLEAR
        info[_FLAGS] = flags if kept else flags | LO_FLAGS_AUTOCLEAR
        fcntl.ioctl(self._fd, LOOP_SET_STATUS64, _INFO.pack(*info))

    def close(self) -> None:
        """Use it no more."""
        os.close(self._fd)

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach(file: str, *, readonly: bool) -> Loop:
    """A free device for ``file``. Raises OSError, Unavailable where others are always quicker."""
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC
    backing = os.open(file, flags)
    try:
        for attempt in range(1, ATTEMPTS):
            path = f"/dev/loop{_free()}"
            try:
                return _configure(path, file, backing, flags)
            except OSError as error:
                # whoever asks for a free one may find that it is taken by the time he takes it
                if error.errno != errno.EBUSY:
                    raise
            time.sleep(min(0.001 * attempt, MAX_PAUSE))
    finally:
        os.close(backing)
    raise Unavailable("no loop device is to be had")


def device(path: str) -> Loop:
    """A device that is there; raises OSError."""
    return Loop(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def attached(file: str, *, writable: bool) -> Loop | None:
    """The device that ``file`` has already: two would not see each other's writes.

    None where it has none, or only one that is not ``writable``. Raises OSError.
    """
    wanted = os.stat(file)
    for name in os.listdir(BLOCK):
        if not name.startswith("loop") or not _may_back(name, file):
            continue
        try:
            found = device(f"/dev/{name}")
        except OSError:
            continue  # gone meanwhile
        if _backs(found, wanted, writable):
            return found
        found.close()
    return None


def _may_back(name: str, file: str) -> bool:
    try:
        with open(f"{BLOCK}/{name}/loop/backing_file") as backing:
            return os.path.basename(backing.read().rstrip("\n")) == os.path.basename(file)
    except OSError:
        return False


def _backs(found: Loop, wanted: os.stat_result, writable: bool) -> bool:
    try:
        info = found.info()
    except OSError:
        return False
    device, inode, flags = info[0], info[1], info[_FLAGS]
    same = (device, inode) == (_encoded(wanted.st_dev), wanted.st_ino)
    return same and not (writable and flags & LO_FLAGS_READ_ONLY)


def _encoded(device: int) -> int:
    """As the kernel tells of devices there (huge_encode_dev)."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _free() -> int:
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def _configure(path: str, file: str, backing: int, flags: int) -> Loop:
    readonly = LO_FLAGS_READ_ONLY if not flags & os.O_RDWR else 0
    fd = os.open(path, flags)
    try:
        values = [0, 0, 0, 0, 0, 0, 0, 0, readonly | LO_FLAGS_AUTOCLEAR]
        info = _INFO.pack(*values, os.fsencode(file)[:63], b"", b"", 0, 0)
        fcntl.ioctl(fd, LOOP_CONFIGURE, _CONFIG.pack(backing, 0, info))
    except BaseException:
        os.close(fd)
        raise
    return Loop(path, fd)
