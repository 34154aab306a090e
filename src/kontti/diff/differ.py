"""Makes layers: plans how to read two trees, has a worker compare them, keeps the result."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import cast

from kontti.content.base import Store, Writer
from kontti.diff.base import DiffOptions
from kontti.diff.job import CompareJob, Result, TreeJob, encode
from kontti.diff.media_types import diff_compression
from kontti.diff.plan import mount_point, plan_reading, stack, tree
from kontti.diff.workers import Workers
from kontti.errors import AlreadyExists, Internal, NotFound
from kontti.values import Descriptor, Digest, Mount

DEADLINE_SECONDS = 3600.0
UNCOMPRESSED = "containerd.io/uncompressed"


class WalkingDiffer:
    """Compares trees into a content store (diff.base.Comparer)."""

    def __init__(
        self, content: Store, workers: Workers | None = None, *, deadline: float = DEADLINE_SECONDS
    ) -> None:
        """``deadline``: seconds for one comparison."""
        self._content = content
        self._workers = workers or Workers()
        self._deadline = deadline

    def compare(
        self, lower: Sequence[Mount], upper: Sequence[Mount], options: DiffOptions
    ) -> Descriptor:
        """The layer that turns ``lower`` into ``upper``; raises as diff.base.Comparer says."""
        compression = diff_compression(options.media_type)
        reference = options.reference or f"diff-{time.time_ns()}-{secrets.token_hex(8)}"
        writer = self._content.writer(reference)
        try:
            with writer:
                job = _job(lower, upper, compression, options.source_date_epoch)
                result = self._write(writer, job, lower, upper)
                return self._commit(writer, result, options)
        except BaseException:
            with suppress(NotFound):
                self._content.abort(reference)
            raise

    def _write(
        self, writer: Writer, job: CompareJob, lower: Sequence[Mount], upper: Sequence[Mount]
    ) -> Result:
        deadline = time.monotonic() + self._deadline
        result = self._run(writer, job, deadline)
        if result.get("needs_parents"):
            both = {**job, "lower": _reading(lower), "upper": plan_reading(upper)}
            result = self._run(writer, cast("CompareJob", both), deadline)
        if result.get("needs_parents"):
            raise Internal("comparison asked for parents twice")
        return result

    def _run(self, writer: Writer, job: CompareJob, deadline: float) -> Result:
        writer.truncate(0)
        with ExitStack() as points, self._workers.take() as worker:
            placed: CompareJob = {
                **job,
                "upper": points.enter_context(mount_point(job["upper"])),
                "lower": points.enter_context(mount_point(job["lower"])) if job["lower"] else None,
            }
            worker.send(encode(placed), (), deadline)
            _copy(worker.frames(deadline), writer)
            return worker.result()

    def _commit(self, writer: Writer, result: Result, options: DiffOptions) -> Descriptor:
        labels = {**options.labels, UNCOMPRESSED: result["diff_id"]}
        size, digest = writer.status().offset, writer.digest()
        try:
            writer.commit(size, digest, labels)
        except AlreadyExists:
            self._label(digest, labels)
        return Descriptor(options.media_type, digest, size)

    def _label(self, digest: Digest, labels: dict[str, str]) -> None:
        info = self._content.info(digest)
        missing = {k: v for k, v in labels.items() if k not in info.labels}
        if missing:
            paths = [f"labels.{key}" for key in missing]
            self._content.update(replace(info, labels={**info.labels, **missing}), paths)


def _copy(frames: Iterator[bytes], writer: Writer) -> None:
    for data in frames:
        writer.write(data)


def _job(
    lower: Sequence[Mount], upper: Sequence[Mount], compression: str, latest: int | None
) -> CompareJob:
    top = stack(upper)
    quick = bool(top) and top[1:] == (stack(lower) if lower else ())
    return {
        "task": "compare",
        "lower": None if quick else _reading(lower),
        "upper": tree("upper", top[0]) if quick else plan_reading(upper),
        "compression": compression,
        "latest": latest,
    }


def _reading(mounts: Sequence[Mount]) -> TreeJob | None:
    return plan_reading(mounts) if mounts else None
