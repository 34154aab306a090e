"""containerd.services.introspection.v1.Introspection."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.empty_pb2 import Empty
from google.rpc.status_pb2 import Status

from kontti.api.services.introspection.v1 import introspection_pb2 as pb
from kontti.errors import NotFound, Unimplemented
from kontti.filters import parse_all
from kontti.services import convert
from kontti.services.rpc import Context
from kontti.values import Platform

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

    def __init__(self, server: ServerInfo, plugins: Callable[[], Sequence[PluginRow]]) -> None:
        self._server = server
        self._plugins = plugins

    def plugins(self, request: pb.PluginsRequest, _context: Context) -> pb.PluginsResponse:
        wanted = parse_all(list(request.filters))
        rows = [r for r in self._plugins() if wanted.match(_adaptor(r))]
        return pb.PluginsResponse(plugins=[_to_proto(r) for r in rows])

    def server(self, _request: Empty, _context: Context) -> pb.ServerResponse:
        return pb.ServerResponse(
            uuid=self._server.uuid, pid=os.getpid(), pidns=os.stat("/proc/self/ns/pid").st_ino
        )

    def plugin_info(
        self, request: pb.PluginInfoRequest, _context: Context
    ) -> pb.PluginInfoResponse:
        for row in self._plugins():
            if (row.type, row.id) == (request.type, request.id):
                return pb.PluginInfoResponse(plugin=_to_proto(row))
        raise NotFound(f"plugin {request.type}.{request.id}")


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
