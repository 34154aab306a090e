"""Making and undoing lists of mounts, as snapshotters describe them.

Option words are mount(8)'s. An overlay with more lower directories than a page of options holds is
made by fsconfig(2) with ``lowerdir+`` (kernel 6.8), or with short relative paths before that.
"""

from __future__ import annotations

import os

from kontti.errors import InvalidArgument
from kontti.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Protocol

    class MountLike(Protocol):
        """kontti.values.Mount, and containerd.types.Mount of the small codec."""

        @property
        def type(self) -> str: ...
        @property
        def source(self) -> str: ...
        @property
        def target(self) -> str: ...
        @property
        def options(self) -> Sequence[str]: ...


# whether an option clears its flag, and the flag
FLAGS: dict[str, tuple[bool, int]] = {
    "async": (True, libc.MS_SYNCHRONOUS),
    "atime": (True, libc.MS_NOATIME),
    "bind": (False, libc.MS_BIND),
    "defaults": (False, 0),
    "dev": (True, libc.MS_NODEV),
    "diratime": (True, libc.MS_NODIRATIME),
    "dirsync": (False, libc.MS_DIRSYNC),
    "exec": (True, libc.MS_NOEXEC),
    "lazytime": (False, libc.MS_LAZYTIME),
    "mand": (False, libc.MS_MANDLOCK),
    "noatime": (False, libc.MS_NOATIME),
    "nodev": (False, libc.MS_NODEV),
    "nodiratime": (False, libc.MS_NODIRATIME),
    "noexec": (False, libc.MS_NOEXEC),
    "nomand": (True, libc.MS_MANDLOCK),
    "norelatime": (True, libc.MS_RELATIME),
    "nostrictatime": (True, libc.MS_STRICTATIME),
    "nosuid": (False, libc.MS_NOSUID),
    "nosymfollow": (False, libc.MS_NOSYMFOLLOW),
    "rbind": (False, libc.MS_BIND | libc.MS_REC),
    "relatime": (False, libc.MS_RELATIME),
    "remount": (False, libc.MS_REMOUNT),
    "ro": (False, libc.MS_RDONLY),
    "rw": (True, libc.MS_RDONLY),
    "strictatime": (False, libc.MS_STRICTATIME),
    "suid": (True, libc.MS_NOSUID),
    "sync": (False, libc.MS_SYNCHRONOUS),
}
PROPAGATION = {
    "private": libc.MS_PRIVATE,
    "rprivate": libc.MS_PRIVATE | libc.MS_REC,
    "shared": libc.MS_SHARED,
    "rshared": libc.MS_SHARED | libc.MS_REC,
    "slave": libc.MS_SLAVE,
    "rslave": libc.MS_SLAVE | libc.MS_REC,
    "unbindable": libc.MS_UNBINDABLE,
    "runbindable": libc.MS_UNBINDABLE | libc.MS_REC,
}
_ATTRIBUTES = {
    libc.MS_RDONLY: libc.MOUNT_ATTR_RDONLY,
    libc.MS_NOSUID: libc.MOUNT_ATTR_NOSUID,
    libc.MS_NODEV: libc.MOUNT_ATTR_NODEV,
    libc.MS_NOEXEC: libc.MOUNT_ATTR_NOEXEC,
    libc.MS_NOATIME: libc.MOUNT_ATTR_NOATIME,
    libc.MS_NODIRATIME: libc.MOUNT_ATTR_NODIRATIME,
    libc.MS_NOSYMFOLLOW: libc.MOUNT_ATTR_NOSYMFOLLOW,
}
# a bind's own flags are set by a second call: the first takes none but MS_REC
_BIND_IGNORES = libc.MS_BIND | libc.MS_REC | libc.MS_REMOUNT
PAGE = 4096


def parse_options(options: Sequence[str]) -> tuple[int, int, list[str]]:
    """mount(2) flags, propagation flags (0 for none), and what is left for the file system."""
    flags = propagation = 0
    data = []
    for option in options:
        if option in FLAGS:
            clears, flag = FLAGS[option]
            flags = flags & ~flag if clears else flags | flag
        elif option in PROPAGATION:
            propagation = PROPAGATION[option]
        elif option == "loop":
            continue  # who mounts a file has a device for it
        else:
            data.append(option)
    return flags, propagation, data


