"""System calls that Python lacks, one function each, named as the kernel names them.

The only user of ctypes. Imported by the shim: it imports little itself. Each function raises
OSError with the call's name; nothing is retried but EINTR.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | bytes

# sys/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_SYNCHRONOUS, MS_REMOUNT, MS_MANDLOCK, MS_DIRSYNC = 16, 32, 64, 128
MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME, MS_BIND = 256, 1024, 2048, 4096
MS_MOVE, MS_REC, MS_SILENT = 8192, 16384, 32768
SYNC_FILE_RANGE_WRITE = 2
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_I_VERSION, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 23, 1 << 24, 1 << 25
MNT_FORCE, MNT_DETACH, MNT_EXPIRE, UMOUNT_NOFOLLOW = 1, 2, 4, 8
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC, OPEN_TREE_CLONE = 1, 1, 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_FD, FSCONFIG_CMD_CREATE = 0, 1, 5, 6
MOVE_MOUNT_F_EMPTY_PATH = 4
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOSYMFOLLOW = 16, 128, 1 << 21
MOUNT_ATTR_IDMAP = 1 << 20
# sched.h
CLONE_NEWTIME, CLONE_NEWNS, CLONE_NEWCGROUP = 0x80, 0x20000, 0x2000000
CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x4000000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
# malloc.h
M_ARENA_MAX = -8
# sys/prctl.h
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
# flags of openat2(2)
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 1, 2, 4
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 8, 16
# sys/inotify.h
IN_MODIFY, IN_CREATE, IN_DELETE = 2, 0x100, 0x200
IN_NONBLOCK, IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
# magic numbers of statfs(2)
TMPFS_MAGIC, CGROUP2_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC = 0x01021994, 0x63677270, 0x794C7630
EROFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC = 0xE0F5E1E2, 0x9123683E

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
# these have one number on every architecture
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 428, 429, 430, 431, 432
_SYS_OPENAT2, _SYS_MOUNT_SETATTR = 437, 442

_libc = ctypes.CDLL(None, use_errno=True)
_c_path, _c_ulong, _c_int = ctypes.c_char_p, ctypes.c_ulong, ctypes.c_int
_libc.mount.argtypes = (_c_path, _c_path, _c_path, _c_ulong, _c_path)
_libc.umount2.argtypes = (_c_path, _c_int)
_libc.unshare.argtypes = (_c_int,)
_libc.setns.argtypes = (_c_int, _c_int)
_libc.prctl.argtypes = (_c_int, _c_ulong, _c_ulong, _c_ulong, _c_ulong)
_libc.syncfs.argtypes = (_c_int,)
_libc.syscall.restype = ctypes.c_long
_libc.inotify_init1.argtypes = (_c_int,)
_libc.inotify_add_watch.argtypes = (_c_int, _c_path, ctypes.c_uint32)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _Statfs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("_rest", ctypes.c_byte * 256))


def _fail(syscall: str, path: Path | None = None) -> OSError:
    errno = ctypes.get_errno()
    name = os.fsdecode(path) if path is not None else None
    return OSError(errno, f"{syscall}: {os.strerror(errno)}", name)


def _bytes(path: Path | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def mount(
    source: Path | None, target: Path, fstype: Path | None, flags: int, data: Path | None
) -> None:
    """mount(2)."""
    if _libc.mount(_bytes(source), _bytes(target), _bytes(fstype), flags, _bytes(data)) < 0:
        raise _fail("mount", target)


def umount2(target: Path, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(_bytes(target), flags) < 0:
        raise _fail("umount2", target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(flags) < 0:
        raise _fail("unshare")


def setns(fd: int, nstype: int) -> None:
    """setns(2)."""
    if _libc.setns(fd, nstype) < 0:
        raise _fail("setns")


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) with integer arguments."""
    result: int = _libc.prctl(option, arg2, arg3, arg4, arg5)
    if result < 0:
        raise _fail("prctl")
    return result


def mallopt(param: int, value: int) -> None:
    """mallopt(3), where the C library has it."""
    with_it = getattr(_libc, "mallopt", None)
    if with_it is not None:
        with_it(param, value)


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    if _libc.syncfs(fd) < 0:
        raise _fail("syncfs")


