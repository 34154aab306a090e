"""The content store as one namespace sees it: blobs it has, with labels and leases."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from kontti.content.base import Buffer, Info, Reader, Status, Writer
from kontti.content.local import info_adaptor
from kontti.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from kontti.filters import parse_all
from kontti.metadata.backing import (
    Backing,
    check_lease,
    drop,
    ensure_namespace,
    hold,
    now,
    refuse_other_paths,
)
from kontti.metadata.database import dump, load
from kontti.metadata.gc import lets_go
from kontti.metadata.leases import CONTENT, INGESTS
from kontti.metadata.sweep import abort_ingest, remove_blobs
from kontti.namespaces import Scope
from kontti.values import EMPTY, Digest, Resource, check_labels, merge_labels
from kontti.wire.messages.events.content import ContentCreate, ContentDelete

SHAREABLE = "containerd.io/namespace.shareable"
INGEST_SECONDS = 24 * 3600
"""How long an ingest that no lease keeps may wait for its writer."""
_COLUMNS = "digest, size, labels, created_at, updated_at"


class NamespacedContent:
    """content.base.Store of one scope."""

    def __init__(self, backing: Backing, scope: Scope) -> None:
        self._backing = backing
        self._database = backing.database
        self._scope = scope
        self._namespace = scope.namespace

    def info(self, digest: Digest) -> Info:
        """Raises NotFound where this namespace has no such blob."""
        with self._database.read() as connection:
            return self._info(connection, digest)

    def _info(self, connection: sqlite3.Connection, digest: Digest) -> Info:
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM blobs WHERE namespace = ? AND digest = ?",
            (self._namespace, digest),
        ).fetchone()
        if row is None:
            raise NotFound(f"content digest {digest}")
        return _from_row(row)

    def reader(self, digest: Digest) -> Reader:
        """Raises NotFound."""
        return self._backing.readers.open(self._namespace, digest, self.info)

    def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels; raises NotFound, InvalidArgument for other fields."""
        refuse_other_paths(paths, f'content info "{info.digest}"')
        with self._database.write() as connection:
            old = self._info(connection, info.digest)
            merged = merge_labels(old.labels, info.labels, paths)
            stamp = now()
            connection.execute(
                "UPDATE blobs SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
                (dump(merged), stamp, self._namespace, info.digest),
            )
        self._backing.mutated(lets_go(old.labels, merged))
        return replace(old, labels=merged, updated_at=stamp)

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Those that match, by digest."""
        wanted = parse_all(filters)
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM blobs WHERE namespace = ? ORDER BY digest",
                (self._namespace,),
            ).fetchall()
        found = (_from_row(row) for row in rows)
        return (info for info in found if wanted.match(info_adaptor(info)))

    def labelled(self, text: str) -> list[Info]:
        """Those with ``text`` in a label."""
        query = f"SELECT {_COLUMNS} FROM blobs WHERE namespace = ? AND instr(labels, ?)"
        with self._database.read() as connection:
            return [_from_row(r) for r in connection.execute(query, (self._namespace, text))]

    def delete(self, digest: Digest) -> None:
        """Take the blob from this namespace; its file goes when no namespace has it."""
        with self._database.write() as connection:
            done = connection.execute(
                "DELETE FROM blobs WHERE namespace = ? AND digest = ?", (self._namespace, digest)
            )
            if not done.rowcount:
                raise NotFound(f"content digest {digest}")
            drop(connection, self._scope, Resource(digest, CONTENT))
        remove_blobs(self._backing, [digest])
        event = ContentDelete(digest=digest)
        self._backing.publisher.publish(self._namespace, "/content/delete", event)
        self._backing.mutated(True)

    def status(self, ref: str) -> Status:
        """Raises NotFound."""
        backend, expected = self._ingest(ref)
        return replace(self._backing.content.status(backend), ref=ref, expected=expected)

    def _ingest(self, ref: str) -> tuple[str, str]:
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT backend, expected FROM ingests WHERE namespace = ? AND ref = ?",
                (self._namespace, ref),
            ).fetchone()
        if row is None:
            raise NotFound(f'ingest ref "{ref}"')
        return str(row[0]), str(row[1])

    def list_statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        """Those that match, by ref."""
        wanted = parse_all(filters)
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT ref, backend, expected FROM ingests WHERE namespace = ? ORDER BY ref",
                (self._namespace,),
            ).fetchall()
        found = []
        for ref, backend, expected in rows:
            with contextlib.suppress(NotFound):
                status = self._backing.content.status(backend)
                found.append(replace(status, ref=ref, expected=expected))

        def match(status: Status) -> bool:
            return wanted.match(lambda p: (status.ref, True) if p[0] == "ref" else ("", False))

        return [status for status in found if match(status)]

    def abort(self, ref: str) -> None:
        """Throw the ingest away; raises NotFound, Unavailable while it is being written."""
        with self._held(ref):
            self._abort(ref)

    def _abort(self, ref: str) -> None:
        backend, _ = self._ingest(ref)
        abort_ingest(self._backing, backend)
        with self._database.write(durable=False) as connection:
            self._forget(connection, ref)

    def _forget(self, connection: sqlite3.Connection, ref: str) -> None:
        key = (self._namespace, ref)
        connection.execute("DELETE FROM ingests WHERE namespace = ? AND ref = ?", key)
        drop(connection, self._scope, Resource(ref, INGESTS))

    @contextlib.contextmanager
    def _held(self, ref: str) -> Iterator[None]:
        self._take(ref)
        try:
            yield
        finally:
            self.let_go(ref)

    def _take(self, ref: str) -> None:
        if not self._backing.writers.take((self._namespace, ref)):
            raise Unavailable(f'ref "{ref}" locked')

    def let_go(self, ref: str) -> None:
        """The ref's writer is closed."""
        self._backing.writers.release((self._namespace, ref))

    def writer(self, ref: str, total: int = 0, expected: str = "") -> Writer:
        """content.base.Ingester.writer; a blob another namespace has is taken over by digest."""
        if not ref:
            raise InvalidArgument("ref must not be empty")
        if expected:
            self._take_over(Digest.parse(expected), total)
        self._take(ref)
        try:
            return self._open(ref, total, expected)
        except BaseException:
            self.let_go(ref)
            raise

    def _open(self, ref: str, total: int, expected: str) -> NamespacedWriter:
        backend, made = self._record_ingest(ref, expected)
        try:
            # the backend is not told what is expected: it may have that from another namespace
            inner = self._backing.content.writer(backend, total, "")
        except BaseException:
            if made:
                self._abort(ref)
            raise
        return NamespacedWriter(self, inner, ref, expected)

    def _take_over(self, digest: Digest, total: int) -> None:
        """Raises AlreadyExists where the blob is here, or could be taken from another namespace."""
        with self._backing.digest_lock(digest):
            size = self._size_here_or_elsewhere(digest)
            if size is None or (total and total != size):
                return
            with self._database.write() as connection:
                made = self._insert(connection, digest, size, EMPTY)
        if made:
            self._created(digest, size)
        raise AlreadyExists(f"content {digest}")

    def adopt(self, digest: Digest, put: Callable[[], int]) -> None:
        """Record the blob that ``put`` has the backend have, giving its size; one may be there.

        Raises AlreadyExists where this namespace has it, and what ``put`` raises.
        """
        with self._backing.digest_lock(digest):
            with contextlib.suppress(NotFound):
                self.info(digest)
                raise AlreadyExists(f"content {digest}")
            try:
                size = put()
            except AlreadyExists:
                size = self._backing.content.info(digest).size
            with self._database.write() as connection:
                self._insert(connection, digest, size, EMPTY)
        self._created(digest, size)

    def _size_here_or_elsewhere(self, digest: Digest) -> int | None:
        with self._database.read() as connection:
            try:
                return self._info(connection, digest).size
            except NotFound:
                if not self._may_take(connection, digest):
                    return None
        try:
            return self._backing.content.info(digest).size
        except NotFound:
            return None

    def _may_take(self, connection: sqlite3.Connection, digest: Digest) -> bool:
        """Whether a namespace has the blob and lets others have it."""
        rows = connection.execute(
            "SELECT n.labels FROM blobs b JOIN namespaces n ON n.name = b.namespace "
            "WHERE b.digest = ?",
            (digest,),
        )
        if self._backing.shared:
            return rows.fetchone() is not None
        return any(load(row[0]).get(SHAREABLE) == "true" for row in rows)

    def _record_ingest(self, ref: str, expected: str) -> tuple[str, bool]:
        """The ingest's ref in the backend, and whether it is a new one."""
        backend = self._backing.names.make(self._namespace, ref)
        # one with a lease lives as long as that
        expires = 0 if self._scope.lease else now() + INGEST_SECONDS * 10**9
        # lost in a crash, it is begun again
        with self._database.write(durable=False) as connection:
            ensure_namespace(connection, self._namespace)
            hold(connection, self._scope, Resource(ref, INGESTS))
            made = connection.execute(
                "INSERT OR IGNORE INTO ingests VALUES (?, ?, ?, ?, ?)",
                (self._namespace, ref, backend, expected, expires),
            )
            if made.rowcount:
                return backend, True
            (old,) = connection.execute(
                "UPDATE ingests SET expires_at = MAX(expires_at, ?), expected = ? "
                "WHERE namespace = ? AND ref = ? RETURNING backend",
                (expires, expected, self._namespace, ref),
            ).fetchall()
        return str(old[0]), False

    def record(
        self, inner: Writer, size: int, expected: str, labels: Mapping[str, str], ref: str
    ) -> Digest:
        """Commit ``inner`` and record its blob as one change to everybody else.

        Raises what the backend's commit raises, NotFound for an unknown lease, AlreadyExists.
        """
        check_labels(labels)
        with self._database.read() as connection:
            check_lease(connection, self._scope)
        digest = Digest.parse(expected) if expected else inner.digest()
        offset = inner.status().offset
        with self._backing.digest_lock(digest):
            # from another namespace: whoever wrote all of it may have it
            with contextlib.suppress(AlreadyExists):
                inner.commit(size, digest)
            made = self._record_blob(digest, offset, labels, ref)
        if not made:
            raise AlreadyExists(f"content {digest}")
        self._created(digest, offset)
        return digest

    def _record_blob(self, digest: Digest, size: int, labels: Mapping[str, str], ref: str) -> bool:
        try:
            with self._database.write() as connection:
                self._forget(connection, ref)
                return self._insert(connection, digest, size, labels)
        except BaseException:
            self._backing.leftovers.set()
            raise

    def _created(self, digest: Digest, size: int) -> None:
        event = ContentCreate(digest=digest, size=size)
        self._backing.publisher.publish(self._namespace, "/content/create", event)
        self._backing.mutated(False)

    def _insert(
        self, connection: sqlite3.Connection, digest: Digest, size: int, labels: Mapping[str, str]
    ) -> bool:
        """Add the blob's row; False where it was there."""
        stamp = now()
        ensure_namespace(connection, self._namespace)
        done = connection.execute(
            "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?, ?)",
            (self._namespace, digest, size, dump(labels), stamp, stamp),
        )
        hold(connection, self._scope, Resource(digest, CONTENT))
        return bool(done.rowcount)