def mount_all(mounts: Sequence[MountLike], root: str) -> None:
    """Make ``mounts`` in order at ``root``, or at their ``target`` inside it.

    What was made is undone when a later one fails. Raises OSError, Unimplemented.
    """
    made: list[str] = []
    try:
        for mount in mounts:
            with _target(root, mount.target) as target:
                # by the place itself: undone through a symlink's name, a mount of the host goes
                made.append(os.readlink(target) if mount.target else root)
                try:
                    mount_one(mount, target)
                except BaseException:
                    made.pop()
                    raise
    except BaseException:
        for target in reversed(made):
            _undo(target)
        raise


def _undo(target: str) -> None:
    try:
        libc.umount2(target, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)
    except OSError:
        # what failed first is told; the others are still to be undone
        return


class _target:  # noqa: N801 used as a function
    """A path that names ``inside`` below ``root`` whatever symlinks lie there."""

    __slots__ = ("_fd", "_inside", "_root")

    def __init__(self, root: str, inside: str) -> None:
        self._root = root
        self._inside = inside
        self._fd = -1

    def __enter__(self) -> str:
        if not self._inside:
            return self._root
        root = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._fd = libc.openat2(root, self._inside, os.O_PATH, resolve=libc.RESOLVE_IN_ROOT)
        finally:
            os.close(root)
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def mount_one(mount: MountLike, target: str) -> None:
    """Make one mount at ``target``."""
    flags, propagation, data = parse_options(mount.options)
    if "loop" in mount.options:
        _mount_file(mount, target)
        return
    if flags & libc.MS_BIND:
        _bind(mount.source, target, flags)
    elif mount.type == "overlay" and len(",".join(data)) >= PAGE - 1:
        _overlay(target, flags, data)
    else:
        if len(",".join(data)) >= PAGE:
            raise InvalidArgument("mount options are longer than a page")  # the kernel cuts them
        libc.mount(mount.source, target, mount.type, flags, ",".join(data))
    if propagation:
        libc.mount(None, target, None, propagation, None)


def _mount_file(mount: MountLike, target: str) -> None:
    """Mount a file by a loop device, which goes when it is unmounted."""
    from kontti.linux import loop

    options = [option for option in mount.options if option != "loop"]
    with loop.attach(mount.source, readonly="ro" in options) as device:
        mount_one(_Plain(mount.type, device.path, mount.target, options), target)


def _bind(source: str, target: str, flags: int) -> None:
    libc.mount(source, target, None, flags & (libc.MS_BIND | libc.MS_REC), None)
    if flags & ~_BIND_IGNORES:
        again = flags & ~libc.MS_REC | libc.MS_REMOUNT | _kept(target)
        try:
            libc.mount(None, target, None, again, None)
        except OSError:
            libc.umount2(target, libc.MNT_DETACH)
            raise


def _kept(target: str) -> int:
    """Flags of the source's own mount: a bind takes none away, a user namespace may not."""
    known = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    return os.statvfs(target).f_flag & known


def _overlay(target: str, flags: int, data: list[str]) -> None:
    options = [option.partition("=") for option in data]
    lowers = next((v.split(":") for k, _, v in options if k == "lowerdir"), [])
    others = [(k, v) for k, _, v in options if k != "lowerdir"]
    if kernel_version() >= (6, 8):
        _overlay_fsconfig(target, flags, lowers, others)
    else:
        _overlay_relative(target, flags, lowers, others)


def _overlay_fsconfig(
    target: str, flags: int, lowers: list[str], others: list[tuple[str, str]]
) -> None:
    fd = libc.fsopen("overlay")
    try:
        for lower in lowers:
            libc.fsconfig_set_string(fd, "lowerdir+", lower)
        for key, value in others:
            if value:
                libc.fsconfig_set_string(fd, key, value)
            else:
                libc.fsconfig_set_flag(fd, key)
        if flags & libc.MS_RDONLY:
            libc.fsconfig_set_flag(fd, "ro")
        libc.fsconfig_create(fd)
        mounted = libc.fsmount(fd, sum(a for f, a in _ATTRIBUTES.items() if flags & f))
    finally:
        os.close(fd)
    try:
        libc.move_mount(mounted, target)
    finally:
        os.close(mounted)


