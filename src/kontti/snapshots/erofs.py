"""The erofs snapshotter: each committed snapshot is one file, mounted without a loop device.

<root>/snapshots/<number>/fs           an active snapshot's own files; a committed one's mount point
<root>/snapshots/<number>/work         overlayfs's work directory, for active snapshots
<root>/snapshots/<number>/layer.erofs  a committed snapshot's own files

A layer that an unpacker has applied may have come as an image already (kontti.snapshots.applied):
its commit has nothing to build.

Images are mounted when somebody first wants them, and stay so: what is mounted over them are plain
overlays, as the overlayfs snapshotter's, so every client and shim can mount them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence

from kontti.errors import Error, ResourceExhausted, Unimplemented
from kontti.linux import fs, libc, mounts, overlays, process
from kontti.snapshots import overlay
from kontti.snapshots.applied import Folder, is_unpackers
from kontti.snapshots.base import Info, Kind, Usage
from kontti.snapshots.directories import tree_errors
from kontti.snapshots.erofs_build import write_image
from kontti.snapshots.overlay import OverlaySnapshotter
from kontti.snapshots.records import Record
from kontti.values import EMPTY, Mount
from kontti.wire.erofs import SUPERBLOCK, SUPERBLOCK_OFFSET
from kontti.wire.erofs_read import parse_superblock

IMAGE = "layer.erofs"
EMPTIED = "upper"
KERNEL = (6, 12)
"""The first that mounts an image from its file."""
BUILD_SECONDS = 3600.0
_BUILD = "import sys; from kontti.snapshots.erofs_build import main; sys.exit(main())"


class ErofsSnapshotter(OverlaySnapshotter):
    """snapshots.base.Snapshotter in ``root``; ``ovl_mount_options`` as in config.toml."""

    def __init__(self, root: str, *, ovl_mount_options: Sequence[str] = ()) -> None:
        self._mounting = threading.Lock()
        super().__init__(root, mount_options=ovl_mount_options)

    def image(self, number: int) -> str:
        """A committed snapshot's image."""
        return os.path.join(self.path(number), IMAGE)

    def folder(self, number: int) -> Folder:
        """Where a layer may come to as an image."""
        return Folder(self.path(number))

    def make(self, info: Info, number: int, parents: list[int]) -> None:
        """As overlayfs's, over parents that are mounted; a mark for an unpacker's."""
        self._mount_images(parents)
        super().make(info, number, parents)
        if info.kind is Kind.ACTIVE and is_unpackers(info.name):
            self.folder(number).mark()

    def mounts(self, key: str) -> list[Mount]:
        """As elsewhere; what came as an image is made files, for who wants to see it now."""
        record = self.records.get(key)
        if record.info.kind is Kind.ACTIVE:
            with tree_errors(f"snapshot {key}"):
                self.folder(record.id).to_files()
        return super().mounts(key)

    def _measure(self, record: Record) -> Usage:
        if record.info.kind is Kind.ACTIVE and os.path.exists(self.folder(record.id).applied):
            with tree_errors(f"snapshot {record.info.name}"):
                return image_usage(self.folder(record.id).applied)
        return super()._measure(record)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        """As elsewhere; the image is there and durable before the record is."""
        record, usage = self.records.get(key), Usage()
        if record.info.kind is Kind.ACTIVE:
            usage = self._make_image(record)
        self.records.commit(name, record, labels, usage, parent)
        self.folder(record.id).forget()
        if not self._in_use(record.id):
            self._make_mount_point(record.id)

    def _make_image(self, record: Record) -> Usage:
        """Give an active snapshot its image, durable; what that takes."""
        image, folder = self.image(record.id), self.folder(record.id)
        with tree_errors(f"snapshot {record.info.name}"):
            if folder.has_image():
                # a second name: where the commit fails the snapshot still has its layer
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(image)
                os.link(folder.applied, image)
                fs.fsync_file(image)
            else:
                folder.to_files()
                self._build(record)
            fs.fsync_dir(self.path(record.id))
            fs.fsync_dir(self.trees)
            return image_usage(image)

    def _build(self, record: Record) -> None:
        draft = f"{self.image(record.id)}.new"
        argv = [*process.interpreter(_BUILD), self.tree(record.id), draft]
        done = process.run(argv, timeout=BUILD_SECONDS)
        if done.returncode:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
            raise _build_error(record, done.stderr.decode(errors="replace").strip())
        os.rename(draft, self.image(record.id))

    def _make_mount_point(self, number: int) -> None:
        """Empty a committed snapshot's directory: its files are in the image."""
        emptied = os.path.join(self.path(number), EMPTIED)
        with tree_errors(self.path(number)):
            if not os.path.exists(emptied):
                os.rename(self.tree(number), emptied)
            os.makedirs(self.tree(number), mode=0o755, exist_ok=True)
            fs.remove_tree(emptied)
            fs.remove_tree(os.path.join(self.path(number), "work"))

    def _mounts(self, record: Record, parents: list[int]) -> list[Mount]:
        self._mount_images(parents)
        return super()._mounts(record, parents)

    def _mount_images(self, numbers: Iterable[int]) -> None:
        with self._mounting, tree_errors(self.trees):
            for number in numbers:
                if libc.statfs_type(self.tree(number)) == libc.EROFS_SUPER_MAGIC:
                    continue
                if self._is_full(number) and not self._in_use(number):
                    # it was in use at its commit, or a crash came before this
                    self._make_mount_point(number)
                image = Mount("erofs", self.image(number), ("ro",))
                mounts.mount_one(image, self.tree(number))

    def _is_full(self, number: int) -> bool:
        emptied = os.path.join(self.path(number), EMPTIED)
        return os.path.exists(emptied) or bool(os.listdir(self.tree(number)))

    def _in_use(self, number: int) -> bool:
        """Whether somebody has a snapshot's own files mounted, by an overlay or a bind."""
        name = os.path.join(*self.tree(number).split("/")[-4:]).encode()
        with open("/proc/self/mountinfo", "rb") as file:
            return any(
                name in line.split(b" ")[3] or b"/" + name in line.rpartition(b" - ")[2]
                for line in file
            )

    def own_files(self, name: str) -> str:
        """The directory, a committed one's image mounted there."""
        record = self.records.get(name)
        if record.info.kind is Kind.COMMITTED:
            self._mount_images([record.id])
        else:
            with tree_errors(f"snapshot {name}"):
                self.folder(record.id).to_files()
        return self.tree(record.id)

    def damage(self, name: str) -> str:
        """As elsewhere; a committed snapshot's image must be there, and be mountable."""
        record = self.records.get(name)
        if record.info.kind is Kind.COMMITTED:
            try:
                self.own_files(name)
            except Error as error:
                return f"its image cannot be mounted: {error.message}"
        return super().damage(name)

    def replace(self, name: str, key: str) -> None:
        """Give committed ``name`` an image of the files of active ``key``."""
        old, new = self.records.get(name), self.records.get(key)
        self._make_image(new)
        with self.records.lock, self._mounting, tree_errors(f"snapshot {name}"):
            os.makedirs(self.tree(old.id), mode=0o700, exist_ok=True)
            self._unmount(self.tree(old.id))
            os.rename(self.image(new.id), self.image(old.id))
            fs.fsync_dir(self.path(old.id))
        self.remove(key)

    def _put_away(self, number: int) -> None:
        self._unmount(self.tree(number))
        super()._put_away(number)

    def rename_leftovers(self) -> None:
        """As elsewhere, unmounted first."""
        known = {str(number) for number in self.records.ids()}
        for name in os.listdir(self.trees):
            if name not in known:
                self._unmount(os.path.join(self.trees, name, "fs"))
        super().rename_leftovers()

    @staticmethod
    def _unmount(path: str) -> None:
        try:
            libc.umount2(path, libc.MNT_DETACH)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise

    def close(self) -> None:
        """Unmount the images: whatever is mounted over them goes on."""
        for number in self.records.ids(Kind.COMMITTED):
            with contextlib.suppress(OSError):
                self._unmount(self.tree(number))
        super().close()


