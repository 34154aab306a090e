"""What a content store is: blobs by digest, and ingests by reference that become blobs.

Life of a blob: ``writer(ref)`` opens (or resumes) an ingest, ``write`` appends, ``commit`` checks
size and digest, syncs file and directory, and only then is the blob there. Two writers never hold
one ref. The store's blobs are immutable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from kontti.values import EMPTY, Digest

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Info:
    """A committed blob. Sizes in bytes."""

    digest: Digest
    size: int
    created_at: int = 0
    updated_at: int = 0
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Status:
    """An ingest under way: ``offset`` bytes of ``total`` (0 when unknown) are there."""

    ref: str
    offset: int
    total: int
    expected: str
    started_at: int
    updated_at: int


class Reader(Protocol):
    """Random access to one blob. ``path`` is its file, or None where there is no local one."""

    @property
    def size(self) -> int: ...
    @property
    def path(self) -> str | None: ...
    def read_at(self, offset: int, length: int) -> bytes: ...
    def read_now(self, offset: int, length: int) -> bytes:
        """As ``read_at``, but only what no disk has to be waited for: maybe less, maybe nothing."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...


class Writer(Protocol):
    """An open ingest. Closing without commit keeps what was written, to be resumed.

    ``path`` is the file that grows, or None where there is no local one.
    """

    @property
    def path(self) -> str | None: ...
    def status(self) -> Status: ...
    def write(self, data: Buffer) -> int: ...
    def truncate(self, size: int) -> None: ...
    def digest(self) -> Digest:
        """Of what was written so far."""
        ...

    def commit(
        self, size: int = 0, expected: str = "", labels: Mapping[str, str] = EMPTY
    ) -> Digest:
        """Make it a blob, durable when this returns. size 0 and expected "" are not checked.

        Raises FailedPrecondition on a wrong size or digest, AlreadyExists when the blob is there
        (the ingest is gone then too).
        """
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...


class Provider(Protocol):
    """Reads blobs."""

    def reader(self, digest: Digest) -> Reader:
        """Raises NotFound."""
        ...

    def info(self, digest: Digest) -> Info:
        """Raises NotFound."""
        ...


class Ingester(Protocol):
    """Takes blobs in."""

    def writer(self, ref: str, total: int = 0, expected: str = "") -> Writer:
        """Open or resume ingest ``ref``.

        Raises AlreadyExists when ``expected`` is a blob already, Unavailable when another writer
        holds the ref, InvalidArgument for an empty ref.
        """
        ...


class Manager(Protocol):
    """Lists, labels and removes blobs and ingests."""

    def update(self, info: Info, paths: Sequence[str] = ()) -> Info: ...
    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]: ...
    def delete(self, digest: Digest) -> None: ...
    def status(self, ref: str) -> Status: ...
    def list_statuses(self, filters: Sequence[str] = ()) -> list[Status]: ...
    def abort(self, ref: str) -> None: ...


class Store(Provider, Ingester, Manager, Protocol):
    """All of it."""
