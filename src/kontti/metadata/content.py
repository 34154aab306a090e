"""The content store as one namespace sees it: blobs it has, with labels and leases."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from kontti.content.base import Buffer, Info, Reader, Status, Writer
from kontti.content.local import info_adaptor
from kontti.errors import AlreadyExists, InvalidArgument, NotFound
from kontti.filters import parse_all
from kontti.metadata.backing import (
    Backing,
    check_lease,
    drop,
    ensure_namespace,
    hold,
    next_number,
    now,
)
from kontti.metadata.database import dump, load
from kontti.metadata.leases import CONTENT, INGESTS
from kontti.namespaces import Scope
from kontti.values import EMPTY, Digest, Resource, check_labels, merge_labels
from kontti.wire.messages.events.content import ContentCreate, ContentDelete

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
        self.info(digest)
        return self._backing.content.reader(digest)

    def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels; raises NotFound, InvalidArgument for other fields."""
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgument(
                    f"cannot update {path!r} field on content info {info.digest!r}"
                )
        check_labels(info.labels)
        with self._database.write() as connection:
            old = self._info(connection, info.digest)
            merged = merge_labels(old.labels, info.labels, paths)
            stamp = now()
            connection.execute(
                "UPDATE blobs SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
                (dump(merged), stamp, self._namespace, info.digest),
            )
        self._backing.mutated(True)
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

    def delete(self, digest: Digest) -> None:
        """Take the blob from this namespace; its file goes when no namespace has it."""
        with self._database.write() as connection:
            done = connection.execute(
                "DELETE FROM blobs WHERE namespace = ? AND digest = ?", (self._namespace, digest)
            )
            if not done.rowcount:
                raise NotFound(f"content {digest}")
            drop(connection, self._scope, Resource(digest, CONTENT))
        remove_unowned(self._backing, digest)
        event = ContentDelete(digest=digest)
        self._backing.publisher.publish(self._namespace, "/content/delete", event)

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
        """Throw the ingest away; raises NotFound."""
        backend, _ = self._ingest(ref)
        self.forget(ref)
        with contextlib.suppress(NotFound):
            self._backing.content.abort(backend)

    def forget(self, ref: str) -> None:
        """Drop the ingest's record."""
        with self._database.write() as connection:
            connection.execute(
                "DELETE FROM ingests WHERE namespace = ? AND ref = ?", (self._namespace, ref)
            )
            drop(connection, self._scope, Resource(ref, INGESTS))

    def writer(self, ref: str, total: int = 0, expected: str = "") -> Writer:
        """content.base.Ingester.writer; a blob another namespace has is taken over by digest."""
        if not ref:
            raise InvalidArgument("ref must not be empty")
        if expected:
            self._adopt(Digest.parse(expected))
        backend = self._record_ingest(ref, expected)
        inner = self._backing.content.writer(backend, total, "")
        return NamespacedWriter(self, inner, ref, expected)

    def _adopt(self, digest: Digest) -> None:
        """Raises AlreadyExists where the blob is here, or could be taken from another namespace."""
        with self._backing.digest_lock(digest), self._database.write() as connection:
            check_lease(connection, self._scope)
            try:
                self._info(connection, digest)
            except NotFound:
                if not self._backing.shared or not self._elsewhere(connection, digest):
                    return
                with contextlib.suppress(NotFound):
                    size = self._backing.content.info(digest).size
                    self._insert(connection, digest, size, EMPTY)
            else:
                hold(connection, self._scope, Resource(digest, CONTENT))
        raise AlreadyExists(f"content {digest}")

    @staticmethod
    def _elsewhere(connection: sqlite3.Connection, digest: Digest) -> bool:
        query = "SELECT 1 FROM blobs WHERE digest = ? LIMIT 1"
        return connection.execute(query, (digest,)).fetchone() is not None

    def _record_ingest(self, ref: str, expected: str) -> str:
        expires = now() + INGEST_SECONDS * 10**9
        with self._database.write() as connection:
            ensure_namespace(connection, self._namespace)
            hold(connection, self._scope, Resource(ref, INGESTS))
            row = connection.execute(
                "SELECT backend FROM ingests WHERE namespace = ? AND ref = ?",
                (self._namespace, ref),
            ).fetchone()
            if row is not None:
                connection.execute(
                    "UPDATE ingests SET expires_at = ? WHERE namespace = ? AND ref = ?",
                    (expires, self._namespace, ref),
                )
                return str(row[0])
            backend = f"{self._namespace}/{next_number(connection, 'ingest')}/{ref}"
            connection.execute(
                "INSERT INTO ingests VALUES (?, ?, ?, ?, ?)",
                (self._namespace, ref, backend, expected, expires),
            )
        return backend

    def record(
        self, inner: Writer, size: int, expected: str, labels: Mapping[str, str], ref: str
    ) -> Digest:
        """Commit ``inner`` and record its blob as one change to everybody else."""
        check_labels(labels)
        digest = inner.digest()
        with self._backing.digest_lock(digest):
            offset = inner.status().offset
            with contextlib.suppress(AlreadyExists):
                inner.commit(size, expected)
            with self._database.write() as connection:
                existed = not self._insert(connection, digest, offset, labels)
                key = (self._namespace, ref)
                connection.execute("DELETE FROM ingests WHERE namespace = ? AND ref = ?", key)
                drop(connection, self._scope, Resource(ref, INGESTS))
        if existed:
            raise AlreadyExists(f"content {digest}")
        event = ContentCreate(digest=digest, size=offset)
        self._backing.publisher.publish(self._namespace, "/content/create", event)
        self._backing.mutated(False)
        return digest

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
        wanted = expected or self._expected
        return self._store.record(self._inner, size, wanted, labels, self._ref)

    def close(self) -> None:
        """Keep what was written for another writer of the ref."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def remove_unowned(backing: Backing, digest: Digest) -> bool:
    """Delete the blob's file unless a namespace has it; says whether it did."""
    with backing.digest_lock(digest):
        with backing.database.read() as connection:
            query = "SELECT 1 FROM blobs WHERE digest = ? LIMIT 1"
            if connection.execute(query, (digest,)).fetchone() is not None:
                return False
        with contextlib.suppress(NotFound):
            backing.content.delete(digest)
            return True
    return False


def _from_row(row: tuple[str, int, str, int, int]) -> Info:
    digest, size, labels, created, updated = row
    return Info(Digest(digest), size, created, updated, load(labels))
