"""A daemon's content store over the wire: content.base.Store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from kontti.client.base import Caller
from kontti.client.client import Duplex
from kontti.client.convert import nanoseconds
from kontti.content.base import Buffer, Info, Status
from kontti.errors import FailedPrecondition, OutOfRange, Unavailable, Unimplemented
from kontti.values import EMPTY, Digest
from kontti.wire.messages.google import Empty, FieldMask
from kontti.wire.messages.services.content.v1 import content as api

SERVICE = "containerd.services.content.v1.Content/"
CHUNK = 1 << 20
STAT, WRITE, COMMIT = 0, 1, 2


class RemoteContent:
    """The content that the client's namespace sees."""

    def __init__(self, client: Caller) -> None:
        self._client = client

    def info(self, digest: Digest) -> Info:
        """Raises NotFound."""
        request = api.InfoRequest(digest=digest)
        return _info(self._client.unary(SERVICE + "Info", request, api.InfoResponse).info)

    def reader(self, digest: Digest) -> RemoteReader:
        """Raises NotFound."""
        return RemoteReader(self._client, digest, self.info(digest).size)

    def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels."""
        request = api.UpdateRequest(
            info=api.Info(digest=info.digest, labels=info.labels),
            update_mask=FieldMask(paths=paths),
        )
        return _info(self._client.unary(SERVICE + "Update", request, api.UpdateResponse).info)

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Blobs that match."""
        request = api.ListContentRequest(filters=filters)
        for page in self._client.stream(SERVICE + "List", request, api.ListContentResponse):
            yield from (_info(info) for info in page.info)

    def delete(self, digest: Digest) -> None:
        """Raises NotFound."""
        request = api.DeleteContentRequest(digest=digest)
        self._client.unary(SERVICE + "Delete", request, Empty)

    def status(self, ref: str) -> Status:
        """Raises NotFound."""
        request = api.StatusRequest(ref=ref)
        return _status(self._client.unary(SERVICE + "Status", request, api.StatusResponse).status)

    def list_statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        """Ingests that match."""
        request = api.ListStatusesRequest(filters=filters)
        answer = self._client.unary(SERVICE + "ListStatuses", request, api.ListStatusesResponse)
        return [_status(status) for status in answer.statuses]

    def abort(self, ref: str) -> None:
        """Throw an ingest away; raises NotFound."""
        self._client.unary(SERVICE + "Abort", api.AbortRequest(ref=ref), Empty)

    def writer(self, ref: str, total: int = 0, expected: str = "") -> RemoteWriter:
        """Open or resume an ingest (content.base.Ingester.writer)."""
        call = self._client.duplex(SERVICE + "Write")
        try:
            return RemoteWriter(call, ref, total, expected)
        except BaseException:
            call.close()
            raise


class RemoteReader:
    """One blob; each read is a call."""

    def __init__(self, client: Caller, digest: Digest, size: int) -> None:
        self._client = client
        self._digest = digest
        self._size = size

    @property
    def size(self) -> int:
        """In bytes."""
        return self._size

    @property
    def path(self) -> str | None:
        """There is no file here."""
        return None

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``."""
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        request = api.ReadContentRequest(digest=self._digest, offset=offset, size=length)
        pages = self._client.stream(SERVICE + "Read", request, api.ReadContentResponse)
        return b"".join(page.data for page in pages)

    def read_now(self, _offset: int, _length: int) -> bytes:
        """Nothing is here."""
        return b""

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class RemoteWriter:
    """An open ingest; a Write stream."""

    def __init__(self, call: Duplex, ref: str, total: int, expected: str) -> None:
        self._call = call
        self._ref = ref
        self._total = total
        self._expected = expected
        self._closed = False
        request = api.WriteContentRequest(action=STAT, ref=ref, total=total, expected=expected)
        answer = self._exchange(request)
        self._offset = answer.offset
        self._digest = answer.digest
        self._started = nanoseconds(answer.started_at)
        self._updated = nanoseconds(answer.updated_at)

    def _exchange(self, request: api.WriteContentRequest) -> api.WriteContentResponse:
        self._call.send(request)
        answer = self._call.receive(api.WriteContentResponse)
        if answer is None:
            raise Unavailable("the daemon ended the write")
        return answer

    @property
    def path(self) -> None:
        """The daemon's file is not for others to read."""

    def status(self) -> Status:
        """Where it stands, as far as this side knows."""
        return Status(
            self._ref, self._offset, self._total, self._expected, self._started, self._updated
        )

    def write(self, data: Buffer) -> int:
        """Append; raises FailedPrecondition after close."""
        self._check_open()
        view = memoryview(data)
        while view:
            piece = bytes(view[:CHUNK])
            request = api.WriteContentRequest(action=WRITE, offset=self._offset, data=piece)
            answer = self._exchange(request)
            self._offset = answer.offset
            view = view[len(piece) :]
        return len(data)

    def truncate(self, size: int) -> None:
        """Start over: the next write is at 0, which the daemon takes for that.

        Raises OutOfRange past the end, Unimplemented for a part, which the API cannot say.
        """
        self._check_open()
        if size > self._offset:
            raise OutOfRange(f"truncate to {size}, past the offset {self._offset}")
        if size not in (0, self._offset):
            raise Unimplemented(f"truncate to {size} over the wire")
        self._offset = size

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition(f'writer of ref "{self._ref}" is closed')

    def digest(self) -> Digest:
        """Of what was written so far, as the daemon last said."""
        answer = self._exchange(api.WriteContentRequest(action=STAT))
        return Digest.parse(answer.digest)

    def commit(
        self, size: int = 0, expected: str = "", labels: Mapping[str, str] = EMPTY
    ) -> Digest:
        """content.base.Writer.commit."""
        self._check_open()
        request = api.WriteContentRequest(
            action=COMMIT,
            total=size,
            offset=self._offset,
            expected=expected or self._expected,
            labels=labels,
        )
        return Digest.parse(self._exchange(request).digest)

    def close(self) -> None:
        """End the stream; what was written stays for another writer of the ref."""
        self._closed = True
        self._call.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _info(message: api.Info | None) -> Info:
    found = message or api.Info()
    return Info(
        Digest.parse(found.digest),
        found.size,
        nanoseconds(found.created_at),
        nanoseconds(found.updated_at),
        dict(found.labels),
    )


def _status(message: api.Status | None) -> Status:
    found = message or api.Status()
    return Status(
        found.ref,
        found.offset,
        found.total,
        found.expected,
        nanoseconds(found.started_at),
        nanoseconds(found.updated_at),
    )
