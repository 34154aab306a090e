"""containerd.services.sandbox.v1: Store, and Controller over the controllers by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kontti.api.services.sandbox.v1 import sandbox_pb2 as pb
from kontti.api.types.metrics_pb2 import Metric as ProtoMetric
from kontti.api.types.sandbox_pb2 import Sandbox as ProtoSandbox
from kontti.errors import InvalidArgument, NotFound
from kontti.metadata.base import Metadata, Sandbox, Sandboxes
from kontti.sandboxes.base import Controller, CreateOptions, Started, Status
from kontti.services import convert
from kontti.services.rpc import Bridge, Context, scope_of


class SandboxStoreService:
    """Adapts the Sandboxes store of the caller's namespace."""

    def __init__(self, metadata: Metadata, bridge: Bridge) -> None:
        self._metadata = metadata
        self._call = bridge.call
        self._quick = bridge.quick

    def _store(self, context: Context) -> Sandboxes:
        return self._metadata.sandboxes(scope_of(context))

    async def create(
        self, request: pb.StoreCreateRequest, context: Context
    ) -> pb.StoreCreateResponse:
        made = await self._call(self._store(context).create, from_proto(request.sandbox))
        return pb.StoreCreateResponse(sandbox=to_proto(made))

    async def update(
        self, request: pb.StoreUpdateRequest, context: Context
    ) -> pb.StoreUpdateResponse:
        wanted, fields = from_proto(request.sandbox), list(request.fields)
        updated = await self._call(self._store(context).update, wanted, fields)
        return pb.StoreUpdateResponse(sandbox=to_proto(updated))

    async def delete(
        self, request: pb.StoreDeleteRequest, context: Context
    ) -> pb.StoreDeleteResponse:
        await self._call(self._store(context).delete, request.sandbox_id)
        return pb.StoreDeleteResponse()

    async def list(self, request: pb.StoreListRequest, context: Context) -> pb.StoreListResponse:
        found = await self._call(self._store(context).list, list(request.filters))
        return pb.StoreListResponse(list=[to_proto(s) for s in found])

    async def get(self, request: pb.StoreGetRequest, context: Context) -> pb.StoreGetResponse:
        found = self._quick(self._store(context).get, request.sandbox_id)
        return pb.StoreGetResponse(sandbox=to_proto(found))


