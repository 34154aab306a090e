"""A daemon's stores over the wire, so that what works on an engine works on any containerd."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence

from kontti.client.base import Caller
from kontti.client.client import Client
from kontti.client.containers import RemoteContainers
from kontti.client.content import RemoteContent
from kontti.client.convert import (
    descriptor_from_wire,
    descriptor_to_wire,
    mounts_from_wire,
    mounts_to_wire,
    nanoseconds,
)
from kontti.content.base import Store
from kontti.diff.base import DiffOptions
from kontti.metadata.base import Image, Lease
from kontti.namespaces import Scope
from kontti.snapshots.base import Info, Kind, Usage
from kontti.values import EMPTY, Descriptor, Mount, Resource
from kontti.wire.messages.google import Empty, FieldMask
from kontti.wire.messages.services.diff.v1 import diff
from kontti.wire.messages.services.images.v1 import images
from kontti.wire.messages.services.leases.v1 import leases
from kontti.wire.messages.services.snapshots.v1 import snapshots

__all__ = ["RemoteApplier", "RemoteContent", "RemoteImages", "RemoteLeases", "RemoteStores"]

IMAGES = "containerd.services.images.v1.Images/"
LEASES = "containerd.services.leases.v1.Leases/"
SNAPSHOTS = "containerd.services.snapshots.v1.Snapshots/"
DIFF = "containerd.services.diff.v1.Diff/"
APPLY_SECONDS = 3600.0


class RemoteImages:
    """metadata.base.Images."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, name: str) -> Image:
        """Raises NotFound."""
        request = images.GetImageRequest(name=name)
        return _image(self._client.unary(IMAGES + "Get", request, images.GetImageResponse).image)

    def list(self, filters: Sequence[str] = ()) -> Sequence[Image]:
        """Those that match."""
        request = images.ListImagesRequest(filters=filters)
        answer = self._client.unary(IMAGES + "List", request, images.ListImagesResponse)
        return [_image(image) for image in answer.images]

    def create(self, image: Image) -> Image:
        """Raises AlreadyExists."""
        request = images.CreateImageRequest(image=_wire_image(image))
        answer = self._client.unary(IMAGES + "Create", request, images.CreateImageResponse)
        return _image(answer.image)

    def update(self, image: Image, paths: Sequence[str] = ()) -> Image:
        """Raises NotFound."""
        request = images.UpdateImageRequest(
            image=_wire_image(image), update_mask=FieldMask(paths=paths)
        )
        answer = self._client.unary(IMAGES + "Update", request, images.UpdateImageResponse)
        return _image(answer.image)

    def delete(self, name: str, target: Descriptor | None = None, *, sync: bool = False) -> None:
        """Raises NotFound; with ``sync`` returns after what it kept is collected."""
        wanted = descriptor_to_wire(target) if target is not None else None
        request = images.DeleteImageRequest(name=name, sync=sync, target=wanted)
        self._client.unary(IMAGES + "Delete", request, Empty)


class RemoteLeases:
    """metadata.base.Leases."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, id: str, labels: Mapping[str, str] = EMPTY) -> Lease:
        """Raises AlreadyExists."""
        name = id or secrets.token_hex(16)
        request = leases.CreateRequest(id=name, labels=labels)
        return _lease(self._client.unary(LEASES + "Create", request, leases.CreateResponse).lease)

    def delete(self, id: str, *, sync: bool = False) -> None:
        """Raises NotFound; with ``sync`` returns after what it kept is collected."""
        self._client.unary(LEASES + "Delete", leases.DeleteRequest(id=id, sync=sync), Empty)

    def list(self, filters: Sequence[str] = ()) -> Sequence[Lease]:
        """Those that match."""
        request = leases.ListRequest(filters=filters)
        answer = self._client.unary(LEASES + "List", request, leases.ListResponse)
        return [_lease(lease) for lease in answer.leases]

    def add_resource(self, id: str, resource: Resource) -> None:
        """Keep a resource."""
        held = leases.Resource(id=resource.id, type=resource.type)
        request = leases.AddResourceRequest(id=id, resource=held)
        self._client.unary(LEASES + "AddResource", request, Empty)

    def delete_resource(self, id: str, resource: Resource) -> None:
        """Let a resource go."""
        held = leases.Resource(id=resource.id, type=resource.type)
        request = leases.DeleteResourceRequest(id=id, resource=held)
        self._client.unary(LEASES + "DeleteResource", request, Empty)

    def list_resources(self, id: str) -> Sequence[Resource]:
        """What it keeps."""
        request = leases.ListResourcesRequest(id=id)
        answer = self._client.unary(LEASES + "ListResources", request, leases.ListResourcesResponse)
        return [Resource(r.id, r.type) for r in answer.resources]


class RemoteSnapshotter:
    """snapshots.base.Snapshotter."""

    # what the daemon's can do would take a call to find out, and is of no use from here
    capabilities: tuple[str, ...] = ()

    def __init__(self, client: Caller, name: str) -> None:
        self._client = client
        self._name = name

    def stat(self, key: str) -> Info:
        """Raises NotFound."""
        request = snapshots.StatSnapshotRequest(snapshotter=self._name, key=key)
        answer = self._client.unary(SNAPSHOTS + "Stat", request, snapshots.StatSnapshotResponse)
        return _snapshot(answer.info)

    def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels."""
        request = snapshots.UpdateSnapshotRequest(
            snapshotter=self._name,
            info=snapshots.Info(name=info.name, labels=info.labels),
            update_mask=FieldMask(paths=paths),
        )
        answer = self._client.unary(SNAPSHOTS + "Update", request, snapshots.UpdateSnapshotResponse)
        return _snapshot(answer.info)

    def usage(self, key: str) -> Usage:
        """Raises NotFound."""
        request = snapshots.UsageRequest(snapshotter=self._name, key=key)
        answer = self._client.unary(SNAPSHOTS + "Usage", request, snapshots.UsageResponse)
        return Usage(answer.size, answer.inodes)

    def mounts(self, key: str) -> list[Mount]:
        """How to mount it."""
        request = snapshots.MountsRequest(snapshotter=self._name, key=key)
        answer = self._client.unary(SNAPSHOTS + "Mounts", request, snapshots.MountsResponse)
        return mounts_from_wire(answer.mounts)

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """An active snapshot."""
        request = snapshots.PrepareSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        method, response = SNAPSHOTS + "Prepare", snapshots.PrepareSnapshotResponse
        return mounts_from_wire(self._client.unary(method, request, response).mounts)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        """A read-only snapshot."""
        request = snapshots.ViewSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        method, response = SNAPSHOTS + "View", snapshots.ViewSnapshotResponse
        return mounts_from_wire(self._client.unary(method, request, response).mounts)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        """Make it a committed one."""
        request = snapshots.CommitSnapshotRequest(
            snapshotter=self._name, name=name, key=key, labels=labels, parent=parent or ""
        )
        self._client.unary(SNAPSHOTS + "Commit", request, Empty)

    def remove(self, key: str) -> None:
        """Raises NotFound."""
        request = snapshots.RemoveSnapshotRequest(snapshotter=self._name, key=key)
        self._client.unary(SNAPSHOTS + "Remove", request, Empty)

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Those that match."""
        request = snapshots.ListSnapshotsRequest(snapshotter=self._name, filters=filters)
        pages = self._client.stream(SNAPSHOTS + "List", request, snapshots.ListSnapshotsResponse)
        for page in pages:
            yield from (_snapshot(info) for info in page.info)

    def cleanup(self) -> None:
        """Free what is removed."""
        request = snapshots.CleanupRequest(snapshotter=self._name)
        self._client.unary(SNAPSHOTS + "Cleanup", request, Empty)

    def close(self) -> None:
        """The daemon's to close."""


