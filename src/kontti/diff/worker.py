"""The process that extracts one layer, or compares two trees, and ends.

It may enter a mount namespace of its own, and it changes its root to the tree before it looks at a
layer's entries. Everything is opened and imported before that.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import sys
from threading import Event, Thread
from typing import cast

from kontti.diff.ahead import AheadTree, Settled, SettledDisk, settle
from kontti.diff.compression import READ, Read, Rewound, detect, preload
from kontti.diff.disk import DiskFiles
from kontti.diff.extract import Extractor
from kontti.diff.feed import Feed
from kontti.diff.files import Files
from kontti.diff.flusher import Flusher
from kontti.diff.image import ImageFiles
from kontti.diff.image_file import ImageWriter, SettledImage
from kontti.diff.job import (
    END,
    ApplyJob,
    CompareJob,
    Request,
    Result,
    SettleJob,
    TreeJob,
    read_request,
)
from kontti.diff.lowers import Lowers, NeedsFiles, NeedsParents
from kontti.diff.removal import empty
from kontti.diff.tar import TarReader
from kontti.diff.trees import PlainTree, Tree
from kontti.diff.upper_tree import UpperTree
from kontti.errors import Error, Internal, NotFound, ResourceExhausted
from kontti.linux import libc
from kontti.snapshots.erofs_image import OPAQUE_XATTR

# each directory of a layer is remembered: one that has millions must not take all there is
MAX_MEMORY = 4 << 30
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def main() -> int:
    """Do what standard input asks for."""
    try:
        request, rest = read_request(lambda count: os.read(0, count))
    except EOFError:
        return 0
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
    # what is made here lives as long as the process: looking for cycles in it finds none
    gc.disable()
    result = _perform(request, rest)
    write_all(1, END + json.dumps(result).encode())
    # threads that still wait for input do not keep the process
    os._exit(0)


def write_all(fd: int, data: bytes) -> None:
    """write(2) until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _perform(request: Request, rest: bytes) -> Result:
    try:
        if request["task"] == "compare":
            return _compare(cast("CompareJob", request))
        if request["task"] == "settle":
            return _settle(cast("SettleJob", request))
        return _apply(cast("ApplyJob", request), rest)
    except NeedsParents as needed:
        return {
            "needs_parents": True,
            "needs_files": isinstance(needed, NeedsFiles),
            "message": os.fsdecode(needed.args[0]),
        }
    except Error as error:
        return {"error": error.code, "message": error.message}
    except OSError as error:
        return _os_failure(error)
    except MemoryError:
        return {"error": ResourceExhausted.code, "message": "layer takes too much memory to unpack"}
    except Exception as error:  # noqa: BLE001 - the process ends here: its caller is told all the same
        return {"error": Internal.code, "message": f"layer worker: {error!r:.500}"}


def _os_failure(error: OSError) -> Result:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENOMEM)
    cls = ResourceExhausted if full else NotFound if error.errno == errno.ENOENT else Internal
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    text = (error.strerror or str(error)).lower()
    return {"error": cls.code, "message": f"{name}: {text}" if name else text}


def _apply(job: ApplyJob, rest: bytes) -> Result:
    more = Event()
    if job["blob"] is not None:
        _end_with_parent(more)
    read = _blob_reader(job, rest, more)
    head = read(READ)
    compression = job["compression"] or detect(head)
    preload(compression)
    lowers = _lowers(job["tree"])
    image = _open_image(job["tree"])
    change_root(job["tree"])
    feed = Feed(Rewound(head, read).read, compression, job["algorithm"], job["limit"])
    if image is None:
        made = _extract(_tree(job, DiskFiles(), lowers), feed, job["entries"])
    else:
        made = _make_image(job, image, lowers, feed)
    result: Result = {
        "digest": feed.digest,
        "read": feed.read,
        "diff_id": feed.diff_id,
        "size": feed.size,
        **made,
    }
    if job["sync"]:
        _sync(image)
    return result


def _lowers(tree: TreeJob) -> Lowers:
    roots = [os.open(lower, _DIRECTORY) for lower in tree["lowers"]]
    return Lowers(roots, unknown=tree["kind"] == "upper" and not roots)


def _open_image(tree: TreeJob) -> int | None:
    return os.open(tree["image"], os.O_RDWR | os.O_CLOEXEC) if tree["image"] else None


def _tree(job: ApplyJob, files: Files, lowers: Lowers) -> Tree:
    if job["ahead"]:
        return AheadTree(files)
    if job["tree"]["kind"] != "upper" and not job["tree"]["image"]:
        return PlainTree()
    return UpperTree(files, lowers, job["tree"]["opaque_xattr"])


def _settle(job: SettleJob) -> Result:
    lowers = _lowers(job["tree"])
    image = _open_image(job["tree"])
    change_root(job["tree"])
    disk = SettledDisk(job["tree"]["opaque_xattr"])
    made: Settled = disk if image is None else SettledImage(image)
    settle(job["notes"], lowers, made)
    return {"root": made.root()}


