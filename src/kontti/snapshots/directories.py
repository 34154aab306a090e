"""What overlayfs and native snapshotters share: one numbered directory for each snapshot."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from kontti.errors import Error, ResourceExhausted, Unimplemented
from kontti.linux import fs, libc
from kontti.snapshots.base import MAX_SIZE_LABEL, Info, Kind, Usage, max_size
from kontti.snapshots.records import Record, Records
from kontti.values import EMPTY

log = logging.getLogger(__name__)


class Directories:
    """Records in ``root/metadata.db``, trees in ``root/snapshots/<number>``.

    A directory is made as ``new-<number>`` and renamed; a removed one is first forgotten, then
    renamed to ``rm-<number>``, then deleted: whatever a crash leaves is found by ``cleanup``.
    """

    capabilities: tuple[str, ...] = ()

    def __init__(self, root: str, *, sync_remove: bool = False) -> None:
        self.root = root
        self.trees = os.path.join(root, "snapshots")
        self._sync_remove = sync_remove
        self._cleaning = threading.Lock()
        os.makedirs(self.trees, mode=0o700, exist_ok=True)
        self.records = Records(os.path.join(root, "metadata.db"))
        try:
            self.rename_leftovers()
            self.restore_lost()
        except BaseException:
            self.records.close()
            raise

    def path(self, number: int) -> str:
        """A snapshot's directory."""
        return os.path.join(self.trees, str(number))

    def stat(self, key: str) -> Info:
        """Raises NotFound."""
        return self.info(self.records.get(key))

    def info(self, record: Record) -> Info:
        """What is told of a snapshot."""
        return record.info

    def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels."""
        return self.info(self.records.update(info, paths))

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Those that match."""
        return map(self.info, self.records.walk(filters))

    def usage(self, key: str) -> Usage:
        """What was measured at commit, or what an active snapshot takes now."""
        record = self.records.get(key)
        if record.info.kind is Kind.ACTIVE:
            return self._measure(record)
        return record.usage

    def _measure(self, record: Record) -> Usage:
        with tree_errors(f"snapshot {record.info.name}"):
            return Usage(*fs.usage(self.tree(record.id)))

    def tree(self, number: int) -> str:
        """The directory that holds a snapshot's own files."""
        return self.path(number)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        """snapshots.base.Snapshotter.commit; the files are durable before the record is."""
        record = self.records.get(key)
        usage = Usage()
        if record.info.kind is Kind.ACTIVE:
            # the disk writes while the tree is walked
            with ThreadPoolExecutor(1, "sync") as pool, tree_errors(f"snapshot {key}"):
                synced = pool.submit(self.sync)
                usage = self._measure(record)
                synced.result()
        self.records.commit(name, record, labels, usage, parent)

    def sync(self) -> None:
        """Have the file system write everything out.

        One syncfs(2) costs less than an fsync of each of a layer's thousands of files.
        """
        fd = os.open(self.trees, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            libc.syncfs(fd)
        finally:
            os.close(fd)

    def own_files(self, name: str) -> str:
        """The directory that shows a snapshot's own files."""
        return self.tree(self.records.get(name).id)

    def damage(self, name: str) -> str:
        """What can be seen to be wrong with a snapshot on disk; "" for nothing."""
        record = self.records.get(name)
        if not os.path.isdir(self.tree(record.id)):
            return "its directory is gone"
        if record.info.kind is Kind.COMMITTED and record.usage.inodes:
            inodes = self._measure(record).inodes
            if inodes != record.usage.inodes:
                return f"it has {inodes} files and not {record.usage.inodes}"
        return ""

    def replace(self, name: str, key: str) -> None:
        """Give committed ``name`` the files of active ``key``, which was made over its parent."""
        with self.records.lock, tree_errors(f"snapshot {name}"):
            old, new = self.records.get(name).id, self.records.get(key).id
            self.sync()
            if os.path.lexists(self.tree(old)):
                aside = os.path.join(self.trees, f"rm-{old}-{secrets.token_hex(4)}")
                os.rename(self.tree(old), aside)
            os.makedirs(os.path.dirname(self.tree(old)), mode=0o700, exist_ok=True)
            os.rename(self.tree(new), self.tree(old))
            self.sync()
            self.remove(key)

    def remove(self, key: str) -> None:
        """Forget it now; its directory is deleted by ``cleanup``, or at once with sync_remove."""
        try:
            number = self.records.remove(key)
        except ResourceExhausted:
            self._make_room(key)
            number = self.records.remove(key)
        try:
            self._put_away(number)
            if self._sync_remove:
                self.cleanup()
        except (Error, OSError) as error:
            # it is forgotten for good: its directory is left for the next cleanup
            log.warning(
                "%s: snapshot %s is removed, its directory is not: %s", self.root, key, error
            )

    def _make_room(self, key: str) -> None:
        """On a full disk, delete the files of an active snapshot before it is forgotten.

        Its owner wants it gone; where it stays all the same, it is made anew and empty.
        """
        record = self.records.get(key)
        if record.info.kind is not Kind.ACTIVE:
            return
        with tree_errors(f"snapshot {key}"):
            fs.remove_tree(self.path(record.id))

    def _put_away(self, number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path(number), os.path.join(self.trees, f"rm-{number}"))

    def rename_leftovers(self) -> None:
        """After a crash: directories that no record names, and ones that were never finished."""
        known = {str(number) for number in self.records.ids()}
        for name in os.listdir(self.trees):
            unknown = name.isdecimal() and name not in known
            if unknown or name.startswith("new-"):
                # a number is given out again where its record was lost: two crashes, two leftovers
                target = f"rm-{name.removeprefix('new-')}-{secrets.token_hex(4)}"
                os.rename(os.path.join(self.trees, name), os.path.join(self.trees, target))

    def restore_lost(self) -> None:
        """After a power loss: the directory of a snapshot that was never committed may be gone,
        with what was written to it; it is made anew, as it was prepared."""
        for number in sorted(self.records.ids(Kind.ACTIVE, Kind.VIEW)):
            if os.path.isdir(self.tree(number)):
                continue
            info, parents = self.records.numbered(number)
            log.warning("%s: directory of snapshot %d is lost; making it anew", self.root, number)
            try:
                self.make(info, number, parents)
            except OSError as error:
                # the others are whole: one that cannot be had again must not keep them away
                log.warning("%s: snapshot %d is lost: %s", self.root, number, error)
                self.discard(self.draft(number))

    def make(self, info: Info, number: int, parents: list[int]) -> None:
        """Make a snapshot's directory, whole at once."""
        raise NotImplementedError

    def cleanup(self) -> None:
        """Delete the directories of removed snapshots; raises Error when all were tried."""
        with self._cleaning:
            noted = self.records.removed()
            failures = [e for e in map(self._delete, self._put_all_away(noted)) if e]
            if failures:
                raise failures[0]
            if noted:
                self.records.forget_removed(noted)

    def _put_all_away(self, noted: list[int]) -> list[str]:
        with tree_errors(self.trees):
            for number in noted:
                self._put_away(number)
            return [name for name in os.listdir(self.trees) if name.startswith("rm-")]

    def _delete(self, name: str) -> Error | None:
        try:
            with tree_errors(name):
                self.discard(os.path.join(self.trees, name))
        except Error as error:
            return error
        return None

    def check_limit(self, info: Info) -> None:
        """Raises Unimplemented for a limit that nothing would keep a new snapshot to."""
        if info.kind is Kind.ACTIVE and max_size(info.labels):
            raise Unimplemented(f"snapshot {info.name}: label {MAX_SIZE_LABEL}")

    def record(
        self, info: Info, build: Callable[[int, list[int]], None]
    ) -> tuple[Record, list[int]]:
        """Record a new snapshot when ``build(number, parents)`` has made its directory.

        A failure, the record's own too, leaves no directory.
        """
        self.check_limit(info)
        made: list[int] = []

        def make(number: int, parents: list[int]) -> None:
            made.append(number)
            with tree_errors(f"snapshot {info.name}"):
                build(number, parents)

        # to the end: a number that was rolled back is the next one's, and so is its directory
        with self.records.lock:
            try:
                return self.records.create(info.kind, info.name, info.parent, info.labels, make)
            except BaseException:
                for number in made:
                    self.discard(self.draft(number))
                    self.discard(self.path(number))
                raise

    def discard(self, path: str) -> None:
        """Delete a snapshot's directory, whole or not; one that is not there is no error."""
        fs.remove_tree(path)

    def draft(self, number: int) -> str:
        """Where a directory is made, until it is whole."""
        return os.path.join(self.trees, f"new-{number}")

    def publish(self, number: int, draft: int) -> None:
        """A draft is whole: give it its name. ``commit`` makes it durable."""
        os.rename(self.draft(draft), self.path(number))

    def close(self) -> None:
        """Close the records."""
        self.records.close()


@contextlib.contextmanager
def tree_errors(what: str) -> Iterator[None]:
    """OSError as ours, with what was being done."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(f"{what}: {reason}") from error
        raise Error(f"{what}: {reason}") from error
