"""containerd.services.introspection.v1.Introspection."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from kontti.api.services.introspection.v1 import introspection_pb2 as pb
from kontti.api.types.introspection_pb2 import RuntimeInfo, RuntimeRequest
from kontti.errors import InvalidArgument, NotFound, Unimplemented
from kontti.filters import parse_all
from kontti.services import convert
from kontti.services.rpc import Bridge, Context
from kontti.values import Platform
from kontti.wire.typeurl import name_of

RUNTIME = "io.containerd.runtime.v2"

_UNKNOWN, _UNIMPLEMENTED = 2, 12


class PluginRow(Protocol):
    """What is told of a plugin."""

    @property
    def type(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def requires(self) -> Sequence[str]: ...
    @property
    def capabilities(self) -> Sequence[str]: ...
    @property
    def platforms(self) -> Sequence[Platform]: ...
    @property
    def exports(self) -> Sequence[tuple[str, str]]: ...
    @property
    def init_error(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """This daemon: ``uuid`` is kept in its root."""

    uuid: str


class IntrospectionService:
    """Tells what is loaded. ``plugins`` is asked each time: a failure is known only after start."""

    def __init__(
        self,
        server: ServerInfo,
        plugins: Callable[[], Sequence[PluginRow]],
        runtime_info: Callable[[str, bytes], bytes],
        bridge: Bridge,
    ) -> None:
        self._server = server
        self._plugins = plugins
        self._runtime_info = runtime_info
        self._bridge = bridge

    def plugins(self, request: pb.PluginsRequest, _context: Context) -> pb.PluginsResponse:
        wanted = parse_all(list(request.filters))
        rows = [r for r in self._plugins() if wanted.match(_adaptor(r))]
        return pb.PluginsResponse(plugins=[_to_proto(r) for r in rows])

    def server(self, _request: Empty, _context: Context) -> pb.ServerResponse:
        return pb.ServerResponse(
            uuid=self._server.uuid, pid=os.getpid(), pidns=os.stat("/proc/self/ns/pid").st_ino
        )

    async def plugin_info(
        self, request: pb.PluginInfoRequest, _context: Context
    ) -> pb.PluginInfoResponse:
        for row in self._plugins():
            if (row.type, row.id) == (request.type, request.id):
                extra = await self._extra(request) if row.type == RUNTIME else None
                return pb.PluginInfoResponse(plugin=_to_proto(row), extra=extra)
        raise NotFound(f"plugin {request.type}.{request.id}")

    async def _extra(self, request: pb.PluginInfoRequest) -> Any | None:
        """What the shim of the runtime tells that is asked for, if one is."""
        if not request.HasField("options"):
            return None
        if name_of(request.options.type_url) != RuntimeRequest.DESCRIPTOR.full_name:
            raise InvalidArgument(f"unknown options type {request.options.type_url:.200}")
        try:
            asked = RuntimeRequest.FromString(request.options.value)
        except DecodeError as error:
            raise InvalidArgument(f"options are damaged: {error}") from None
        options = asked.options.SerializeToString()
        found = await self._bridge.call(self._runtime_info, asked.runtime_path, options)
        return Any(type_url=RuntimeInfo.DESCRIPTOR.full_name, value=found)


def _adaptor(row: PluginRow) -> Callable[[Sequence[str]], tuple[str, bool]]:
    def value(path: Sequence[str]) -> tuple[str, bool]:
        fields = {"type": row.type, "id": row.id}
        if len(path) == 1 and path[0] in fields:
            return fields[path[0]], True
        if path[:1] == ["capabilities"] and len(path) == 2:
            return "", path[1] in row.capabilities
        return "", False

    return value


def _to_proto(row: PluginRow) -> pb.Plugin:
    message = pb.Plugin(
        type=row.type,
        id=row.id,
        requires=row.requires,
        capabilities=row.capabilities,
        platforms=[convert.platform_to_proto(p) for p in row.platforms],
        exports=dict(row.exports),
    )
    if row.init_error:
        # what this host has no means for is "skip" in `ctr plugins ls`, no error
        code = _UNIMPLEMENTED if row.init_error.endswith(Unimplemented.wording) else _UNKNOWN
        message.init_err.CopyFrom(Status(code=code, message=row.init_error))
    return message