class SandboxControllerService:
    """Adapts ``controllers``, by the name that a request calls its sandboxer."""

    def __init__(
        self, controllers: Mapping[str, Controller], metadata: Metadata, bridge: Bridge
    ) -> None:
        self._controllers = controllers
        self._metadata = metadata
        self._call = bridge.call

    def _of(self, name: str) -> Controller:
        if not name:
            raise InvalidArgument("sandbox controller name can not be empty")
        if name not in self._controllers:
            raise NotFound(f"failed to get sandbox controller by {name}")
        return self._controllers[name]

    async def create(
        self, request: pb.ControllerCreateRequest, context: Context
    ) -> pb.ControllerCreateResponse:
        controller, scope = self._of(request.sandboxer), scope_of(context)
        if request.HasField("sandbox"):
            sandbox = from_proto(request.sandbox)
        else:
            # clients of 1.7 name it alone
            store = self._metadata.sandboxes(scope)
            sandbox = await self._call(store.get, request.sandbox_id)
        options = CreateOptions(
            rootfs=convert.mounts_from_proto(request.rootfs),
            options=convert.any_from_proto(request.options),
            netns_path=request.netns_path,
            annotations=dict(request.annotations),
        )
        id = request.sandbox_id or sandbox.id
        await controller.create(scope, replace(sandbox, id=id), options)
        return pb.ControllerCreateResponse(sandbox_id=id)

    async def start(
        self, request: pb.ControllerStartRequest, context: Context
    ) -> pb.ControllerStartResponse:
        started = await self._of(request.sandboxer).start(scope_of(context), request.sandbox_id)
        return _started_to_proto(started)

    async def platform(
        self, request: pb.ControllerPlatformRequest, context: Context
    ) -> pb.ControllerPlatformResponse:
        found = await self._of(request.sandboxer).platform(scope_of(context), request.sandbox_id)
        return pb.ControllerPlatformResponse(platform=convert.platform_to_proto(found))

    async def stop(
        self, request: pb.ControllerStopRequest, context: Context
    ) -> pb.ControllerStopResponse:
        controller = self._of(request.sandboxer)
        await controller.stop(scope_of(context), request.sandbox_id, request.timeout_secs)
        return pb.ControllerStopResponse()

    async def wait(
        self, request: pb.ControllerWaitRequest, context: Context
    ) -> pb.ControllerWaitResponse:
        ended = await self._of(request.sandboxer).wait(scope_of(context), request.sandbox_id)
        return pb.ControllerWaitResponse(
            exit_status=ended.status, exited_at=convert.timestamp(ended.exited_at)
        )

    async def status(
        self, request: pb.ControllerStatusRequest, context: Context
    ) -> pb.ControllerStatusResponse:
        found = await self._of(request.sandboxer).status(
            scope_of(context), request.sandbox_id, verbose=request.verbose
        )
        return _status_to_proto(found)

    async def shutdown(
        self, request: pb.ControllerShutdownRequest, context: Context
    ) -> pb.ControllerShutdownResponse:
        await self._of(request.sandboxer).shutdown(scope_of(context), request.sandbox_id)
        return pb.ControllerShutdownResponse()

    async def metrics(
        self, request: pb.ControllerMetricsRequest, context: Context
    ) -> pb.ControllerMetricsResponse:
        found = await self._of(request.sandboxer).metrics(scope_of(context), request.sandbox_id)
        if found is None:
            return pb.ControllerMetricsResponse()
        metric = ProtoMetric(
            timestamp=convert.timestamp(found.timestamp),
            id=found.id,
            data=convert.any_to_proto(found.data),
        )
        return pb.ControllerMetricsResponse(metrics=metric)

    async def update(
        self, request: pb.ControllerUpdateRequest, context: Context
    ) -> pb.ControllerUpdateResponse:
        controller = self._of(request.sandboxer)
        if not request.HasField("sandbox"):
            raise InvalidArgument("sandbox can not be nil")
        await controller.update(
            scope_of(context),
            request.sandbox_id,
            from_proto(request.sandbox),
            list(request.fields),
        )
        return pb.ControllerUpdateResponse()


def to_proto(sandbox: Sandbox) -> ProtoSandbox:
    """A sandbox record as a message."""
    return ProtoSandbox(
        sandbox_id=sandbox.id,
        runtime=ProtoSandbox.Runtime(
            name=sandbox.runtime, options=convert.any_to_proto(sandbox.runtime_options)
        ),
        spec=convert.any_to_proto(sandbox.spec),
        labels=dict(sandbox.labels),
        created_at=convert.timestamp(sandbox.created_at),
        updated_at=convert.timestamp(sandbox.updated_at),
        extensions=convert.anys_to_proto(sandbox.extensions),
        sandboxer=sandbox.sandboxer,
    )


def from_proto(message: ProtoSandbox) -> Sandbox:
    """A message as a sandbox record."""
    return Sandbox(
        id=message.sandbox_id,
        labels=dict(message.labels),
        runtime=message.runtime.name,
        runtime_options=convert.any_from_proto(message.runtime.options),
        spec=convert.any_from_proto(message.spec),
        sandboxer=message.sandboxer,
        extensions=convert.anys_from_proto(message.extensions),
    )


def _started_to_proto(started: Started) -> pb.ControllerStartResponse:
    return pb.ControllerStartResponse(
        sandbox_id=started.id,
        pid=started.pid,
        created_at=convert.timestamp(started.created_at),
        labels=dict(started.labels),
        address=started.address,
        version=started.version,
        spec=convert.any_to_proto(started.spec),
    )


def _status_to_proto(status: Status) -> pb.ControllerStatusResponse:
    return pb.ControllerStatusResponse(
        sandbox_id=status.id,
        pid=status.pid,
        state=status.state,
        info=dict(status.info),
        created_at=convert.timestamp(status.created_at),
        exited_at=convert.timestamp(status.exited_at),
        extra=convert.any_to_proto(status.extra),
        address=status.address,
        version=status.version,
    )
