"""Decides from mounts how a tree is reached: a directory, an overlay's upper one, or mounted."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kontti.diff.job import TreeJob
from kontti.snapshots.applied import Folder
from kontti.values import Mount


def plan_tree(mounts: Sequence[Mount]) -> TreeJob:
    """The quickest way to write to what ``mounts`` show."""
    if len(mounts) == 1 and not mounts[0].target and not _is_mapped(mounts[0]):
        mount = mounts[0]
        if mount.type == "overlay" and _option(mount, "upperdir") and "ro" not in mount.options:
            return _upper(mount)
        if _is_bind(mount) and "ro" not in mount.options:
            return tree("plain", mount.source)
    return plan_mounted(mounts)


def plan_ahead(mounts: Sequence[Mount]) -> TreeJob | None:
    """An upper directory whose parents are yet to come, where ``mounts`` show just a directory."""
    if len(mounts) == 1 and not mounts[0].target and _is_bind(mounts[0]):
        return tree("upper", mounts[0].source)
    return None


def image_folder(planned: TreeJob, trees: str) -> Folder | None:
    """The folder of the snapshot that a tree is of, where ``trees`` has those that take images."""
    folder, name = os.path.split(planned["root"])
    if not trees or name != "fs" or os.path.dirname(folder) != trees:
        return None
    return Folder(folder)


def plan_reading(mounts: Sequence[Mount]) -> TreeJob:
    """The quickest way to read what ``mounts`` show."""
    mount = mounts[0] if len(mounts) == 1 else None
    if mount and not mount.target and _is_bind(mount) and not _is_mapped(mount):
        return tree("plain", mount.source)
    return plan_mounted(mounts)


def plan_mounted(mounts: Sequence[Mount]) -> TreeJob:
    """By mounting them, on a directory yet to be given."""
    made = tree("mounted", "")
    made["mounts"] = [
        {"type": m.type, "source": m.source, "options": list(m.options), "target": m.target}
        for m in mounts
    ]
    return made


def tree(kind: str, root: str) -> TreeJob:
    """A tree with nothing else said of it."""
    return {
        "kind": kind,
        "root": root,
        "lowers": [],
        "opaque_xattr": "",
        "image": "",
        "mounts": [],
    }


@contextmanager
def mount_point(planned: TreeJob) -> Iterator[TreeJob]:
    """The plan with a directory to mount on, if it needs one, for as long as this lasts."""
    if planned["kind"] != "mounted":
        yield planned
        return
    point = tempfile.mkdtemp(prefix="kontti-diff-")
    try:
        yield {**planned, "root": point}
    finally:
        # the mount lived in the worker's own namespace: here the directory is empty
        os.rmdir(point)


def stack(mounts: Sequence[Mount]) -> tuple[str, ...]:
    """The directories an overlay merges, topmost first; () for what is no overlay.

    A bind of one directory is an overlay of one: so snapshotters mount a first layer.
    """
    if len(mounts) != 1 or mounts[0].target or _is_mapped(mounts[0]):
        return ()
    mount = mounts[0]
    if mount.type == "overlay":
        upper = _option(mount, "upperdir")
        return (*([upper] if upper else []), *lower_directories(mount))
    return (mount.source,) if _is_bind(mount) else ()


def lower_directories(mount: Mount) -> tuple[str, ...]:
    """An overlay's lower directories, topmost first."""
    found = [p for p in _split(_option(mount, "lowerdir")) if p]
    found += [o.partition("=")[2] for o in mount.options if o.startswith("lowerdir+=")]
    return tuple(found)


def _upper(mount: Mount) -> TreeJob:
    made = tree("upper", _option(mount, "upperdir"))
    made["lowers"] = list(lower_directories(mount))
    made["opaque_xattr"] = (
        "user.overlay.opaque" if "userxattr" in mount.options else "trusted.overlay.opaque"
    )
    return made


def _is_bind(mount: Mount) -> bool:
    return mount.type == "bind" or bool({"bind", "rbind"}.intersection(mount.options))


def _is_mapped(mount: Mount) -> bool:
    """Whether it shows other owners than the directories that it is of."""
    return bool(_option(mount, "uidmap"))


def _option(mount: Mount, name: str) -> str:
    for option in mount.options:
        key, equals, value = option.partition("=")
        if key == name and equals:
            return value
    return ""


def _split(lowerdir: str) -> list[str]:
    """At colons, but not at escaped ones (overlayfs's syntax)."""
    parts, current, escaped = [], "", False
    for char in lowerdir:
        if char == ":" and not escaped:
            parts.append(current)
            current = ""
        elif char != "\\" or escaped:
            current += char
        escaped = char == "\\" and not escaped
    return [*parts, current]
