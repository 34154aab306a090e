"""containerd.services.leases.v1.Leases."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty

from kontti.api.services.leases.v1 import leases_pb2 as pb
from kontti.metadata.base import Lease, Leases, Metadata
from kontti.services import convert
from kontti.services.rpc import Bridge, Context, scope_of
from kontti.values import Resource


class LeasesService:
    """Adapts the Leases store; ``collect`` runs a garbage collection and returns after it."""

    def __init__(self, metadata: Metadata, bridge: Bridge, collect: Callable[[], object]) -> None:
        self._metadata = metadata
        self._call = bridge.call
        self._collect = collect

    def _store(self, context: Context) -> Leases:
        return self._metadata.leases(scope_of(context))

    async def create(self, request: pb.CreateRequest, context: Context) -> pb.CreateResponse:
        made = await self._call(self._store(context).create, request.id, dict(request.labels))
        return pb.CreateResponse(lease=_to_proto(made))

    async def delete(self, request: pb.DeleteRequest, context: Context) -> Empty:
        await self._call(self._store(context).delete, request.id)
        if request.sync:
            await self._call(self._collect)
        return Empty()

    async def list(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        found = await self._call(self._store(context).list, list(request.filters))
        return pb.ListResponse(leases=[_to_proto(lease) for lease in found])

    async def add_resource(self, request: pb.AddResourceRequest, context: Context) -> Empty:
        resource = Resource(request.resource.id, request.resource.type)
        await self._call(self._store(context).add_resource, request.id, resource)
        return Empty()

    async def delete_resource(self, request: pb.DeleteResourceRequest, context: Context) -> Empty:
        resource = Resource(request.resource.id, request.resource.type)
        await self._call(self._store(context).delete_resource, request.id, resource)
        return Empty()

    async def list_resources(
        self, request: pb.ListResourcesRequest, context: Context
    ) -> pb.ListResourcesResponse:
        found = await self._call(self._store(context).list_resources, request.id)
        return pb.ListResourcesResponse(
            resources=[pb.Resource(id=r.id, type=r.type) for r in found]
        )


def _to_proto(lease: Lease) -> pb.Lease:
    return pb.Lease(
        id=lease.id, created_at=convert.timestamp(lease.created_at), labels=dict(lease.labels)
    )
