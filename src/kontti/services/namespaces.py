"""containerd.services.namespaces.v1.Namespaces."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from kontti.api.services.namespaces.v1 import namespace_pb2 as pb
from kontti.metadata.base import Namespace, Namespaces
from kontti.services.rpc import Bridge, Context


class NamespacesService:
    """Adapts a Namespaces store."""

    def __init__(self, store: Namespaces, bridge: Bridge) -> None:
        self._store = store
        self._call = bridge.call
        self._quick = bridge.quick

    def get(self, request: pb.GetNamespaceRequest, _context: Context) -> pb.GetNamespaceResponse:
        return pb.GetNamespaceResponse(
            namespace=_to_proto(self._quick(self._store.get, request.name))
        )

    async def list(
        self, _request: pb.ListNamespacesRequest, _context: Context
    ) -> pb.ListNamespacesResponse:
        found = await self._call(self._store.list)
        return pb.ListNamespacesResponse(namespaces=[_to_proto(n) for n in found])

    async def create(
        self, request: pb.CreateNamespaceRequest, _context: Context
    ) -> pb.CreateNamespaceResponse:
        made = await self._call(self._store.create, _from_proto(request.namespace))
        return pb.CreateNamespaceResponse(namespace=_to_proto(made))

    async def update(
        self, request: pb.UpdateNamespaceRequest, _context: Context
    ) -> pb.UpdateNamespaceResponse:
        updated = await self._call(
            self._store.update, _from_proto(request.namespace), list(request.update_mask.paths)
        )
        return pb.UpdateNamespaceResponse(namespace=_to_proto(updated))

    async def delete(self, request: pb.DeleteNamespaceRequest, _context: Context) -> Empty:
        await self._call(self._store.delete, request.name)
        return Empty()


def _to_proto(namespace: Namespace) -> pb.Namespace:
    return pb.Namespace(name=namespace.name, labels=dict(namespace.labels))


def _from_proto(message: pb.Namespace) -> Namespace:
    return Namespace(message.name, dict(message.labels))
