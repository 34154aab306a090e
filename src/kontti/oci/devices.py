"""Device nodes of the host, as a spec names them."""

from __future__ import annotations

import os
import stat

from kontti.errors import InvalidArgument, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kontti.oci.spec import Device, DeviceRule

# what a container has of its own (pts, shm, mqueue, fd) and what other runtimes keep in /dev
_OWN_DIRECTORIES = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"))


def host_devices(directory: str = "/dev") -> list[Device]:
    """Every device node below ``directory`` that a privileged container is given."""
    return sorted(_walk(directory, directory), key=_path)


def devices_at(path: str, inside: str = "") -> list[Device]:
    """The device ``path`` is, or the devices below it; ``inside`` is its path in the container.

    Raises NotFound, and InvalidArgument for what is neither a device nor a directory.
    """
    inside = inside or path
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"device {path!r:.200}") from error
    if stat.S_ISDIR(status.st_mode):
        return sorted(_walk(path, inside), key=_path)
    device = device_of(status, inside)
    if device is None:
        raise InvalidArgument(f"{path!r:.200}: not a device node")
    return [device]


def device_of(status: os.stat_result, path: str) -> Device | None:
    """The device that ``status`` is of, to be made at ``path``; None if it is of none."""
    mode = status.st_mode
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        return None
    return {
        "path": path,
        "type": "c" if stat.S_ISCHR(mode) else "b",
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }


def rule_for(device: Device, access: str) -> DeviceRule:
    """The rule of the device cgroup that allows ``access`` (of ``rwm``) to ``device``."""
    return {
        "allow": True,
        "type": device["type"],
        "major": device["major"],
        "minor": device["minor"],
        "access": access,
    }


def check_access(access: str) -> str:
    """``access`` if it is made of r, w and m; raises InvalidArgument."""
    if not access or set(access) - set("rwm"):
        raise InvalidArgument(f"device access {access!r:.20} is not made of r, w and m")
    return access


def _walk(directory: str, inside: str) -> Iterator[Device]:
    try:
        entries = list(os.scandir(directory))
    except (FileNotFoundError, PermissionError):
        return
    for entry in entries:
        try:
            yield from _entry(entry, f"{inside}/{entry.name}")
        except FileNotFoundError:
            # devices come and go while one looks
            continue


def _entry(entry: os.DirEntry[str], inside: str) -> Iterator[Device]:
    if entry.is_dir(follow_symlinks=False):
        if entry.name not in _OWN_DIRECTORIES:
            yield from _walk(entry.path, inside)
        return
    device = device_of(entry.stat(follow_symlinks=False), inside)
    if device is not None and entry.name != "console":
        yield device


def _path(device: Device) -> str:
    return device["path"]
