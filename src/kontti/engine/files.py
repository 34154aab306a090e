"""Copying between a container's files and the host's.

Paths in a container are resolved in its root: a symlink there leads where it leads the container,
and never out. On the host no symlink that came from a container is gone through.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import BinaryIO, Self

from kontti.diff.copy_in import Copied, Keep, extract
from kontti.diff.copy_out import write_tree
from kontti.diff.inside import Destination, Root, is_directory, split
from kontti.engine.base import Core
from kontti.engine.values import Sink
from kontti.errors import Error, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from kontti.linux.mounts import mounted
from kontti.metadata.base import Container
from kontti.namespaces import Scope
from kontti.tasks.base import Status

CHUNK = 1 << 18
ENDED = (Status.STOPPED, Status.UNKNOWN)
ROOT_USER = (0, 0)
_TREE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_files(core: Core, scope: Scope, record: Container, pid: int) -> Files:
    """The files of a container whose first process is ``pid``, 0 where it does not run."""
    if pid:
        # where it ends meanwhile, its files are there still
        with contextlib.suppress(ProcessLookupError):
            return Files(record.id, Root(_running(core, scope, record.id)))
    return Files(record.id, Root(_still(core, scope, record)))


def _running(core: Core, scope: Scope, id: str) -> int:
    """The root of a process that is the container's at the beginning and at the end of this."""
    pid = core.wait_for(core.tasks.get(scope, id)).pid
    pidfd = os.pidfd_open(pid)
    try:
        found = core.wait_for(core.tasks.get(scope, id))
        if found.pid != pid or found.status in ENDED:
            raise ProcessLookupError
        try:
            root = os.open(f"/proc/{pid}/root", _TREE)
        except FileNotFoundError:
            raise ProcessLookupError from None
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if poller.poll(0):
            os.close(root)
            raise ProcessLookupError
        return root
    finally:
        os.close(pidfd)


def _still(core: Core, scope: Scope, record: Container) -> int:
    """The snapshot of a container that does not run, mounted for as long as this is open."""
    if not record.snapshot_key:
        raise FailedPrecondition(f"container {record.id} has no snapshot, and does not run")
    mounts = core.stores.snapshots(scope, record.snapshotter).mounts(record.snapshot_key)
    with mounted(mounts) as path:
        # taken off its directory at once: the descriptor alone holds it, and a dead process nothing
        return os.open(path, _TREE)


class Files:
    """A container's files, until closed. What a copy replaces is replaced whole."""

    def __init__(self, id: str, root: Root) -> None:
        self._id = id
        self._root = root

    def get(
        self, source: str, target: str, *, archive: bool = False, follow: bool = False
    ) -> Copied:
        """Copy ``source`` of the container to ``target`` here.

        What is written is ours, without set-id bits and devices; all as it is with ``archive``.
        ``follow`` a symlink at the end of ``source``.
        """
        keep = Keep(None if archive else (os.geteuid(), os.getegid()), special=archive)
        with _host() as host:
            ends = (
                _End(self._root, source, self._id),
                _End(host, os.path.abspath(target) + _tail(target), ""),
            )
            return _copy(*ends, keep, follow=follow, through_links=False)

    def put(
        self, source: str, target: str, *, archive: bool = False, follow: bool = False
    ) -> Copied:
        """Copy ``source`` here to ``target`` in the container, as its root's; as ours is, with
        ``archive``."""
        keep = Keep(None if archive else ROOT_USER, special=True)
        with _host() as host:
            ends = (
                _End(host, os.path.abspath(source) + _tail(source), ""),
                _End(self._root, target, self._id),
            )
            return _copy(*ends, keep, follow=follow, through_links=True)

    def read_tar(self, source: str, sink: Sink, *, follow: bool = False) -> None:
        """Give ``sink`` a tar of ``source``."""
        end = _End(self._root, source, self._id)
        with end.told():
            write_tree(self._root, end.path, end.name, sink, follow=follow)

    def write_tar(self, source: BinaryIO, target: str) -> Copied:
        """Write a tar's entries into the directory ``target``, owned as the tar says."""
        end = _End(self._root, target, self._id)
        with end.told(), Destination(self._root, end.path, follow=True) as into:
            chunks = iter(lambda: source.read(CHUNK), b"")
            return extract(chunks, into, Keep(None, special=True))

    def close(self) -> None:
        """Let go of the files."""
        self._root.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _host() -> Root:
    return Root(os.open("/", _TREE))


