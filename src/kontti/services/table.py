"""Every service of the API with its adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kontti.api.health.v1 import health_pb2
from kontti.api.services.containers.v1 import containers_pb2
from kontti.api.services.content.v1 import content_pb2
from kontti.api.services.diff.v1 import diff_pb2
from kontti.api.services.events.v1 import events_pb2
from kontti.api.services.images.v1 import images_pb2
from kontti.api.services.introspection.v1 import introspection_pb2
from kontti.api.services.leases.v1 import leases_pb2
from kontti.api.services.mounts.v1 import mounts_pb2
from kontti.api.services.namespaces.v1 import namespace_pb2
from kontti.api.services.sandbox.v1 import sandbox_pb2
from kontti.api.services.snapshots.v1 import snapshots_pb2
from kontti.api.services.streaming.v1 import streaming_pb2
from kontti.api.services.tasks.v1 import tasks_pb2
from kontti.api.services.transfer.v1 import transfer_pb2
from kontti.api.services.version.v1 import version_pb2
from kontti.diff.base import Applier, Comparer
from kontti.events.base import Exchange
from kontti.metadata.base import Metadata
from kontti.mounts.base import Mounts
from kontti.namespaces import Scope
from kontti.sandboxes.base import Controller
from kontti.services.containers import ContainersService
from kontti.services.content import ContentService
from kontti.services.diff import DiffService
from kontti.services.events import EventsService
from kontti.services.images import ImagesService
from kontti.services.introspection import IntrospectionService, PluginRow, ServerInfo
from kontti.services.leases import LeasesService
from kontti.services.mounts import MountsService
from kontti.services.namespaces import NamespacesService
from kontti.services.rpc import Bridge, Context, Method, methods
from kontti.services.sandboxes import SandboxControllerService, SandboxStoreService
from kontti.services.snapshots import SnapshotsService
from kontti.services.streaming import StreamingService
from kontti.services.tasks import TasksService
from kontti.services.version import HealthService, VersionService
from kontti.streaming.manager import StreamManager
from kontti.tasks.base import Tasks

if TYPE_CHECKING:
    from google.protobuf.empty_pb2 import Empty

    from kontti.services.transfer import Transfers, TransferService


@dataclass(frozen=True)
class Backends:
    """What the services adapt."""

    metadata: Metadata
    collect: Callable[[], object]
    exchange: Exchange
    applier: Callable[[Scope], Applier]
    comparer: Callable[[Scope], Comparer]
    tasks: Tasks
    sandboxers: Mapping[str, Controller]
    streams: StreamManager
    mounts: Mounts
    transfers: Callable[[], Transfers]
    transfer_bridge: Bridge
    server: ServerInfo
    plugins: Callable[[], Sequence[PluginRow]]
    runtime_info: Callable[[str, bytes], bytes]


class LaterTransferService:
    """The Transfer service, loaded with the first transfer: it needs a third of all there is."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._service: TransferService | None = None

    async def transfer(self, request: transfer_pb2.TransferRequest, context: Context) -> Empty:
        if self._service is None:
            self._service = await self._backends.transfer_bridge.call(self._load)
        return await self._service.transfer(request, context)

    def _load(self) -> TransferService:
        from kontti.services.transfer import TransferService

        backends = self._backends
        return TransferService(backends.transfers(), backends.streams, backends.transfer_bridge)


def all_methods(backends: Backends, bridge: Bridge) -> dict[str, Method]:
    """The methods of every service, by path."""
    metadata = backends.metadata
    adapters: tuple[tuple[Any, str, object], ...] = (
        (containers_pb2, "Containers", ContainersService(metadata, bridge)),
        (content_pb2, "Content", ContentService(metadata, bridge)),
        (diff_pb2, "Diff", DiffService(backends.applier, backends.comparer, bridge)),
        (events_pb2, "Events", EventsService(backends.exchange, bridge)),
        (images_pb2, "Images", ImagesService(metadata, bridge, backends.collect)),
        (
            introspection_pb2,
            "Introspection",
            IntrospectionService(backends.server, backends.plugins, backends.runtime_info, bridge),
        ),
        (leases_pb2, "Leases", LeasesService(metadata, bridge, backends.collect)),
        (mounts_pb2, "Mounts", MountsService(backends.mounts, bridge)),
        (namespace_pb2, "Namespaces", NamespacesService(metadata.namespaces, bridge)),
        (sandbox_pb2, "Store", SandboxStoreService(metadata, bridge)),
        (
            sandbox_pb2,
            "Controller",
            SandboxControllerService(backends.sandboxers, metadata, bridge),
        ),
        (snapshots_pb2, "Snapshots", SnapshotsService(metadata, bridge)),
        (streaming_pb2, "Streaming", StreamingService(backends.streams)),
        (tasks_pb2, "Tasks", TasksService(backends.tasks)),
        (
            transfer_pb2,
            "Transfer",
            LaterTransferService(backends),
        ),
        (version_pb2, "Version", VersionService()),
        (health_pb2, "Health", HealthService()),
    )
    return {
        path: method
        for module, name, adapter in adapters
        for path, method in methods(module.DESCRIPTOR.services_by_name[name], adapter)
    }
