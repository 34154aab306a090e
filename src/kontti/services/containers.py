"""containerd.services.containers.v1.Containers."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from kontti.api.services.containers.v1 import containers_pb2 as pb
from kontti.metadata.base import Container, Containers, Metadata
from kontti.services import convert
from kontti.services.rpc import Bridge, Context, scope_of


class ContainersService:
    """Adapts the Containers store of the caller's namespace."""

    def __init__(self, metadata: Metadata, bridge: Bridge) -> None:
        self._metadata = metadata
        self._call = bridge.call
        self._quick = bridge.quick

    def _store(self, context: Context) -> Containers:
        return self._metadata.containers(scope_of(context))

    def get(self, request: pb.GetContainerRequest, context: Context) -> pb.GetContainerResponse:
        found = self._quick(self._store(context).get, request.id)
        return pb.GetContainerResponse(container=to_proto(found))

    async def list(
        self, request: pb.ListContainersRequest, context: Context
    ) -> pb.ListContainersResponse:
        found = await self._call(self._store(context).list, list(request.filters))
        return pb.ListContainersResponse(containers=[to_proto(c) for c in found])

    async def list_stream(
        self, request: pb.ListContainersRequest, context: Context
    ) -> AsyncIterator[pb.ListContainerMessage]:
        for found in await self._call(self._store(context).list, list(request.filters)):
            yield pb.ListContainerMessage(container=to_proto(found))

    async def create(
        self, request: pb.CreateContainerRequest, context: Context
    ) -> pb.CreateContainerResponse:
        made = await self._call(self._store(context).create, from_proto(request.container))
        return pb.CreateContainerResponse(container=to_proto(made))

    async def update(
        self, request: pb.UpdateContainerRequest, context: Context
    ) -> pb.UpdateContainerResponse:
        updated = await self._call(
            self._store(context).update,
            from_proto(request.container),
            list(request.update_mask.paths),
        )
        return pb.UpdateContainerResponse(container=to_proto(updated))

    async def delete(self, request: pb.DeleteContainerRequest, context: Context) -> Empty:
        await self._call(self._store(context).delete, request.id)
        return Empty()


def to_proto(container: Container) -> pb.Container:
    """A container record as a message."""
    return pb.Container(
        id=container.id,
        labels=dict(container.labels),
        image=container.image,
        runtime=pb.Container.Runtime(
            name=container.runtime, options=convert.any_to_proto(container.runtime_options)
        ),
        spec=convert.any_to_proto(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=convert.timestamp(container.created_at),
        updated_at=convert.timestamp(container.updated_at),
        extensions=convert.anys_to_proto(container.extensions),
        sandbox=container.sandbox,
    )


def from_proto(message: pb.Container) -> Container:
    """A message as a container record."""
    return Container(
        id=message.id,
        labels=dict(message.labels),
        image=message.image,
        runtime=message.runtime.name,
        runtime_options=convert.any_from_proto(message.runtime.options),
        spec=convert.any_from_proto(message.spec),
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        extensions=convert.anys_from_proto(message.extensions),
        sandbox=message.sandbox,
    )
