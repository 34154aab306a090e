"""Applies layers to trees: finds the blob, plans how to reach the tree, and has a worker do it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import cast

from kontti.content.base import Provider, Reader
from kontti.diff.job import ApplyJob, Result, TreeJob, encode
from kontti.diff.media_types import OCI_LAYER, layer_compression
from kontti.diff.plan import mount_point, plan_mounted, plan_tree
from kontti.diff.workers import Workers
from kontti.errors import FailedPrecondition
from kontti.values import Descriptor, Digest, Mount

DEADLINE_SECONDS = 3600.0
_CHUNK = 1 << 20


class LayerApplier:
    """Puts the layers of a content store on trees (diff.base.Applier)."""

    def __init__(
        self,
        content: Provider,
        workers: Workers | None = None,
        *,
        deadline: float = DEADLINE_SECONDS,
        limit: int = 0,
        direct: bool = True,
    ) -> None:
        """``limit``: most bytes a layer may be uncompressed; ``deadline``: seconds for one.

        ``direct`` writes to directories rather than to what is mounted, where that is the same.
        """
        self._content = content
        self._workers = workers or Workers()
        self._deadline = deadline
        self._limit = limit
        self._direct = direct

    def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], sync_fs: bool = False
    ) -> Descriptor:
        """Extract ``layer`` over ``mounts``; gives the uncompressed tar. See diff.base.Applier."""
        compression = layer_compression(layer.media_type)
        with self._content.reader(layer.digest) as blob:
            job: ApplyJob = {
                "task": "apply",
                "blob": blob.path,
                "size": blob.size,
                "algorithm": layer.digest.algorithm,
                # what a type calls gzip may be zstd or plain, as registries have it: the bytes say
                "compression": compression if compression == "none" else "",
                "limit": self._limit,
                "tree": plan_tree(mounts) if self._direct else plan_mounted(mounts),
                "sync": sync_fs,
            }
            result = self._apply(job, blob, mounts)
        self._workers.refill()
        _check(layer, result)
        return Descriptor(OCI_LAYER, Digest.parse(result["diff_id"]), result["size"])

    def _apply(self, job: ApplyJob, blob: Reader, mounts: Sequence[Mount]) -> Result:
        deadline = time.monotonic() + self._deadline
        result = self._run(job, blob, deadline)
        if result.get("needs_parents"):
            if not job["tree"]["lowers"]:
                raise FailedPrecondition(f"layer needs its parents at {result['message']!r}")
            again = cast("ApplyJob", {**job, "tree": plan_mounted(mounts)})
            result = self._run(again, blob, deadline)
        return result

    def _run(self, job: ApplyJob, blob: Reader, deadline: float) -> Result:
        planned: TreeJob = job["tree"]
        with mount_point(planned) as tree, self._workers.take() as worker:
            request = encode(cast("ApplyJob", {**job, "tree": tree}))
            worker.send(request, () if blob.path is not None else _chunks(blob), deadline)
            for _ in worker.frames(deadline):
                pass
            return worker.result()


def _chunks(blob: Reader) -> Iterator[bytes]:
    for offset in range(0, blob.size, _CHUNK):
        yield blob.read_at(offset, _CHUNK)


def _check(layer: Descriptor, result: Result) -> None:
    if result["digest"] != layer.digest:
        raise FailedPrecondition(
            f"unexpected layer digest {result['digest']}, expected {layer.digest}"
        )
    if layer.size and result["read"] != layer.size:
        raise FailedPrecondition(f"unexpected layer size {result['read']}, expected {layer.size}")
