"""Control groups as files: where a process is, what it uses. Legacy, hybrid and unified hosts."""

from __future__ import annotations

import errno
import os

from kontti.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = "/sys/fs/cgroup"
LEGACY, HYBRID, UNIFIED = "legacy", "hybrid", "unified"
NO_LIMIT = (1 << 64) - 1


def mode(root: str = ROOT) -> str:
    """How this host's hierarchies are laid out."""
    if libc.statfs_type(root) == libc.CGROUP2_SUPER_MAGIC:
        return UNIFIED
    unified = os.path.join(root, "unified")
    if os.path.isdir(unified) and libc.statfs_type(unified) == libc.CGROUP2_SUPER_MAGIC:
        return HYBRID
    return LEGACY


def hybrid_with_controllers(root: str = ROOT) -> bool:
    """Whether the host has a v2 tree with controllers beside v1: crun refuses such a host."""
    try:
        with open(os.path.join(root, "unified", "cgroup.controllers")) as file:
            return bool(file.read().split())
    except OSError:
        return False


def paths_of(pid: int, root: str = ROOT) -> dict[str, str]:
    """Directory by controller of the groups ``pid`` is in; "" is the unified hierarchy's."""
    found = {}
    unified = libc.statfs_type(root) == libc.CGROUP2_SUPER_MAGIC
    with open(f"/proc/{pid}/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controllers:
                for name in controllers.split(","):
                    folder = os.path.join(root, name.removeprefix("name="))
                    found[name.removeprefix("name=")] = folder + path
            elif unified:
                found[""] = root + path
    return found


def folders(path: str, root: str = ROOT) -> list[str]:
    """Where the group ``path`` is, in whichever hierarchies have it."""
    trees = [root] if mode(root) == UNIFIED else [e.path for e in os.scandir(root) if e.is_dir()]
    found = {
        os.path.realpath(f"{tree}/{path}") for tree in trees if os.path.isdir(f"{tree}/{path}")
    }
    return sorted(found)


def read(folder: str, name: str) -> str:
    """A group's file, or "" where it has none."""
    try:
        with open(os.path.join(folder, name)) as file:
            return file.read()
    except OSError:
        return ""


def number(folder: str, name: str) -> int:
    """A file that holds one number; ``max`` is the largest, nothing is 0."""
    text = read(folder, name).strip()
    if text == "max":
        return NO_LIMIT
    return int(text) if text.lstrip("-").isdigit() else 0


def table(folder: str, name: str) -> dict[str, int]:
    """A file of lines ``key value``."""
    found = {}
    for line in read(folder, name).splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def pids(folder: str) -> list[int]:
    """Every process in a group and those below it."""
    found: list[int] = []
    for group in _walk(folder):
        found += [int(pid) for pid in read(group, "cgroup.procs").split()]
    return found


def _walk(folder: str) -> Iterator[str]:
    yield folder
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _walk(entry.path)
    except FileNotFoundError:
        return


def join(path: str, pid: int, root: str = ROOT) -> None:
    """Move a process into the group ``path`` of every hierarchy that has it.

    Raises FileNotFoundError where none has, OSError where it may not be joined.
    """
    below = path.strip("/")
    if not below or ".." in below.split("/"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if mode(root) == UNIFIED:
        trees = [root]
    else:
        with os.scandir(root) as entries:
            trees = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    groups = [os.path.join(tree, below) for tree in trees]
    groups = [group for group in groups if os.path.isdir(group)]
    if not groups:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    for group in groups:
        with open(os.path.join(group, "cgroup.procs"), "w") as file:
            file.write(str(pid))


def remove(folder: str) -> None:
    """Remove a group and those below it, if no process is in them."""
    for group in reversed(list(_walk(folder))):
        try:
            os.rmdir(group)
        except FileNotFoundError:
            continue
        except OSError:
            return
