"""Extracts the layers that a client will ask for next, while it waits for the one before.

Clients that unpack an image themselves have one layer applied after another, each over its parents.
When the first is, the manifest that names it tells the others: they are extracted beside it, before
their parents are there. A layer that is asked for then has only to be settled and put in its place.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from kontti.content.base import Info, Provider
from kontti.diff.base import Ahead, AheadApplier, Applier
from kontti.diff.job import TreeJob
from kontti.diff.lowers import NeedsParents
from kontti.diff.plan import plan_tree
from kontti.errors import Error, NotFound
from kontti.images.graph import GC_REF
from kontti.images.manifest import read_manifest
from kontti.images.media_types import OCI_MANIFEST
from kontti.linux import fs, libc
from kontti.snapshots.applied import Folder
from kontti.values import Descriptor, Digest, Mount

MOST = 8
"""Layers that may be extracted, and not asked for, at a time."""
KEPT_SECONDS = 300.0
WAIT_SECONDS = 3600.0
PREFIX = "new-ahead-"
"""Of a directory beside the snapshots'; what a crash leaves of it is cleaned with them."""
Key = tuple[str, str, Digest]
"""The folder of the snapshots, the namespace, the layer."""


class LayerApplier(Applier, AheadApplier, Protocol):
    """Both ways."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A layer below ``path``, where a snapshot's folder has it, or on its way there."""

    path: str
    future: Future[Ahead]


class Foresight:
    """What was extracted and is not asked for yet, beside the snapshots that are in ``folders``.

    Those in ``images`` take layers as images (snapshots.applied).
    """

    def __init__(self, folders: Sequence[str], at_once: int, images: str = "") -> None:
        self._folders = frozenset(folders)
        self._images = images
        self._pool = ThreadPoolExecutor(at_once, "foresight")
        self._staged: dict[Key, Staged] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._timer: threading.Timer | None = None

    def folder_of(self, tree: TreeJob) -> str:
        """The folder where layers for ``tree`` can be staged; "" where it is no snapshot's
        directory, or not an empty one."""
        snapshot, _, name = tree["root"].rpartition("/")
        folder, _, number = snapshot.rpartition("/")
        if name != "fs" or folder not in self._folders or not number.isdecimal():
            return ""
        beside = Folder(snapshot)
        if folder == self._images and (beside.has_image() or not beside.takes_image()):
            return ""
        return folder if not os.listdir(tree["root"]) else ""

    def expect(
        self, applier: AheadApplier, folder: str, namespace: str, layers: Iterable[Descriptor]
    ) -> None:
        """Begin with what is not begun yet of ``layers``."""
        for layer in layers:
            key = (folder, namespace, layer.digest)
            with self._lock:
                if self._closed.is_set() or len(self._staged) >= MOST:
                    return
                if key in self._staged:
                    continue
                path = os.path.join(folder, PREFIX + secrets.token_hex(8))
                future = self._pool.submit(self._extract, applier, layer, path)
                self._staged[key] = Staged(path, future)
                self._rearm()

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(KEPT_SECONDS, self.forget)
        self._timer.daemon = True
        self._timer.start()

    def _extract(self, applier: AheadApplier, layer: Descriptor, path: str) -> Ahead:
        try:
            os.mkdir(path, 0o700)
            os.mkdir(tree_of(path), 0o755)
            if os.path.dirname(path) == self._images:
                Folder(path).mark()
            return applier.apply_ahead(layer, mounts_of(path), False, self._closed.is_set)
        except BaseException:
            discard(path)
            raise

    def claim(self, folder: str, namespace: str, layer: Descriptor) -> Staged | None:
        """What there is of a layer; the caller's to wait for, and to put away."""
        with self._lock:
            return self._staged.pop((folder, namespace, layer.digest), None)

    def forget(self) -> None:
        """Drop all that nobody came for."""
        with self._lock:
            dropped, self._staged = self._staged, {}
        for staged in dropped.values():
            if done(staged) is not None:
                discard(staged.path)

    def close(self) -> None:
        """Stop what is under way, and leave nothing."""
        self._closed.set()
        if self._timer is not None:
            self._timer.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.forget()


