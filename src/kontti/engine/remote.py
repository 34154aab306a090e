"""An engine's core in a daemon: its stores and tasks over the wire."""

from __future__ import annotations

import json
import secrets
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from kontti.client.client import FOREVER
from kontti.client.stores import RemoteStores
from kontti.client.tasks import Call, RemoteTasks, drive
from kontti.engine.base import CALL_SECONDS
from kontti.namespaces import Scope
from kontti.tasks.base import Stdio
from kontti.tasks.streams import for_task
from kontti.transfer.lease import EXPIRE_LABEL, expiry
from kontti.wire import log_uri
from kontti.wire.messages.services.introspection.v1.introspection import (
    PluginsRequest,
    PluginsResponse,
)
from kontti.wire.protobuf import Message

if TYPE_CHECKING:
    from kontti.transfer.parts import Parts

T = TypeVar("T")
PLUGINS = "containerd.services.introspection.v1.Introspection/Plugins"
LOG_PLUGIN = "type==io.containerd.internal.v1,id==kontti-log"
SNAPSHOTTER = "io.containerd.snapshotter.v1"
COLLECT_SECONDS = 3600


class RemoteCore:
    """The daemon at ``address``; raises Unavailable where nobody listens."""

    # every containerd has it
    runtime = "io.containerd.runc.v2"
    shared = True
    opened = None

    def __init__(self, address: str, scope: Scope) -> None:
        self.stores = RemoteStores(address)
        self.tasks = RemoteTasks()
        self._scope = scope
        self.stores.client(scope)

    def snapshotters(self) -> Sequence[str]:
        """The names of those that the daemon has loaded."""
        request = PluginsRequest(filters=[f"type=={SNAPSHOTTER}"])
        found = self.stores.client(self._scope).unary(PLUGINS, request, PluginsResponse).plugins
        return [plugin.id for plugin in found if plugin.init_err is None]

    def is_lazy(self, snapshotter: str) -> bool:
        """Whether the daemon's configuration says so."""
        from kontti.transfer.settings import is_told

        request = PluginsRequest(filters=[f"type=={SNAPSHOTTER},id=={json.dumps(snapshotter)}"])
        found = self.stores.client(self._scope).unary(PLUGINS, request, PluginsResponse).plugins
        return any(is_told(plugin.exports) for plugin in found)

    def transfer_parts(self) -> Parts:
        """Layers are applied by the daemon."""
        from kontti.transfer.parts import Parts
        from kontti.transfer.verifiers import BinDir

        return Parts(self.stores, self.stores.applier, verifiers=(BinDir(),))

    def wait_for(self, work: Coroutine[Any, Any, T], timeout: float | None = CALL_SECONDS) -> T:
        """Make the calls of ``work``, here and now."""
        return drive(work, partial(self._call, FOREVER if timeout is None else timeout))

    def _call(self, timeout: float, call: Call[Any]) -> Message:
        client = self.stores.client(call.scope)
        answer: Message = client.unary(call.method, call.request, call.response, timeout=timeout)
        return answer

    def streams(self, stdio: Stdio) -> Stdio:
        """For a daemon that is not kontti's, a log is written by our logger."""
        if not log_uri.is_log(stdio.stdout) or self._keeps_logs():
            return stdio
        return for_task(stdio, {}, own=False)

    def _keeps_logs(self) -> bool:
        request = PluginsRequest(filters=[LOG_PLUGIN])
        client = self.stores.client(self._scope)
        return bool(client.unary(PLUGINS, request, PluginsResponse).plugins)

    def collect(self, scope: Scope) -> None:
        """The end of a lease is what a client can have the daemon collect after."""
        leases = self.stores.leases(scope)
        labels = {EXPIRE_LABEL: expiry(COLLECT_SECONDS)}
        leases.delete(leases.create(secrets.token_hex(16), labels).id, sync=True)

    def close(self) -> None:
        """Hang up."""
        self.stores.close()