def _blob_reader(job: ApplyJob, rest: bytes, more: Event) -> Read:
    if job["blob"] is None:
        return _Piped(job["size"], rest).read
    blob = os.open(job["blob"], os.O_RDONLY | os.O_CLOEXEC)
    if job["grows"]:
        return _Growing(blob, job["size"], more).read
    return lambda count: os.read(blob, count)


class _Growing:
    """A blob that is being written; it ends by its size, not with the file."""

    def __init__(self, fd: int, size: int, more: Event) -> None:
        self._fd = fd
        self._left = size
        self._more = more

    def read(self, count: int) -> bytes:
        count = min(count, self._left)
        data = b""
        while count and not data:
            self._more.clear()
            data = os.read(self._fd, count)
            if not data:
                self._more.wait()
        self._left -= len(data)
        return data


class _Piped:
    """The blob behind the request on standard input; it ends by its size, not with the pipe."""

    def __init__(self, size: int, start: bytes) -> None:
        self._left = size
        self._start = start

    def read(self, count: int) -> bytes:
        count = min(count, self._left)
        if not count:
            return b""
        data = self._start[:count] or os.read(0, count)
        self._start = self._start[count:]
        self._left -= len(data)
        return data


def change_root(tree: TreeJob) -> None:
    """Make the tree, mounted first where it has to be, this process's root directory."""
    mount_trees([tree])
    os.chroot(tree["root"])
    os.chdir("/")
    os.umask(0)
    # a module found from here on would be the layer's
    sys.path.clear()
    sys.meta_path.clear()


def mount_trees(trees: list[TreeJob]) -> None:
    """Mount what has to be, in a mount namespace that ends with this process."""
    mounted = [tree for tree in trees if tree["kind"] == "mounted"]
    if not mounted:
        return
    libc.unshare(libc.CLONE_NEWNS)
    # slave, not private: what the host unmounts must not stay busy here
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_SLAVE, None)
    for tree in mounted:
        _mount_tree(tree)


def _mount_tree(tree: TreeJob) -> None:
    from kontti.linux import mounts

    mounts.mount_all(
        [_Mount(m["type"], m["source"], m["options"], m["target"]) for m in tree["mounts"]],
        tree["root"],
    )


class _Mount:
    """A mount to make."""

    def __init__(self, kind: str, source: str, options: list[str], target: str) -> None:
        self.type = kind
        self.source = source
        self.options = tuple(options)
        self.target = target


def _end_with_parent(more: Event | None = None) -> None:
    # PR_SET_PDEATHSIG would fire when the thread ends that started us, not the process
    Thread(target=_watch_input, args=(more or Event(),), daemon=True).start()


def _watch_input(more: Event) -> None:
    # behind a request that names its blob comes only what tells of more of it: input ends when the
    # parent does
    while os.read(0, READ):
        more.set()
    os._exit(1)


def _extract(tree: Tree, feed: Feed, most: int) -> Result:
    before = os.stat(b".")
    names = os.listxattr(b".")
    try:
        flusher = Flusher()
        reader = TarReader(flusher.watch(feed))
        Extractor(tree, reader, most).run()
        reader.drain()
        flusher.finish()
    except NeedsParents:
        if isinstance(tree, AheadTree):
            # the snapshot is thrown away as a whole
            raise
        empty(b".")
        _restore(before, names)
        raise
    if isinstance(tree, AheadTree):
        return {"notes": tree.notes(), "root": SettledDisk("").root()}
    return {}


def _make_image(job: ApplyJob, fd: int, lowers: Lowers, feed: Feed) -> Result:
    files = ImageFiles(os.stat(b"."))
    tree = _tree(job, files, lowers)
    writer, flusher = ImageWriter(fd), Flusher(fd)
    reader = TarReader(flusher.watch(writer.watch(feed)))
    Extractor(tree, reader, job["entries"]).run()
    writer.archive_ended()
    reader.drain()
    result: Result = {}
    if isinstance(tree, AheadTree):
        result = {"notes": tree.notes()}
        for path in map(os.fsencode, result["notes"]["opaques"]):
            files.set_xattr(path, OPAQUE_XATTR, b"y")
    writer.finish(files)
    flusher.finish()
    if result:
        result["root"] = SettledImage(fd).root()
    return result


def _restore(before: os.stat_result, names: list[str]) -> None:
    for name in os.listxattr(b"."):
        if name not in names:
            os.removexattr(b".", name)
    os.chown(b".", before.st_uid, before.st_gid)
    os.chmod(b".", before.st_mode & 0o7777)
    os.utime(b".", ns=(before.st_atime_ns, before.st_mtime_ns))


def _sync(image: int | None) -> None:
    if image is not None:
        os.fsync(image)
        return
    root = os.open(b".", _DIRECTORY)
    try:
        libc.syncfs(root)
    finally:
        os.close(root)


def _compare(job: CompareJob) -> Result:
    from kontti.diff.compare import compare

    _end_with_parent()
    preload(job["compression"])
    mount_trees([tree for tree in (job["lower"], job["upper"]) if tree is not None])
    return compare(job, lambda data: write_all(1, data))