class NamespacedWriter:
    """A backend's writer whose commit is recorded."""

    def __init__(self, store: NamespacedContent, inner: Writer, ref: str, expected: str) -> None:
        self._store = store
        self._inner = inner
        self._ref = ref
        self._expected = expected
        self._closed = False

    @property
    def path(self) -> str | None:
        """The backend's file."""
        return self._inner.path

    def status(self) -> Status:
        """Where it stands."""
        return replace(self._inner.status(), ref=self._ref, expected=self._expected)

    def write(self, data: Buffer) -> int:
        """Append."""
        return self._inner.write(data)

    def truncate(self, size: int) -> None:
        """Start over."""
        self._inner.truncate(size)

    def digest(self) -> Digest:
        """Of what was written so far."""
        return self._inner.digest()

    def commit(
        self, size: int = 0, expected: str = "", labels: Mapping[str, str] = EMPTY
    ) -> Digest:
        """content.base.Writer.commit."""
        if self._closed:
            raise FailedPrecondition(f'writer of ref "{self._ref}" is closed')
        wanted = expected or self._expected
        try:
            digest = self._store.record(self._inner, size, wanted, labels, self._ref)
        except AlreadyExists:
            self.close()
            raise
        self.close()
        return digest

    def close(self) -> None:
        """Keep what was written for another writer of the ref."""
        if not self._closed:
            self._closed = True
            self._inner.close()
            self._store.let_go(self._ref)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _from_row(row: tuple[str, int, str, int, int]) -> Info:
    digest, size, labels, created, updated = row
    return Info(Digest(digest), size, created, updated, load(labels))