def _tail(path: str) -> str:
    """What os.path.abspath takes off and a copy goes by: ``/`` or ``/.`` at the end."""
    if path.endswith("/."):
        return "/."
    return "/" if path.endswith("/") else ""


class _End:
    """One end of a copy: a path in a root, and whose root that is."""

    def __init__(self, root: Root, path: str, container: str) -> None:
        if not path or "\0" in path:
            raise InvalidArgument(f"path {path!r:.60}")
        self.root = root
        self.path = os.fsencode(path)
        self.shown = f"{container}:{path}" if container else path

    @property
    def name(self) -> bytes:
        """What a copy of it is called in a directory; b"" where its contents are meant."""
        return split(self.path)[1]

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Errors of the system as ours, naming this end."""
        try:
            yield
        except FileNotFoundError:
            raise NotFound(self.shown) from None
        except PermissionError as error:
            raise PermissionDenied(f"{self.shown}: {os.strerror(error.errno or 0)}") from None
        except OSError as error:
            raise InvalidArgument(f"{self.shown}: {os.strerror(error.errno or 0)}") from None


def _copy(source: _End, target: _End, keep: Keep, *, follow: bool, through_links: bool) -> Copied:
    with source.told():
        status = source.root.look(source.path, follow=follow)
    if status is None:
        raise NotFound(source.shown)
    with target.told():
        directory, name = place(target, source.name, directory=is_directory(status))
        with Destination(target.root, directory, follow=through_links) as into:
            return _piped(
                lambda sink: write_tree(source.root, source.path, name, sink, follow=follow),
                lambda chunks: extract(chunks, into, keep),
            )


def place(target: _End, name: bytes, *, directory: bool) -> tuple[bytes, bytes]:
    """Where a copy goes: a directory that is there, and the name in it, b"" for contents.

    As cp(1) and docker have it. Raises NotFound, InvalidArgument.
    """
    there = target.root.look(target.path, follow=True)
    if is_directory(there):
        return target.path, name
    if there is None and target.path.endswith(b"/") and not directory:
        raise NotFound(f"directory {target.shown}")
    if there is not None and directory:
        raise InvalidArgument(f"{target.shown} is no directory to copy one to")
    parent, base = split(target.root.final(target.path.rstrip(b"/")))
    if not base or not is_directory(target.root.look(parent, follow=True)):
        raise NotFound(f"directory of {target.shown}")
    return parent, base


def _piped(produce: Callable[[Sink], None], consume: Callable[[Iterator[bytes]], Copied]) -> Copied:
    """Have ``consume`` read what ``produce`` writes meanwhile; raises what either raises."""
    reads, writes = os.pipe2(os.O_CLOEXEC)
    failures: list[BaseException] = []

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(writes, view) :]

    def run() -> None:
        try:
            produce(write)
        except BrokenPipeError:
            return  # the other side has failed, and says why
        except BaseException as error:  # noqa: BLE001 raised where it is waited for
            failures.append(error)
        finally:
            os.close(writes)

    thread = threading.Thread(target=run, name="copy")
    thread.start()
    try:
        copied = consume(iter(lambda: os.read(reads, CHUNK), b""))
    except Error:
        # an archive that ends too early is what a failure of its writer looks like from here
        os.close(reads)
        reads = -1
        thread.join()
        if failures:
            raise failures[0] from None
        raise
    finally:
        if reads >= 0:
            os.close(reads)
        thread.join()
    if failures:
        raise failures[0]
    return copied