class RemoteApplier:
    """diff.base.Applier and Comparer."""

    def __init__(self, client: Caller) -> None:
        self._client = client

    def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], sync_fs: bool = False
    ) -> Descriptor:
        """Have the daemon put a layer on a tree."""
        request = diff.ApplyRequest(
            diff=descriptor_to_wire(layer), mounts=mounts_to_wire(mounts), sync_fs=sync_fs
        )
        answer = self._client.unary(
            DIFF + "Apply", request, diff.ApplyResponse, timeout=APPLY_SECONDS
        )
        return descriptor_from_wire(answer.applied)

    def compare(
        self, lower: Sequence[Mount], upper: Sequence[Mount], options: DiffOptions
    ) -> Descriptor:
        """Have the daemon make a layer of a difference."""
        request = diff.DiffRequest(
            left=mounts_to_wire(lower),
            right=mounts_to_wire(upper),
            media_type=options.media_type,
            ref=options.reference,
            labels=options.labels,
        )
        answer = self._client.unary(
            DIFF + "Diff", request, diff.DiffResponse, timeout=APPLY_SECONDS
        )
        return descriptor_from_wire(answer.diff)


class RemoteStores:
    """transfer.base.Stores: each scope has a connection of its own, closed with this."""

    def __init__(self, address: str, connect_timeout: float = 10.0) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._clients: dict[Scope, Client] = {}

    def client(self, scope: Scope) -> Client:
        """The scope's connection."""
        if scope not in self._clients:
            self._clients[scope] = Client(
                self._address,
                namespace=scope.namespace,
                lease=scope.lease,
                connect_timeout=self._connect_timeout,
            )
        return self._clients[scope]

    def images(self, scope: Scope) -> RemoteImages:
        """Images of the scope."""
        return RemoteImages(self.client(scope))

    def containers(self, scope: Scope) -> RemoteContainers:
        """Containers of the scope."""
        return RemoteContainers(self.client(scope))

    def content(self, scope: Scope) -> Store:
        """Content of the scope."""
        return RemoteContent(self.client(scope))

    def snapshots(self, scope: Scope, snapshotter: str) -> RemoteSnapshotter:
        """Snapshots of the scope."""
        return RemoteSnapshotter(self.client(scope), snapshotter)

    def leases(self, scope: Scope) -> RemoteLeases:
        """Leases of the scope."""
        return RemoteLeases(self.client(scope))

    def applier(self, scope: Scope) -> RemoteApplier:
        """Applies layers of the scope's content."""
        return RemoteApplier(self.client(scope))

    def close(self) -> None:
        """Hang up."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def _wire_image(image: Image) -> images.Image:
    return images.Image(
        name=image.name, labels=image.labels, target=descriptor_to_wire(image.target)
    )


def _image(message: images.Image | None) -> Image:
    found = message or images.Image()
    return Image(
        found.name,
        descriptor_from_wire(found.target),
        dict(found.labels),
        nanoseconds(found.created_at),
        nanoseconds(found.updated_at),
    )


def _lease(message: leases.Lease | None) -> Lease:
    found = message or leases.Lease()
    return Lease(found.id, nanoseconds(found.created_at), dict(found.labels))


def _snapshot(message: snapshots.Info | None) -> Info:
    found = message or snapshots.Info()
    return Info(
        Kind(found.kind),
        found.name,
        found.parent,
        dict(found.labels),
        nanoseconds(found.created_at),
        nanoseconds(found.updated_at),
    )
