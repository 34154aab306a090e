"""Making and undoing lists of mounts, as snapshotters describe them.

Option words are mount(8)'s.
``uidmap=`` and ``gidmap=`` map the owners of what is mounted; of an overlay, its lower directories:
what its upper one holds has the owners that the mount shows.
"""

from __future__ import annotations

import os

from kontti.errors import InvalidArgument
from kontti.linux import idmap, libc, overlays

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
# a bind's own flags are set by a second call: the first takes none but MS_REC
_BIND_IGNORES = libc.MS_BIND | libc.MS_REC | libc.MS_REMOUNT


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
    data, uidmap, gidmap = idmap.take(data)
    if uidmap:
        with idmap.user_namespace(uidmap, gidmap) as namespace:
            _mount_mapped(mount, target, namespace)
    else:
        _mount_plain(mount, target, flags, data)
    if propagation:
        libc.mount(None, target, None, propagation, None)


def _mount_plain(mount: MountLike, target: str, flags: int, data: list[str]) -> None:
    if flags & libc.MS_BIND:
        _bind(mount.source, target, flags)
    elif mount.type == "overlay":
        overlays.make(mount.source, target, flags, data)
    else:
        if len(",".join(data)) >= overlays.PAGE:
            raise InvalidArgument("mount options are longer than a page")  # the kernel cuts them
        libc.mount(mount.source, target, mount.type, flags, ",".join(data))


def _mount_mapped(mount: MountLike, target: str, namespace: int) -> None:
    flags, _, data = parse_options(mount.options)
    data, _, _ = idmap.take(data)
    if mount.type == "overlay":
        overlays.make_mapped(target, flags, data, namespace)
    elif flags & libc.MS_BIND:
        recursive = bool(flags & libc.MS_REC)
        attributes = overlays.attributes(flags)
        tree = idmap.mapped_tree(
            mount.source, namespace, recursive=recursive, attributes=attributes
        )
        overlays.move(tree, target)
    else:
        _mount_plain(mount, target, flags, data)
        try:
            tree = idmap.mapped_tree(target, namespace)
        finally:
            libc.umount2(target, libc.MNT_DETACH)
        overlays.move(tree, target)


def _mount_file(mount: MountLike, target: str) -> None:
    """Mount a file by a loop device, which goes when it is unmounted."""
    from kontti.linux import loop

    options = [option for option in mount.options if option != "loop"]
    readonly = "ro" in options
    found = loop.attached(mount.source, writable=not readonly)
    with found or loop.attach(mount.source, readonly=readonly) as device:
        plain = _Plain(mount.type, device.path, mount.target, options)
        try:
            mount_one(plain, target)
        except OSError as error:
            if error.errno != _EBUSY or not (found and readonly):
                raise
            _mount_busy(plain, target)


def _mount_busy(mount: MountLike, target: str) -> None:
    """Mount read-only here what is mounted to be written elsewhere: it is one file system."""
    options = [option for option in mount.options if option != "ro"]
    mount_one(_Plain(mount.type, mount.source, mount.target, options), target)
    try:
        flags = libc.MS_BIND | libc.MS_REMOUNT | libc.MS_RDONLY | _kept(target)
        libc.mount(None, target, None, flags, None)
    except BaseException:
        libc.umount2(target, libc.MNT_DETACH)
        raise


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
        if mount.type == "overlay" and any(o.startswith("uidmap=") for o in options):
            options.append("ro")  # the upper directory is not to be mapped, as lower ones are
        elif mount.type == "overlay" and uppers:
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
