"""Applies layers to trees: finds the blob, plans how to reach the tree, and has a worker do it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from kontti.content.base import Provider, Reader
from kontti.diff.base import Ahead, Incoming, Limits, Root
from kontti.diff.job import ApplyJob, Notes, Result, TreeJob, encode
from kontti.diff.lowers import NeedsParents
from kontti.diff.media_types import OCI_LAYER, layer_compression
from kontti.diff.plan import image_folder, mount_point, plan_ahead, plan_mounted, plan_tree
from kontti.diff.workers import Worker, Workers
from kontti.errors import FailedPrecondition
from kontti.snapshots.directories import tree_errors
from kontti.snapshots.erofs_image import OPAQUE_XATTR
from kontti.values import Descriptor, Digest, Mount

DEADLINE_SECONDS = 3600.0
DEFAULT_LIMITS = Limits()
_CHUNK = 1 << 20


class LayerApplier:
    """Puts the layers of a content store on trees (diff.base.Applier)."""

    def __init__(
        self,
        content: Provider,
        workers: Workers | None = None,
        *,
        deadline: float = DEADLINE_SECONDS,
        limits: Limits = DEFAULT_LIMITS,
        direct: bool = True,
        images: str = "",
    ) -> None:
        """``limits``: what a layer may become; ``deadline``: seconds for one.

        ``direct`` writes to directories rather than to what is mounted, where that is the same.
        ``images`` is where snapshots are that take a layer as an image (snapshots.applied).
        """
        self._content = content
        self._workers = workers or Workers()
        self._deadline = deadline
        self._limits = limits
        self._direct = direct
        self._images = images

    def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], sync_fs: bool = False
    ) -> Descriptor:
        """Extract ``layer`` over ``mounts``; gives the uncompressed tar. See diff.base.Applier."""
        with self._blob(layer, None) as blob:
            return self._apply(layer, blob, mounts, sync_fs)

    def apply_incoming(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        incoming: Incoming,
        sync_fs: bool = False,
    ) -> Descriptor:
        """As ``apply``, while the blob is being written. See diff.base.IncomingApplier."""
        with self._blob(layer, incoming) as blob:
            return self._apply(layer, blob, mounts, sync_fs)

    def apply_ahead(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        sync_fs: bool = False,
        stopped: Callable[[], bool] | None = None,
        incoming: Incoming | None = None,
    ) -> Ahead:
        """Extract ``layer`` before its parents are there. See diff.base.AheadApplier."""
        tree = plan_ahead(mounts)
        if tree is None:
            raise NeedsParents(b"")
        with self._blob(layer, incoming) as blob:
            job: ApplyJob = {**self._job(layer, blob, tree, sync_fs), "ahead": True}
            result = self._to_image(layer, job, blob, stopped)
            if result is None or result.get("needs_files"):
                result = self._run(job, blob, time.monotonic() + self._deadline, stopped)
        if result.get("needs_parents"):
            raise NeedsParents(os.fsencode(result["message"]))
        applied = self._applied(layer, result)
        notes = {key: tuple(cast("list[str]", paths)) for key, paths in result["notes"].items()}
        return Ahead(applied, tuple(result["root"]), **notes)

    def settle(self, ahead: Ahead, mounts: Sequence[Mount], parents: Sequence[Mount]) -> Root:
        """Bring what was extracted in line with its parents. See diff.base.AheadApplier."""
        tree, over = plan_ahead(mounts), plan_tree(parents)
        if tree is None or over["kind"] != "upper":
            raise NeedsParents(b"")
        tree = {**tree, "lowers": over["lowers"], "opaque_xattr": over["opaque_xattr"]}
        folder = image_folder(tree, self._images)
        if folder is not None and folder.has_image():
            if over["opaque_xattr"] != OPAQUE_XATTR and ahead.opaques:
                raise NeedsParents(os.fsencode(ahead.opaques[0]))
            tree["image"] = folder.applied
        notes: Notes = {
            "implied": list(ahead.implied),
            "described": list(ahead.described),
            "whiteouts": list(ahead.whiteouts),
            "opaques": list(ahead.opaques),
        }
        deadline = time.monotonic() + self._deadline
        with self._workers.take() as worker:
            result = worker.ask(encode({"task": "settle", "tree": tree, "notes": notes}), deadline)
        self._workers.refill()
        if result.get("needs_parents"):
            raise NeedsParents(os.fsencode(result["message"]))
        return tuple(result["root"])

    @contextmanager
    def _blob(self, layer: Descriptor, incoming: Incoming | None) -> Iterator[_Blob]:
        if incoming is not None:
            yield _Blob(layer.size, incoming.path, incoming=incoming)
            return
        with self._content.reader(layer.digest) as reader:
            yield _Blob(reader.size, reader.path, reader if reader.path is None else None)

    def _job(self, layer: Descriptor, blob: _Blob, tree: TreeJob, sync_fs: bool) -> ApplyJob:
        compression = layer_compression(layer.media_type)
        grows = blob.incoming is not None
        return {
            "task": "apply",
            "blob": blob.path,
            "grows": grows,
            "size": blob.size,
            # what grows is hashed by who writes it
            "algorithm": "" if grows else layer.digest.algorithm,
            # what a type calls gzip may be zstd or plain, as registries have it: the bytes say
            "compression": compression if compression == "none" else "",
            "limit": self._limits.bytes_of(blob.size),
            "entries": self._limits.entries,
            "tree": tree,
            "ahead": False,
            "sync": sync_fs,
        }

    def _applied(self, layer: Descriptor, result: Result) -> Descriptor:
        self._workers.refill()
        _check(layer, result)
        return Descriptor(OCI_LAYER, Digest.parse(result["diff_id"]), result["size"])

    def _apply(
        self, layer: Descriptor, blob: _Blob, mounts: Sequence[Mount], sync_fs: bool
    ) -> Descriptor:
        tree = plan_tree(mounts) if self._direct else plan_mounted(mounts)
        job = self._job(layer, blob, tree, sync_fs)
        return self._applied(layer, self._result(layer, job, blob, mounts))

    def _result(
        self, layer: Descriptor, job: ApplyJob, blob: _Blob, mounts: Sequence[Mount]
    ) -> Result:
        deadline = time.monotonic() + self._deadline
        result = self._to_image(layer, job, blob)
        if result is None or _falls_back(job, result):
            result = self._run(job, blob, deadline)
        if result.get("needs_parents"):
            if not job["tree"]["lowers"]:
                raise FailedPrecondition(f"layer needs its parents at {result['message']!r}")
            again = cast("ApplyJob", {**job, "tree": plan_mounted(mounts)})
            result = self._run(again, blob, deadline)
        return result

    def _to_image(
        self,
        layer: Descriptor,
        job: ApplyJob,
        blob: _Blob,
        stopped: Callable[[], bool] | None = None,
    ) -> Result | None:
        """Make an image where the snapshot takes one; None where it does not.

        It has none after a result that says what the layer needs.
        """
        folder = image_folder(job["tree"], self._images)
        if folder is None:
            return None
        with tree_errors(folder.path):
            # what was applied before this layer is to be below it
            folder.to_files()
            if not folder.takes_image():
                return None
            with folder.draft() as draft:
                if draft is None:
                    return None
                tree: TreeJob = {**job["tree"], "image": draft.path}
                request = cast("ApplyJob", {**job, "tree": tree})
                result = self._run(request, blob, time.monotonic() + self._deadline, stopped)
                if not result.get("needs_parents"):
                    _check(layer, result)
                    draft.keep()
        return result

    def _run(
        self,
        job: ApplyJob,
        blob: _Blob,
        deadline: float,
        stopped: Callable[[], bool] | None = None,
    ) -> Result:
        planned: TreeJob = job["tree"]
        with mount_point(planned) as tree, self._workers.take() as worker:
            worker.stopped = stopped if blob.incoming is None else blob.incoming.is_broken
            request = encode(cast("ApplyJob", {**job, "tree": tree}))
            worker.send(request, _chunks(blob.sent) if blob.sent else (), deadline)
            if blob.incoming is not None:
                self._tell(worker, blob.incoming)
                # how long a download may take is for the registry's side to say
                deadline = time.monotonic() + self._deadline
            return worker.finish(deadline)

    def _tell(self, worker: Worker, incoming: Incoming) -> None:
        """Wake the worker for what has arrived, until all has, or it ended before."""
        for arrival in incoming.arrivals():
            if not worker.is_idle():
                return
            worker.send(arrival, (), time.monotonic() + self._deadline)


@dataclass(frozen=True, slots=True)
class _Blob:
    """Where a worker has a blob from: a file, which may be growing, or what is sent."""

    size: int
    path: str | None
    sent: Reader | None = None
    incoming: Incoming | None = None


def _falls_back(job: ApplyJob, result: Result) -> bool:
    """Whether a layer that made no image is to be extracted as if none had been tried."""
    if not result.get("needs_parents"):
        return False
    return result.get("needs_files", False) or not job["tree"]["lowers"]


def _chunks(blob: Reader) -> Iterator[bytes]:
    for offset in range(0, blob.size, _CHUNK):
        yield blob.read_at(offset, _CHUNK)


def _check(layer: Descriptor, result: Result) -> None:
    if result["digest"] not in ("", layer.digest):
        raise FailedPrecondition(
            f"unexpected layer digest {result['digest']}, expected {layer.digest}"
        )
    if layer.size and result["read"] != layer.size:
        raise FailedPrecondition(f"unexpected layer size {result['read']}, expected {layer.size}")
