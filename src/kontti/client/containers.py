"""A daemon's containers over the wire: metadata.base.Containers."""

from __future__ import annotations

from collections.abc import Sequence

from kontti.client.client import Client
from kontti.client.convert import (
    any_from_wire,
    any_to_wire,
    anys_from_wire,
    anys_to_wire,
    nanoseconds,
)
from kontti.metadata.base import Container
from kontti.wire.messages.google import Empty, FieldMask
from kontti.wire.messages.services.containers.v1 import containers as api

SERVICE = "containerd.services.containers.v1.Containers/"


class RemoteContainers:
    """The containers of the client's namespace."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, id: str) -> Container:
        """Raises NotFound."""
        request = api.GetContainerRequest(id=id)
        answer = self._client.unary(SERVICE + "Get", request, api.GetContainerResponse)
        return _container(answer.container)

    def list(self, filters: Sequence[str] = ()) -> Sequence[Container]:
        """Those that match."""
        request = api.ListContainersRequest(filters=filters)
        answer = self._client.unary(SERVICE + "List", request, api.ListContainersResponse)
        return [_container(found) for found in answer.containers]

    def create(self, container: Container) -> Container:
        """Raises AlreadyExists."""
        request = api.CreateContainerRequest(container=_wire(container))
        answer = self._client.unary(SERVICE + "Create", request, api.CreateContainerResponse)
        return _container(answer.container)

    def update(self, container: Container, paths: Sequence[str] = ()) -> Container:
        """Raises NotFound."""
        request = api.UpdateContainerRequest(
            container=_wire(container), update_mask=FieldMask(paths=paths)
        )
        answer = self._client.unary(SERVICE + "Update", request, api.UpdateContainerResponse)
        return _container(answer.container)

    def delete(self, id: str) -> None:
        """Raises NotFound."""
        self._client.unary(SERVICE + "Delete", api.DeleteContainerRequest(id=id), Empty)


def _wire(container: Container) -> api.Container:
    runtime = api.ContainerRuntime(
        name=container.runtime, options=any_to_wire(container.runtime_options)
    )
    return api.Container(
        id=container.id,
        labels=container.labels,
        image=container.image,
        runtime=runtime if container.runtime else None,
        spec=any_to_wire(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        extensions=anys_to_wire(container.extensions),
        sandbox=container.sandbox,
    )


def _container(message: api.Container | None) -> Container:
    found = message or api.Container()
    runtime = found.runtime or api.ContainerRuntime()
    return Container(
        id=found.id,
        labels=dict(found.labels),
        image=found.image,
        runtime=runtime.name,
        runtime_options=any_from_wire(runtime.options),
        spec=any_from_wire(found.spec),
        snapshotter=found.snapshotter,
        snapshot_key=found.snapshot_key,
        created_at=nanoseconds(found.created_at),
        updated_at=nanoseconds(found.updated_at),
        extensions=anys_from_wire(found.extensions),
        sandbox=found.sandbox,
    )