def _build_error(record: Record, said: str) -> Error:
    """What the builder wrote: an errno, and words."""
    number, _, words = said.partition(" ")
    full = number in (str(errno.ENOSPC), str(errno.EDQUOT))
    cls = ResourceExhausted if full else Error
    return cls(f"snapshot {record.info.name}: {words or 'its image was not made'}")


def image_usage(path: str) -> Usage:
    """What an image takes, and how many files it has; raises OSError, InvalidArgument."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        superblock = parse_superblock(os.pread(fd, SUPERBLOCK.size, SUPERBLOCK_OFFSET))
        return Usage(os.fstat(fd).st_blocks * 512, superblock.inodes)
    finally:
        os.close(fd)


def supported(root: str) -> None:
    """Raises Unimplemented with the reason where images cannot be mounted from their files."""
    overlay.supported(root)
    with open("/proc/filesystems") as file:
        known = any(line.split()[-1] == "erofs" for line in file)
    if not known:
        raise Unimplemented("erofs: the kernel has no such file system")
    if overlays.kernel_version() < KERNEL:
        wanted = ".".join(map(str, KERNEL))
        raise Unimplemented(f"erofs: images are mounted from files by Linux {wanted} and later")
    with tempfile.TemporaryDirectory(prefix="probe-", dir=root) as folder:
        _probe(folder)


def _probe(folder: str) -> None:
    """Mount an image from its file; raises Unimplemented where its file system is not for that."""
    image, target = os.path.join(folder, IMAGE), os.path.join(folder, "fs")
    os.mkdir(target)
    try:
        write_image(target, image)
        mounts.mount_one(Mount("erofs", image, ("ro",)), target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unimplemented(f"erofs: images cannot be mounted from files here: {reason}") from None
    libc.umount2(target, libc.MNT_DETACH)
