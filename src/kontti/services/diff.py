"""containerd.services.diff.v1.Diff."""

from __future__ import annotations

from collections.abc import Callable

from kontti.api.services.diff.v1 import diff_pb2 as pb
from kontti.diff.base import Applier, Comparer, DiffOptions
from kontti.namespaces import Scope
from kontti.services import convert
from kontti.services.rpc import Bridge, Context, scope_of


class DiffService:
    """Adapts an applier and a comparer, each made for the caller's scope."""

    def __init__(
        self,
        applier: Callable[[Scope], Applier],
        comparer: Callable[[Scope], Comparer],
        bridge: Bridge,
    ) -> None:
        self._applier = applier
        self._comparer = comparer
        self._call = bridge.call

    async def apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        applied = await self._call(
            self._applier(scope_of(context)).apply,
            convert.descriptor_from_proto(request.diff),
            convert.mounts_from_proto(request.mounts),
            request.sync_fs,
        )
        return pb.ApplyResponse(applied=convert.descriptor_to_proto(applied))

    async def diff(self, request: pb.DiffRequest, context: Context) -> pb.DiffResponse:
        made = await self._call(
            self._comparer(scope_of(context)).compare,
            convert.mounts_from_proto(request.left),
            convert.mounts_from_proto(request.right),
            _options(request),
        )
        return pb.DiffResponse(diff=convert.descriptor_to_proto(made))


def _options(request: pb.DiffRequest) -> DiffOptions:
    epoch = request.source_date_epoch.seconds if request.HasField("source_date_epoch") else None
    default = DiffOptions()
    return DiffOptions(
        media_type=request.media_type or default.media_type,
        reference=request.ref,
        labels=dict(request.labels),
        source_date_epoch=epoch,
    )
