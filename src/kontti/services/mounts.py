"""containerd.services.mounts.v1.Mounts."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from kontti.api.services.mounts.v1 import mounts_pb2 as pb
from kontti.api.types.mount_pb2 import ActivationInfo
from kontti.api.types.mount_pb2 import ActiveMount as ProtoActiveMount
from kontti.mounts.base import ActivateOptions, Activation, Mounts
from kontti.services import convert
from kontti.services.rpc import Bridge, Context, scope_of


class MountsService:
    """Adapts a mount manager."""

    def __init__(self, mounts: Mounts, bridge: Bridge) -> None:
        self._mounts = mounts
        self._call = bridge.call

    async def activate(self, request: pb.ActivateRequest, context: Context) -> pb.ActivateResponse:
        options = ActivateOptions(dict(request.labels), request.temporary)
        mounts = convert.mounts_from_proto(request.mounts)
        made = await self._call(
            self._mounts.activate, scope_of(context), request.name, mounts, options
        )
        return pb.ActivateResponse(info=to_proto(made))

    async def deactivate(self, request: pb.DeactivateRequest, context: Context) -> Empty:
        await self._call(self._mounts.deactivate, scope_of(context), request.name)
        return Empty()

    async def info(self, request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        found = self._mounts.info(scope_of(context), request.name)
        return pb.InfoResponse(info=to_proto(found))

    async def update(self, request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        wanted = Activation(request.info.name, labels=dict(request.info.labels))
        paths = list(request.update_mask.paths)
        updated = await self._call(self._mounts.update, scope_of(context), wanted, paths)
        return pb.UpdateResponse(info=to_proto(updated))

    async def list(
        self, request: pb.ListRequest, context: Context
    ) -> AsyncIterator[pb.ListMessage]:
        for found in self._mounts.list(scope_of(context), list(request.filters)):
            yield pb.ListMessage(info=to_proto(found))


def to_proto(activation: Activation) -> ActivationInfo:
    """An activation as a message."""
    return ActivationInfo(
        name=activation.name,
        active=[
            ProtoActiveMount(
                mount=convert.mounts_to_proto([active.mount])[0],
                mounted_at=convert.timestamp(active.mounted_at),
                mount_point=active.mount_point,
                data=dict(active.data),
            )
            for active in activation.active
        ],
        system=convert.mounts_to_proto(activation.system),
        labels=dict(activation.labels),
    )
