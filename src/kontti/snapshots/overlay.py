"""The overlayfs snapshotter: each snapshot is an upper directory over its parents'.

<root>/snapshots/<number>/fs      the snapshot's own files
<root>/snapshots/<number>/work    overlayfs's work directory, for active snapshots
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kontti.errors import InvalidArgument, Unimplemented
from kontti.linux import idmap, libc, mounts, overlays
from kontti.snapshots.base import REBASE, Info, Kind
from kontti.snapshots.directories import Directories
from kontti.snapshots.records import Record
from kontti.values import EMPTY, Mount

log = logging.getLogger(__name__)
UPPERDIR_LABEL = "containerd.io/snapshot/overlay.upperdir"
MAPPING_LABELS = ("containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping")


class OverlaySnapshotter(Directories):
    """snapshots.base.Snapshotter in ``root``; options are named as the original's settings.

    Parents of a snapshot with id mappings in its labels are mounted mapped. Where the kernel or the
    file system has no such mounts, ``slow_chown`` takes it all the same, for clients that have made
    a parent with mapped owners; without it they are refused.
    """

    capabilities = (REBASE,)

    def __init__(
        self,
        root: str,
        *,
        upperdir_label: bool = False,
        sync_remove: bool = False,
        slow_chown: bool = False,
        mount_options: Sequence[str] = (),
    ) -> None:
        self._upperdir_label = upperdir_label
        self._slow_chown = slow_chown
        self._options = with_defaults(mount_options)
        super().__init__(root, sync_remove=sync_remove)

    def info(self, record: Record) -> Info:
        """With the upper directory's path, where that is wanted."""
        if not self._upperdir_label:
            return record.info
        labels = {**record.info.labels, UPPERDIR_LABEL: self.tree(record.id)}
        return replace(record.info, labels=labels)

    def tree(self, number: int) -> str:
        """The upper directory."""
        return os.path.join(self.path(number), "fs")

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """An active snapshot."""
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """A read-only snapshot."""
        return self._create(Kind.VIEW, key, parent, labels)

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        if mapped_root(labels) and not (self._slow_chown or self.remaps):
            raise Unimplemented("id-mapped snapshots, unless `slow_chown` is configured")
        info = Info(kind, key, parent, labels)
        record, parents = self.record(info, lambda number, above: self.make(info, number, above))
        return self._mounts(record, parents)

    @functools.cached_property
    def remaps(self) -> bool:
        """Whether the kernel and the file system map owners; tried when it is first asked."""
        try:
            with tempfile.TemporaryDirectory(prefix="new-probe-", dir=self.trees) as folder:
                _try_mapping(folder)
        except OSError as error:
            log.info("%s: no id-mapped mounts: %s", self.root, error)
            return False
        return True

    def remapping(self) -> tuple[str, ...]:
        """What there is of id mappings on this host, as capabilities that clients know."""
        remap = ("remap-ids",) if self.remaps else ()
        # in this order: clients stop at the first that they know
        return (*remap, *(() if self._slow_chown else ("only-remap-ids",)))

    def make(self, info: Info, number: int, parents: list[int]) -> None:
        """An upper directory that looks like the parent's, and one for overlayfs to work in."""
        new = self.draft(number)
        os.mkdir(new, 0o700)
        upper = os.path.join(new, "fs")
        os.mkdir(upper, 0o755)
        if info.kind is Kind.ACTIVE:
            os.mkdir(os.path.join(new, "work"), 0o711)
        if parents:
            # the root directory of the merged tree is the upper one: it must look like the parent's
            above = os.stat(self.tree(parents[0]))
            os.chown(upper, above.st_uid, above.st_gid)
            os.chmod(upper, above.st_mode & 0o7777)
        owner = mapped_root(info.labels)
        if owner:
            os.chown(upper, *owner)
        self.publish(number, number)

    def mounts(self, key: str) -> list[Mount]:
        """How to mount an active snapshot or a view."""
        record, parents = self.records.chain(key)
        return self._mounts(record, parents)

    def _mounts(self, record: Record, parents: list[int]) -> list[Mount]:
        active = record.info.kind is Kind.ACTIVE
        if not parents:
            # its own files have the owners that the container sees, and are not mapped
            mode = "rw" if active else "ro"
            return [Mount("bind", self.tree(record.id), (mode, "rbind"))]
        mapping = self._mapping(record.info.labels)
        if not active and len(parents) == 1:
            return [Mount("bind", self.tree(parents[0]), (*mapping, "ro", "rbind"))]
        options = [*self._options, *mapping]
        if active:
            options.append(f"workdir={os.path.join(self.path(record.id), 'work')}")
            options.append(f"upperdir={self.tree(record.id)}")
        options.append("lowerdir=" + ":".join(self.tree(n) for n in parents))
        return [Mount("overlay", "overlay", tuple(options))]

    def _mapping(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Options that map the parents' owners as the labels say, where that can be."""
        if not any(label in labels for label in MAPPING_LABELS) or not self.remaps:
            return ()
        return tuple(
            f"{label.rpartition('/')[2][:3]}map={labels[label]}" for label in MAPPING_LABELS
        )


def _try_mapping(folder: str) -> None:
    """Mount an overlay that maps owners over a directory in ``folder``; raises OSError."""
    lower, upper, work, target = (os.path.join(folder, n) for n in ("l", "u", "w", "t"))
    for path in (lower, upper, work, target):
        os.mkdir(path)
    layers = (f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}")
    options = ("uidmap=0:1:1", "gidmap=0:1:1", *layers)
    mounts.mount_one(Mount("overlay", "overlay", options), target)
    libc.umount2(target, libc.MNT_DETACH)


def mapped_root(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """Who root is on the host by the labels' id mappings, None without; raises InvalidArgument."""
    if not any(label in labels for label in MAPPING_LABELS):
        return None
    uid, gid = (_mapped(labels.get(label, "")) for label in MAPPING_LABELS)
    return uid, gid


def _mapped(mappings: str) -> int:
    """What 0 is mapped to by ``container-id:host-id:length``s with commas between."""
    for inside, outside, _ in idmap.parse(mappings):
        if inside == 0:
            return outside
    raise InvalidArgument(f"id mappings {mappings!r:.80} leave root out")


def with_defaults(options: Sequence[str]) -> tuple[str, ...]:
    """``options``, with defaults of those they do not name.

    ``userxattr`` where only that works: in a user namespace; ``index=off`` where the kernel has
    the index: a layer may be lower to many.
    """
    added = []
    if _in_user_namespace() and overlays.kernel_version() >= (5, 11):
        added.append("userxattr")
    if os.path.exists("/sys/module/overlay/parameters/index"):
        added.append("index=off")
    named = {option.partition("=")[0] for option in options}
    return (*options, *(option for option in added if option.partition("=")[0] not in named))


def _in_user_namespace() -> bool:
    with open("/proc/self/uid_map") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def supported(root: str) -> None:
    """Raises Unimplemented with the reason where overlayfs cannot be used over ``root``."""
    os.makedirs(root, exist_ok=True)
    with open("/proc/filesystems") as file:
        known = any(line.split()[-1] == "overlay" for line in file)
    if not known:
        raise Unimplemented("overlayfs: the kernel has no such file system")
    if libc.statfs_type(root) == libc.OVERLAYFS_SUPER_MAGIC:
        raise Unimplemented(f"overlayfs: {root} is on an overlay itself")
