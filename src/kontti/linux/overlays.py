"""Overlays with any number of lower directories, mapped or not.

One with more of them than a page of options holds is made by fsconfig(2) with ``lowerdir+`` (kernel
6.8), or with short relative paths before that.
"""

from __future__ import annotations

import os

from kontti.errors import InvalidArgument
from kontti.linux import idmap, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_ATTRIBUTES = {
    libc.MS_RDONLY: libc.MOUNT_ATTR_RDONLY,
    libc.MS_NOSUID: libc.MOUNT_ATTR_NOSUID,
    libc.MS_NODEV: libc.MOUNT_ATTR_NODEV,
    libc.MS_NOEXEC: libc.MOUNT_ATTR_NOEXEC,
    libc.MS_NOATIME: libc.MOUNT_ATTR_NOATIME,
    libc.MS_NODIRATIME: libc.MOUNT_ATTR_NODIRATIME,
    libc.MS_NOSYMFOLLOW: libc.MOUNT_ATTR_NOSYMFOLLOW,
}
PAGE = 4096


def make(source: str, target: str, flags: int, data: list[str]) -> None:
    """Mount an overlay with mount(2)'s flags and options, however many its layers are."""
    if len(",".join(data)) < PAGE - 1:
        libc.mount(source, target, "overlay", flags, ",".join(data))
        return
    lowers, others = _layers(data)
    if kernel_version() >= (6, 8):
        _fsconfig(target, flags, lowers, others)
    else:
        _relative(target, flags, lowers, others)


def make_mapped(target: str, flags: int, data: list[str], namespace: int) -> None:
    """An overlay whose lower directories' owners are mapped by a user namespace."""
    lowers, others = _layers(data)
    above = [value for key, value in others if key == "upperdir"]
    if flags & libc.MS_RDONLY and above:
        # read only it is one more lower directory, but with the owners that it has
        others = [(k, v) for k, v in others if k not in ("upperdir", "workdir")]
    else:
        above = []
    detached = kernel_version() >= idmap.KERNEL_DETACHED
    with idmap.mapped_lowers(lowers, namespace, detached=detached) as layers:
        if detached:
            _fsconfig(target, flags, [*above, *layers], others)
        else:
            joined = ":".join([*above, *map(str, layers)])
            options = [f"{key}={value}" if value else key for key, value in others]
            make("overlay", target, flags, [*options, f"lowerdir={joined}"])


def attributes(flags: int) -> int:
    """mount(2)'s flags as fsmount(2)'s."""
    return sum(attribute for flag, attribute in _ATTRIBUTES.items() if flags & flag)


def move(mounted: int, target: str) -> None:
    """Attach a mount by its descriptor, which is closed."""
    try:
        libc.move_mount(mounted, target)
    finally:
        os.close(mounted)


def _layers(data: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """An overlay's lower directories, and its other options."""
    options = [option.partition("=") for option in data]
    lowers = next((v.split(":") for k, _, v in options if k == "lowerdir"), [])
    return lowers, [(k, v) for k, _, v in options if k != "lowerdir"]


def _fsconfig(
    target: str, flags: int, lowers: Sequence[int | str], others: list[tuple[str, str]]
) -> None:
    fd = libc.fsopen("overlay")
    try:
        for lower in lowers:
            if isinstance(lower, int):
                libc.fsconfig_set_fd(fd, "lowerdir+", lower)
            else:
                libc.fsconfig_set_string(fd, "lowerdir+", lower)
        for key, value in others:
            if value:
                libc.fsconfig_set_string(fd, key, value)
            else:
                libc.fsconfig_set_flag(fd, key)
        if flags & libc.MS_RDONLY:
            libc.fsconfig_set_flag(fd, "ro")
        libc.fsconfig_create(fd)
        mounted = libc.fsmount(fd, attributes(flags))
    finally:
        os.close(fd)
    move(mounted, target)


def _relative(target: str, flags: int, lowers: list[str], others: list[tuple[str, str]]) -> None:
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