def done(staged: Staged) -> Ahead | None:
    """Wait for an extraction that has begun; None for one that has not, or that failed.

    Why it failed is said by the attempt that follows, over the layer's parents.
    """
    if staged.future.cancel():
        return None
    try:
        return staged.future.result(WAIT_SECONDS)
    except (Error, NeedsParents, OSError, CancelledError, TimeoutError):
        return None


def tree_of(path: str) -> str:
    """The directory of a snapshot's folder, or of a staged one."""
    return os.path.join(path, "fs")


def mounts_of(path: str) -> list[Mount]:
    """What shows that directory."""
    return [Mount("bind", tree_of(path), ("rw", "rbind"))]


def put(path: str, snapshot: str) -> None:
    """Give a snapshot's folder the layer that is staged in ``path``; raises OSError."""
    image = Folder(path).applied
    if os.path.exists(image):
        os.rename(image, Folder(snapshot).applied)
    else:
        os.rename(tree_of(path), tree_of(snapshot))


def discard(path: str) -> None:
    """Remove a staged tree; what cannot be is cleaned at the next start."""
    with contextlib.suppress(OSError):
        fs.remove_tree(path)


@dataclass(frozen=True, slots=True)
class ForeseeingApplier:
    """diff.base.Applier of a namespace; ``following`` tells which layers come after one."""

    inner: LayerApplier
    foresight: Foresight
    namespace: str
    following: Callable[[Digest], Sequence[Descriptor]]

    def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], sync_fs: bool = False
    ) -> Descriptor:
        """As elsewhere."""
        tree = plan_tree(mounts)
        folder = "" if tree["kind"] == "mounted" else self.foresight.folder_of(tree)
        if not folder:
            return self.inner.apply(layer, mounts, sync_fs)
        staged = self.foresight.claim(folder, self.namespace, layer)
        following = self.following(layer.digest)
        self.foresight.expect(self.inner, folder, self.namespace, following)
        if staged is not None:
            ahead = done(staged)
            if ahead is not None and self._place(staged.path, ahead, tree, mounts):
                if sync_fs:
                    sync(tree["root"])
                return ahead.applied
        return self.inner.apply(layer, mounts, sync_fs)

    def _place(self, path: str, ahead: Ahead, tree: TreeJob, mounts: Sequence[Mount]) -> bool:
        """Put a staged layer where it is wanted; False, with nothing changed, where it cannot."""
        try:
            self._settle(path, ahead, tree, mounts)
            put(path, os.path.dirname(tree["root"]))
        except (Error, NeedsParents, OSError):
            return False
        finally:
            discard(path)
        return True

    def _settle(self, path: str, ahead: Ahead, tree: TreeJob, mounts: Sequence[Mount]) -> None:
        root = look_of(tree["lowers"][0]) if tree["lowers"] else ()
        if look_of(tree["root"]) != root:
            # there are no parents, or the snapshotter had the directory look as none of them does
            raise NeedsParents(b"")
        implied = [name for name in ahead.implied if name or ahead.root != root]
        if implied or ahead.described or ahead.whiteouts or ahead.opaques:
            self.inner.settle(ahead, mounts_of(path), mounts)


def look_of(directory: str) -> tuple[int, ...]:
    """How a tree's root looks (diff.base.Root)."""
    found = os.stat(directory)
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def sync(directory: str) -> None:
    """Write out the file system of ``directory``."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc.syncfs(fd)
    finally:
        os.close(fd)


def following(
    content: Provider, labelled: Callable[[str], Iterable[Info]], digest: Digest
) -> tuple[Descriptor, ...]:
    """The layers after ``digest`` that are there, by a manifest whose labels name it.

    ``labelled`` gives the blobs that have a text in their labels.
    """
    for info in labelled(digest):
        if any(k.startswith(f"{GC_REF}.l.") and v == digest for k, v in info.labels.items()):
            found = tuple(_after(content, info, digest))
            if found:
                return found
    return ()


def _after(content: Provider, manifest: Info, digest: Digest) -> Iterator[Descriptor]:
    try:
        # docker's manifests are read the same way
        layers = read_manifest(
            content, Descriptor(OCI_MANIFEST, manifest.digest, manifest.size)
        ).layers
        digests = [layer.digest for layer in layers]
        first = digests.index(digest) + 1 if digest in digests else len(layers)
        for layer in layers[first : first + MOST]:
            content.info(layer.digest)
            yield layer
    except (Error, NotFound):
        return
