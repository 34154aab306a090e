"""The plugins this daemon is made of, as ``ctr plugins ls`` tells of them; and their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kontti.errors import InvalidArgument
from kontti.images.platforms import default
from kontti.values import Platform

CONTENT = "io.containerd.content.v1"
SNAPSHOTTER = "io.containerd.snapshotter.v1"
METADATA = "io.containerd.metadata.v1"
DIFFER = "io.containerd.differ.v1"
EVENT = "io.containerd.event.v1"
GC = "io.containerd.gc.v1"
LEASE = "io.containerd.lease.v1"
RUNTIME = "io.containerd.runtime.v2"
SHIM = "io.containerd.shim.v1"
SERVICE = "io.containerd.service.v1"
GRPC = "io.containerd.grpc.v1"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A part of the daemon. ``host`` where it depends on the platform; ``init_error`` "" if it works."""

    type: str
    id: str
    requires: tuple[str, ...] = ()
    host: bool = False
    capabilities: tuple[str, ...] = ()
    platforms: tuple[Platform, ...] = ()
    exports: tuple[tuple[str, str], ...] = ()
    init_error: str = ""

    @property
    def uri(self) -> str:
        """``type.id``, as in config.toml."""
        return f"{self.type}.{self.id}"


_SERVICES = ("containers", "content", "diff", "images", "introspection", "namespaces", "snapshots")
_GRPC_OVER_SERVICE = (*_SERVICES, "tasks")
BUILTINS: tuple[Plugin, ...] = (
    Plugin(CONTENT, "content"),
    Plugin(EVENT, "exchange"),
    Plugin(SNAPSHOTTER, "native", host=True),
    Plugin(SNAPSHOTTER, "overlayfs", host=True, capabilities=("rebase",)),
    Plugin(METADATA, "bolt", (CONTENT, EVENT, SNAPSHOTTER)),
    Plugin(GC, "scheduler", (METADATA,)),
    Plugin(LEASE, "manager", (METADATA, GC)),
    Plugin(DIFFER, "walking", (METADATA,), host=True),
    Plugin(SHIM, "manager", (EVENT, METADATA)),
    Plugin(RUNTIME, "task", (SHIM,), host=True),
    *(Plugin(SERVICE, f"{name}-service", (METADATA,)) for name in _SERVICES),
    Plugin(SERVICE, "tasks-service", (RUNTIME, METADATA)),
    *(Plugin(GRPC, name, (SERVICE,)) for name in _GRPC_OVER_SERVICE),
    Plugin(GRPC, "events", (EVENT,)),
    Plugin(GRPC, "leases", (LEASE,)),
    Plugin(GRPC, "healthcheck"),
    Plugin(GRPC, "version"),
)


def order(plugins: Iterable[Plugin]) -> list[Plugin]:
    """Each plugin after those of the types it requires; raises InvalidArgument for a cycle."""
    waiting = list(plugins)
    ordered: list[Plugin] = []
    while waiting:
        types = {p.type for p in waiting}
        ready = [p for p in waiting if not types & set(p.requires)]
        if not ready:
            raise InvalidArgument(f"plugins require each other: {', '.join(sorted(types))}")
        ordered += ready
        waiting = [p for p in waiting if p not in ready]
    return ordered


def plugin_rows(failures: Mapping[str, str], disabled: Sequence[str]) -> list[Plugin]:
    """The builtins that are not disabled, with this host's platform and why one failed."""
    host = default()
    return [
        replace(
            plugin,
            platforms=(host,) if plugin.host else (),
            init_error=failures.get(plugin.id, "") if plugin.type == SNAPSHOTTER else "",
        )
        for plugin in order(BUILTINS)
        if plugin.uri not in disabled
    ]
