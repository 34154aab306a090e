"""containerd.services.content.v1.Content."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty

from kontti.api.services.content.v1 import content_pb2 as pb
from kontti.content.base import Info, Reader, Status, Store, Writer
from kontti.errors import Canceled, InvalidArgument, OutOfRange
from kontti.metadata.base import Metadata
from kontti.metadata.leases import CONTENT
from kontti.services import convert
from kontti.services.rpc import Bridge, Context, batches, scope_of
from kontti.values import Digest

PAGE = 100
CHUNK = 1 << 20
FIRST = 64 << 10
"""What is sent before the client has shown that it reads."""


class ContentService:
    """Adapts the content store of the caller's namespace."""

    def __init__(self, metadata: Metadata, bridge: Bridge) -> None:
        self._metadata = metadata
        self._call = bridge.call
        self._finish = bridge.finish
        self._quick = bridge.quick

    def _store(self, context: Context) -> Store:
        return self._metadata.content(scope_of(context))

    def info(self, request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        info = self._quick(self._store(context).info, Digest.parse(request.digest))
        return pb.InfoResponse(info=_info_to_proto(info))

    async def update(self, request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        store = self._store(context)
        wanted = Info(Digest.parse(request.info.digest), 0, labels=dict(request.info.labels))
        info = await self._call(store.update, wanted, list(request.update_mask.paths))
        return pb.UpdateResponse(info=_info_to_proto(info))

    async def list(
        self, request: pb.ListContentRequest, context: Context
    ) -> AsyncIterator[pb.ListContentResponse]:
        store, filters = self._store(context), list(request.filters)
        for page in batches(await self._call(lambda: list(store.walk(filters))), PAGE):
            yield pb.ListContentResponse(info=[_info_to_proto(i) for i in page])

    async def delete(self, request: pb.DeleteContentRequest, context: Context) -> Empty:
        await self._call(self._store(context).delete, Digest.parse(request.digest))
        return Empty()

    def read(
        self, request: pb.ReadContentRequest, context: Context
    ) -> pb.ReadContentResponse | AsyncIterator[pb.ReadContentResponse]:
        store = self._store(context)
        data = self._quick(self._whole, store, request) if self._metadata.is_here(CONTENT) else b""
        if data:
            return pb.ReadContentResponse(offset=request.offset, data=data)
        return self._pieces(store, request)

    @staticmethod
    def _whole(store: Store, request: pb.ReadContentRequest) -> bytes:
        """All that is asked for, where that is little and in memory: clients copy a blob by asking
        for a few kilobytes of it at a time."""
        with store.reader(Digest.parse(request.digest)) as reader:
            offset, end = _range(request.offset, request.size, reader.size)
            if end - offset > FIRST:
                return b""
            data = reader.read_now(offset, end - offset)
            return data if len(data) == end - offset else b""

    async def _pieces(
        self, store: Store, request: pb.ReadContentRequest
    ) -> AsyncIterator[pb.ReadContentResponse]:
        with await self._open(store, Digest.parse(request.digest)) as reader:
            offset, end = _range(request.offset, request.size, reader.size)
            most = FIRST
            while offset < end:
                size, most = min(most, end - offset), CHUNK
                data = reader.read_now(offset, size)
                data = data or await self._call(reader.read_at, offset, size)
                if not data:
                    return
                yield pb.ReadContentResponse(offset=offset, data=data)
                offset += len(data)

    async def _open(self, store: Store, digest: Digest) -> Reader:
        if self._metadata.is_here(CONTENT):
            return self._quick(store.reader, digest)
        return await self._call(store.reader, digest)

    async def status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        status = await self._call(self._store(context).status, request.ref)
        return pb.StatusResponse(status=_status_to_proto(status))

    async def list_statuses(
        self, request: pb.ListStatusesRequest, context: Context
    ) -> pb.ListStatusesResponse:
        found = await self._call(self._store(context).list_statuses, list(request.filters))
        return pb.ListStatusesResponse(statuses=[_status_to_proto(s) for s in found])

    async def abort(self, request: pb.AbortRequest, context: Context) -> Empty:
        await self._call(self._store(context).abort, request.ref)
        return Empty()

    async def write(
        self, requests: AsyncIterator[pb.WriteContentRequest], context: Context
    ) -> AsyncIterator[pb.WriteContentResponse]:
        store = self._store(context)
        first = await anext(aiter(requests), None)
        if first is None:
            return
        if not first.ref:
            raise InvalidArgument("first message must have a reference")
        session = _Session(store, first.ref, first.total, first.expected)
        try:
            yield await self._call(session.answer, first)
            if first.action == pb.COMMIT:
                return
            async for request in requests:
                yield await self._call(session.answer, request)
                if request.action == pb.COMMIT:
                    return
        finally:
            await self._finish(session.close)


@dataclass(slots=True)
class _Session:
    """One Write stream: what was said so far of the ingest's ref, size and digest.

    A stream that its client cancels is closed while a thread may still open or write the ingest:
    the lock has the closing wait for that, and nothing is opened after it.
    """

    store: Store
    ref: str
    total: int
    expected: str
    writer: Writer | None = None
    closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        with self.lock:
            if self.closed:
                raise Canceled("write")
            if self.writer is None:
                self.writer = self.store.writer(self.ref, self.total, self.expected)
            return self._answer(self.writer, request)

    def close(self) -> None:
        with self.lock:
            self.closed = True
            if self.writer is not None:
                self.writer.close()

    def _answer(self, writer: Writer, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        self._note(request)
        status = writer.status()
        offset = status.offset
        digest = ""
        if request.action != pb.STAT:
            offset = self._append(writer, request, offset)
        if request.action == pb.COMMIT:
            digest = writer.commit(self.total, self.expected, dict(request.labels))
        elif request.action == pb.STAT:
            digest = writer.digest()
        return pb.WriteContentResponse(
            action=request.action,
            started_at=convert.timestamp(status.started_at),
            updated_at=convert.timestamp(status.updated_at),
            offset=offset,
            total=self.total,
            digest=digest,
        )

    def _note(self, request: pb.WriteContentRequest) -> None:
        if request.ref and request.ref != self.ref:
            raise InvalidArgument(f"ref cannot change during a write: {request.ref!r}")
        if request.total > 0:
            if self.total > 0 and request.total != self.total:
                raise InvalidArgument(f"commit size: {request.total} doesn't match {self.total}")
            self.total = request.total
        if request.expected:
            if self.expected and request.expected != self.expected:
                raise InvalidArgument(
                    f"commit digest {request.expected} doesn't match {self.expected}"
                )
            self.expected = Digest.parse(request.expected)

    def _append(self, writer: Writer, request: pb.WriteContentRequest, offset: int) -> int:
        if request.offset > 0 and request.offset != offset:
            raise OutOfRange(f"write @{request.offset} must occur at current offset {offset}")
        if request.offset == 0 and offset > 0:
            writer.truncate(0)
            offset = 0
        if request.data:
            offset += writer.write(request.data)
        return offset


def _range(offset: int, size: int, total: int) -> tuple[int, int]:
    """The half-open range that a read asks for; raises OutOfRange."""
    if offset < 0 or offset > total:
        raise OutOfRange(f"read past object length {total} bytes")
    if size <= 0:
        return offset, total
    if offset + size > total:
        raise OutOfRange(f"read past object length {total} bytes")
    return offset, offset + size


def _info_to_proto(info: Info) -> pb.Info:
    return pb.Info(
        digest=info.digest,
        size=info.size,
        created_at=convert.timestamp(info.created_at),
        updated_at=convert.timestamp(info.updated_at),
        labels=dict(info.labels),
    )


def _status_to_proto(status: Status) -> pb.Status:
    return pb.Status(
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
        started_at=convert.timestamp(status.started_at),
        updated_at=convert.timestamp(status.updated_at),
    )
