"""The blockfile snapshotter: each snapshot is a file with a whole file system in it.

<root>/scratch                     what a snapshot without a parent is a copy of
<root>/snapshots/<number>/image    a snapshot; a view of a parent has none of its own

Copies share blocks where the file system below can do that (xfs, btrfs), and are sparse elsewhere.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence

from kontti.errors import Error, FailedPrecondition, Unimplemented
from kontti.linux import fs, loop, process
from kontti.snapshots.base import Info, Kind, Usage
from kontti.snapshots.copying import CopyingSnapshotter
from kontti.snapshots.directories import tree_errors
from kontti.snapshots.records import Record
from kontti.values import EMPTY, Mount

IMAGE, SCRATCH = "image", "scratch"
SCRATCH_SIZE = 10 << 30
"""Of a scratch file that is made here; it is sparse."""
MKFS_SECONDS = 300.0
BUSY_SECONDS, BUSY_PAUSE = 5.0, 0.02
# all is made now: what ext4 puts off to a mount would be written into every copy
_EXT4 = ("-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=1")


class BlockfileSnapshotter(CopyingSnapshotter):
    """snapshots.base.Snapshotter in ``root``; options are named as the original's settings."""

    def __init__(
        self,
        root: str,
        *,
        scratch_file: str = "",
        fs_type: str = "ext4",
        mount_options: Sequence[str] = (),
        recreate_scratch: bool = False,
    ) -> None:
        self._fs_type = fs_type or "ext4"
        self._options = tuple(option for option in mount_options if option != "loop")
        self.scratch = os.path.join(root, SCRATCH)
        os.makedirs(root, mode=0o700, exist_ok=True)
        if recreate_scratch or not os.path.exists(self.scratch):
            self._make_scratch(scratch_file)
        super().__init__(root)

    def _make_scratch(self, source: str) -> None:
        if not source:
            raise Unimplemented("blockfile: no `scratch_file` is configured")
        with tree_errors("blockfile: scratch file"):
            if not os.path.exists(source):
                make_file_system(source, self._fs_type, SCRATCH_SIZE)
            _copy(source, f"{self.scratch}.new")
            os.rename(f"{self.scratch}.new", self.scratch)
            fs.fsync_dir(os.path.dirname(self.scratch))

    def image(self, number: int) -> str:
        """A snapshot's file."""
        return os.path.join(self.path(number), IMAGE)

    def fill(self, info: Info, path: str, parent: int | None) -> None:
        """A copy of the parent's file, or of the scratch one."""
        os.mkdir(path, 0o700)
        if info.kind is Kind.ACTIVE or parent is None:
            source = self.scratch if parent is None else self.image(parent)
            _copy(source, os.path.join(path, IMAGE))

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        """As elsewhere. Raises FailedPrecondition where it is mounted: not all is in the file."""
        record = self.records.get(key)
        if record.info.kind is Kind.ACTIVE:
            with tree_errors(f"snapshot {key}"):
                _wait_unused(self.image(record.id), key)
        super().commit(name, key, labels, parent)

    def _measure(self, record: Record) -> Usage:
        usage = super()._measure(record)
        parent = record.info.parent
        if not parent:
            return usage
        # as elsewhere without what it shares with its parent, which it is a copy of
        above = fs.usage(self.path(self.records.get(parent).id))[0]
        return Usage(max(0, usage.size - above), usage.inodes)

    def damage(self, name: str) -> str:
        """What can be seen to be wrong with a snapshot on disk; "" for nothing."""
        record, parents = self.records.chain(name)
        shows_parent = record.info.kind is Kind.VIEW and parents
        if not shows_parent and not os.path.isfile(self.image(record.id)):
            return "its image is gone"
        return super().damage(name)

    def _mounts(self, record: Record, parents: list[int]) -> list[Mount]:
        view = record.info.kind is Kind.VIEW
        image = self.image(parents[0] if view and parents else record.id)
        options = (*self._options, "loop", "rw" if record.info.kind is Kind.ACTIVE else "ro")
        return [Mount(self._fs_type, image, options)]


def _copy(source: str, target: str) -> None:
    """Copy an image, synced."""
    read = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fs.copy_image(read, write)
            os.fsync(write)
        finally:
            os.close(write)
    finally:
        os.close(read)


def _wait_unused(image: str, key: str) -> None:
    """Wait until no loop device has ``image``: who unmounted it may be a moment ahead of it."""
    deadline = time.monotonic() + BUSY_SECONDS
    while found := loop.attached(image, writable=False):
        found.close()
        if time.monotonic() > deadline:
            raise FailedPrecondition(f"snapshot {key} is still mounted")
        time.sleep(BUSY_PAUSE)


def make_file_system(path: str, fs_type: str, size: int) -> None:
    """Make a sparse file with an empty file system by mkfs; raises Error, OSError."""
    program = shutil.which(f"mkfs.{fs_type}", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise Unimplemented(f"blockfile: there is no mkfs.{fs_type}")
    draft = f"{path}.new"
    with open(draft, "wb") as file:
        file.truncate(size)
    try:
        words = _EXT4 if fs_type.startswith("ext") else ()
        done = process.run([program, *words, draft], timeout=MKFS_SECONDS)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise Error(f"mkfs.{fs_type}: {said or done.returncode}")
        os.rename(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