def sync_file_range(fd: int, offset: int, count: int, flags: int) -> None:
    """sync_file_range(2). It starts or awaits writing; it makes nothing durable by itself."""
    if _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(count), flags) < 0:
        raise _fail("sync_file_range")


def statfs_type(path: Path) -> int:
    """``f_type`` of statfs(2)."""
    buffer = _Statfs()
    if _libc.statfs(_bytes(path), ctypes.byref(buffer)) < 0:
        raise _fail("statfs", path)
    return int(buffer.f_type)


def pivot_root(new_root: Path, put_old: Path) -> None:
    """pivot_root(2)."""
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _syscall("pivot_root", number, _bytes(new_root), _bytes(put_old))


def openat2(dirfd: int, path: Path, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2); gives a file descriptor, close-on-exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    return _syscall("openat2", _SYS_OPENAT2, dirfd, _bytes(path), ctypes.byref(how), size)


def fsopen(fstype: str) -> int:
    """fsopen(2), close-on-exec."""
    return _syscall("fsopen", _SYS_FSOPEN, _bytes(fstype), FSOPEN_CLOEXEC)


def fsconfig_set_string(fd: int, key: str, value: Path) -> None:
    """fsconfig(2) with FSCONFIG_SET_STRING."""
    _fsconfig(fd, FSCONFIG_SET_STRING, key, value)


def fsconfig_set_flag(fd: int, key: str) -> None:
    """fsconfig(2) with FSCONFIG_SET_FLAG."""
    _fsconfig(fd, FSCONFIG_SET_FLAG, key, None)


def fsconfig_set_fd(fd: int, key: str, value: int) -> None:
    """fsconfig(2) with FSCONFIG_SET_FD."""
    _fsconfig(fd, FSCONFIG_SET_FD, key, None, value)


def fsconfig_create(fd: int) -> None:
    """fsconfig(2) with FSCONFIG_CMD_CREATE."""
    _fsconfig(fd, FSCONFIG_CMD_CREATE, None, None)


def _fsconfig(fd: int, command: int, key: str | None, value: Path | None, aux: int = 0) -> None:
    _syscall("fsconfig", _SYS_FSCONFIG, fd, command, _bytes(key), _bytes(value), aux)


def fsmount(fd: int, attributes: int) -> int:
    """fsmount(2); gives the mount's file descriptor."""
    return _syscall("fsmount", _SYS_FSMOUNT, fd, FSMOUNT_CLOEXEC, attributes)


def open_tree(dirfd: int, path: Path, flags: int) -> int:
    """open_tree(2), close-on-exec."""
    return _syscall("open_tree", _SYS_OPEN_TREE, dirfd, _bytes(path), flags | os.O_CLOEXEC)


def move_mount(from_fd: int, target: Path) -> None:
    """move_mount(2) of the mount ``from_fd`` is, to ``target``."""
    args = (from_fd, b"", AT_FDCWD, _bytes(target), MOVE_MOUNT_F_EMPTY_PATH)
    _syscall("move_mount", _SYS_MOVE_MOUNT, *args)


def mount_setattr(
    fd: int, flags: int, attr_set: int = 0, attr_clr: int = 0, userns_fd: int = 0
) -> None:
    """mount_setattr(2) of the mount ``fd`` is."""
    attr = _MountAttr(attr_set, attr_clr, 0, userns_fd)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    pointer = ctypes.byref(attr)
    _syscall("mount_setattr", _SYS_MOUNT_SETATTR, fd, b"", flags | AT_EMPTY_PATH, pointer, size)


def inotify_init1(flags: int) -> int:
    """inotify_init1(2)."""
    fd: int = _libc.inotify_init1(flags)
    if fd < 0:
        raise _fail("inotify_init1")
    return fd


def inotify_add_watch(fd: int, path: Path, mask: int) -> int:
    """inotify_add_watch(2)."""
    watch: int = _libc.inotify_add_watch(fd, _bytes(path), mask)
    if watch < 0:
        raise _fail("inotify_add_watch", path)
    return watch


def _syscall(name: str, number: int, *args: object) -> int:
    result = _libc.syscall(ctypes.c_long(number), *map(_argument, args))
    if result < 0:
        path = next((a for a in args if isinstance(a, bytes) and a), None)
        raise _fail(name, path)
    return int(result)


def _argument(value: object) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def prctl_set_name(name: str) -> None:
    """prctl(2), PR_SET_NAME: the name that ps shows, at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))
