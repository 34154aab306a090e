"""containerd.services.snapshots.v1.Snapshots."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty

from kontti.api.services.snapshots.v1 import snapshots_pb2 as pb
from kontti.metadata.base import Metadata
from kontti.metadata.leases import SNAPSHOTS
from kontti.services import convert
from kontti.services.rpc import Bridge, Context, batches, scope_of
from kontti.snapshots.base import Info, Kind, Snapshotter
from kontti.values import Mount

PAGE = 100
T = TypeVar("T")


class SnapshotsService:
    """Adapts the snapshotter that a request names."""

    def __init__(self, metadata: Metadata, bridge: Bridge) -> None:
        self._metadata = metadata
        self._call = bridge.call
        self._quick = bridge.quick

    def _store(self, name: str, context: Context) -> Snapshotter:
        return self._metadata.snapshots(scope_of(context), name)

    async def prepare(
        self, request: pb.PrepareSnapshotRequest, context: Context
    ) -> pb.PrepareSnapshotResponse:
        store = self._store(request.snapshotter, context)
        mounts = await self._call(store.prepare, request.key, request.parent, dict(request.labels))
        return pb.PrepareSnapshotResponse(mounts=convert.mounts_to_proto(mounts))

    async def view(
        self, request: pb.ViewSnapshotRequest, context: Context
    ) -> pb.ViewSnapshotResponse:
        store = self._store(request.snapshotter, context)
        mounts = await self._call(store.view, request.key, request.parent, dict(request.labels))
        return pb.ViewSnapshotResponse(mounts=convert.mounts_to_proto(mounts))

    def mounts(
        self, request: pb.MountsRequest, context: Context
    ) -> pb.MountsResponse | Coroutine[None, None, pb.MountsResponse]:
        mounts = self._store(request.snapshotter, context).mounts
        return self._soon(request.snapshotter, lambda: _mounts_to_proto(mounts(request.key)))

    def _soon(self, name: str, function: Callable[[], T]) -> T | Coroutine[None, None, T]:
        """``function()`` now, or in a thread where it asks another process."""
        if self._metadata.is_here(f"{SNAPSHOTS}{name}"):
            return self._quick(function)
        return self._call(function)

    async def commit(self, request: pb.CommitSnapshotRequest, context: Context) -> Empty:
        store = self._store(request.snapshotter, context)
        await self._call(
            store.commit, request.name, request.key, dict(request.labels), request.parent or None
        )
        return Empty()

    async def remove(self, request: pb.RemoveSnapshotRequest, context: Context) -> Empty:
        await self._call(self._store(request.snapshotter, context).remove, request.key)
        return Empty()

    def stat(
        self, request: pb.StatSnapshotRequest, context: Context
    ) -> pb.StatSnapshotResponse | Coroutine[None, None, pb.StatSnapshotResponse]:
        stat = self._store(request.snapshotter, context).stat
        return self._soon(
            request.snapshotter,
            lambda: pb.StatSnapshotResponse(info=_to_proto(stat(request.key))),
        )

    async def update(
        self, request: pb.UpdateSnapshotRequest, context: Context
    ) -> pb.UpdateSnapshotResponse:
        store = self._store(request.snapshotter, context)
        info = await self._call(
            store.update, _from_proto(request.info), list(request.update_mask.paths)
        )
        return pb.UpdateSnapshotResponse(info=_to_proto(info))

    async def list(
        self, request: pb.ListSnapshotsRequest, context: Context
    ) -> AsyncIterator[pb.ListSnapshotsResponse]:
        store = self._store(request.snapshotter, context)
        filters = list(request.filters)
        for page in batches(await self._call(lambda: list(store.walk(filters))), PAGE):
            yield pb.ListSnapshotsResponse(info=[_to_proto(i) for i in page])

    async def usage(self, request: pb.UsageRequest, context: Context) -> pb.UsageResponse:
        usage = await self._call(self._store(request.snapshotter, context).usage, request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def cleanup(self, request: pb.CleanupRequest, context: Context) -> Empty:
        await self._call(self._store(request.snapshotter, context).cleanup)
        return Empty()


def _mounts_to_proto(mounts: Sequence[Mount]) -> pb.MountsResponse:
    return pb.MountsResponse(mounts=convert.mounts_to_proto(mounts))


def _to_proto(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=int(info.kind),  # type: ignore[arg-type]
        created_at=convert.timestamp(info.created_at),
        updated_at=convert.timestamp(info.updated_at),
        labels=dict(info.labels),
    )


def _from_proto(message: pb.Info) -> Info:
    return Info(
        kind=Kind(message.kind),
        name=message.name,
        parent=message.parent,
        labels=dict(message.labels),
    )
