"""The content store on a local file system, in containerd's layout.

<root>/blobs/<algorithm>/<hex>        committed blobs
<root>/ingest/<hex of sha256(ref)>/   ingests
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kontti.content.base import Info, Status
from kontti.content.blobs import Blobs, LocalReader
from kontti.content.disk import disk_errors
from kontti.content.ingests import Ingest, list_ingests, open_root
from kontti.content.locks import Held
from kontti.content.writer import LocalWriter
from kontti.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from kontti.filters import Adaptor, field_adaptor, parse_all
from kontti.values import Digest


class LocalStore:
    """Blobs and ingests under ``root``; one process at a time may have it open. Has no labels."""

    def __init__(self, root: str) -> None:
        with disk_errors(f"open content store {root}"):
            self._blobs = Blobs(os.path.join(root, "blobs"))
            self._ingests = os.path.join(root, "ingest")
            open_root(self._ingests)
        self._held = Held()

    def reader(self, digest: Digest) -> LocalReader:
        """Raises NotFound."""
        return self._blobs.open(digest)

    def info(self, digest: Digest) -> Info:
        """Raises NotFound."""
        return self._blobs.info(digest)

    def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        """Raises FailedPrecondition: labels are kept elsewhere."""
        raise FailedPrecondition("update not supported on immutable content store")

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Blobs by ``digest`` and ``size``."""
        wanted = parse_all(filters)
        return (i for i in self._blobs.walk() if wanted.match(info_adaptor(i)))

    def delete(self, digest: Digest) -> None:
        """Raises NotFound."""
        self._blobs.delete(digest)

    def adopt(self, path: str, digest: Digest) -> int:
        """Make the file ``path`` a blob without copying it, when its bytes are right; its size.

        Raises AlreadyExists, DataLoss for other bytes, FailedPrecondition on another file system.
        """
        return self._blobs.adopt(path, digest)

    def writer(self, ref: str, total: int = 0, expected: str = "") -> LocalWriter:
        """Open or resume ingest ``ref``; raises AlreadyExists, Unavailable, InvalidArgument."""
        if not ref:
            raise InvalidArgument("ref must not be empty")
        if total < 0:
            raise InvalidArgument(f"total size {total} is negative")
        digest = Digest.parse(expected) if expected else None
        self._refuse_present(digest)
        if not self._held.take(ref):
            raise Unavailable(f'ref "{ref}" locked')
        try:
            # the writer that held the ref until now may have made it
            self._refuse_present(digest)
            return self._open(ref, total, digest)
        except BaseException:
            self._held.release(ref)
            raise

    def _refuse_present(self, digest: Digest | None) -> None:
        if digest is not None and self._blobs.exists(digest):
            raise AlreadyExists(f"content {digest}")

    def _open(self, ref: str, total: int, digest: Digest | None) -> LocalWriter:
        ingest = Ingest(self._ingests, ref)
        status = ingest.status()
        if status is None:
            ingest.remove()
            ingest.create(total)
            status = self.status(ref)
        if total and status.total and total != status.total:
            raise FailedPrecondition(
                f"provided total differs from status: {total} != {status.total}"
            )
        status = replace(status, total=total or status.total, expected=digest or "")
        with disk_errors(f"open ingest {ref!r}"):
            return LocalWriter(self._blobs, ingest, status, lambda: self._held.release(ref))

    def status(self, ref: str) -> Status:
        """Raises NotFound."""
        found = Ingest(self._ingests, ref).status()
        if found is None:
            raise NotFound(f"ingest {ref!r}")
        return found

    def list_statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        """Ingests by ``ref``."""
        wanted = parse_all(filters)
        found = (i.status() for i in list_ingests(self._ingests))
        return [s for s in found if s and wanted.match(field_adaptor({"ref": s.ref}))]

    def abort(self, ref: str) -> None:
        """Drop an ingest; raises NotFound, and Unavailable while a writer has it."""
        if not self._held.take(ref):
            raise Unavailable(f'ref "{ref}" locked')
        try:
            self.status(ref)
            Ingest(self._ingests, ref).remove()
        finally:
            self._held.release(ref)


def info_adaptor(info: Info) -> Adaptor:
    """A blob's fields for filters."""
    values = {"digest": str(info.digest), "size": str(info.size)}
    return field_adaptor(values, {"labels": info.labels})