def _overlay_relative(
    target: str, flags: int, lowers: list[str], others: list[tuple[str, str]]
) -> None:
    """Mount from a working directory that all lower directories share, so that names are short."""
    common = os.path.commonpath(lowers)
    short = ":".join(os.path.relpath(lower, common) for lower in lowers)
    rest = [f"{key}={value}" if value else key for key, value in others]
    data = ",".join([f"lowerdir={short}", *rest])
    if len(data) >= PAGE:
        raise InvalidArgument(f"overlay of {len(lowers)} layers does not fit a page of options")
    absolute = os.path.abspath(target)
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(common)
        libc.mount("overlay", absolute, "overlay", flags, data)
    finally:
        os.fchdir(before)
        os.close(before)


def overlay_uppers() -> frozenset[str]:
    """The upper directories of the overlays that are mounted here (proc(5), mountinfo)."""
    prefix = b"upperdir="
    found: set[str] = set()
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            kind, _, options = line.rpartition(b" - ")[2].split(b" ", 2)
            if kind == b"overlay":
                uppers = (o for o in options.strip().split(b",") if o.startswith(prefix))
                found.update(os.fsdecode(o.removeprefix(prefix)) for o in uppers)
    return frozenset(found)


def kernel_version() -> tuple[int, int]:
    """``(6, 18)``."""
    major, minor = os.uname().release.split(".")[:2]
    digits = "".join(c if c.isdigit() else " " for c in minor).split()
    return int(major), int(digits[0]) if digits else 0


def unmount_all(root: str) -> None:
    """Undo every mount that was made on ``root`` itself; detached where one is busy.

    A ``root`` that is not there or not mounted is no error.
    """
    # bounded: each turn takes one mount away, and nobody stacks thousands
    for _ in range(1000):
        try:
            libc.umount2(root, libc.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (_EINVAL, _ENOENT):
                return
            if error.errno != _EBUSY:
                raise
            libc.umount2(root, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)


_EINVAL, _ENOENT, _EBUSY = 22, 2, 16


class mounted:  # noqa: N801 used as a function
    """``with mounted(mounts) as path``: a new directory with ``mounts`` on it, both gone after."""

    def __init__(self, mounts: Sequence[MountLike], *, readonly: bool = False) -> None:
        self._mounts = list(_readonly(mounts)) if readonly else mounts
        self._path = ""

    def __enter__(self) -> str:
        import tempfile

        self._path = tempfile.mkdtemp(prefix="kontti-mount-")
        try:
            mount_all(self._mounts, self._path)
        except BaseException:
            os.rmdir(self._path)
            raise
        return self._path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        unmount_all(self._path)
        os.rmdir(self._path)


def _readonly(mounts: Sequence[MountLike]) -> Iterator[MountLike]:
    """The same file system without a way to write: no upper directory, binds with ``ro``."""
    for mount in mounts:
        options = [o for o in mount.options if o not in ("rw", "ro")]
        uppers = [o.partition("=")[2] for o in options if o.startswith("upperdir=")]
        if mount.type == "overlay" and uppers:
            options = [o for o in options if not o.startswith(("upperdir=", "workdir="))]
            options = [
                o.replace("lowerdir=", f"lowerdir={uppers[0]}:", 1)
                if o.startswith("lowerdir=")
                else o
                for o in options
            ]
        elif mount.type != "overlay":
            options.append("ro")
        yield _Plain(mount.type, mount.source, mount.target, options)


class _Plain:
    """A MountLike."""

    __slots__ = ("options", "source", "target", "type")

    def __init__(self, type: str, source: str, target: str, options: Sequence[str]) -> None:
        self.type = type
        self.source = source
        self.target = target
        self.options = options
