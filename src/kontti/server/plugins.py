"""The plugins this daemon is made of, as ``ctr plugins ls`` tells of them; and their order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from kontti.errors import FailedPrecondition, InvalidArgument
from kontti.images.platforms import default
from kontti.values import Platform

CONTENT = "io.containerd.content.v1"
SNAPSHOTTER = "io.containerd.snapshotter.v1"
METADATA = "io.containerd.metadata.v1"
IMAGE_VERIFIER = "io.containerd.image-verifier.v1"
DIFFER = "io.containerd.differ.v1"
EVENT = "io.containerd.event.v1"
GC = "io.containerd.gc.v1"
LEASE = "io.containerd.lease.v1"
RUNTIME = "io.containerd.runtime.v2"
SHIM = "io.containerd.shim.v1"
SERVICE = "io.containerd.service.v1"
RESTART = "io.containerd.monitor.container.v1"
SANDBOX_STORE = "io.containerd.sandbox.store.v1"
SANDBOX_CONTROLLER = "io.containerd.sandbox.controller.v1"
MOUNT_MANAGER = "io.containerd.mount-manager.v1"
MOUNT_HANDLER = "io.containerd.mount-handler.v1"
STREAMING = "io.containerd.streaming.v1"
TRANSFER = "io.containerd.transfer.v1"
GRPC = "io.containerd.grpc.v1"
INTERNAL = "io.containerd.internal.v1"
NO_CAPABILITIES: Mapping[str, tuple[str, ...]] = MappingProxyType({})
OPT = f"{INTERNAL}.opt"
NO_EXPORTS: Mapping[str, Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Plugin:
    """A part of the daemon; ``host`` where it is for a platform, ``init_error`` "" if it works."""

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


_OVER_A_SERVICE = (
    "containers", "content", "diff", "images", "introspection", "namespaces", "snapshots", "tasks",
)  # fmt: skip
BUILTINS: tuple[Plugin, ...] = (
    Plugin(CONTENT, "content"),
    Plugin(EVENT, "exchange"),
    Plugin(INTERNAL, "opt"),
    Plugin(SNAPSHOTTER, "blockfile", host=True),
    Plugin(SNAPSHOTTER, "btrfs", host=True),
    Plugin(SNAPSHOTTER, "erofs", host=True, capabilities=("rebase",)),
    Plugin(SNAPSHOTTER, "native", host=True),
    Plugin(SNAPSHOTTER, "overlayfs", host=True, capabilities=("rebase",)),
    Plugin(METADATA, "bolt", (CONTENT, EVENT, SNAPSHOTTER)),
    Plugin(GC, "scheduler", (METADATA,)),
    Plugin(LEASE, "manager", (METADATA, GC)),
    Plugin(DIFFER, "walking", (METADATA,), host=True),
    Plugin(SHIM, "manager", (EVENT, METADATA)),
    Plugin(RUNTIME, "task", (SHIM, MOUNT_MANAGER), host=True),
    Plugin(SANDBOX_STORE, "local", (METADATA,)),
    Plugin(SANDBOX_CONTROLLER, "shim", (SHIM, EVENT)),
    Plugin(MOUNT_HANDLER, "erofs", host=True),
    Plugin(MOUNT_HANDLER, "loop", host=True),
    Plugin(MOUNT_MANAGER, "bolt", (METADATA, MOUNT_HANDLER)),
    Plugin(STREAMING, "manager", (METADATA,)),
    Plugin(INTERNAL, "kontti-log", (RUNTIME,)),
    Plugin(IMAGE_VERIFIER, "bindir"),
    Plugin(TRANSFER, "local", (LEASE, METADATA, DIFFER, IMAGE_VERIFIER, SNAPSHOTTER)),
    Plugin(RESTART, "restart", (EVENT, SERVICE)),
    Plugin(SERVICE, "containers-service", (EVENT, METADATA)),
    Plugin(SERVICE, "content-service", (METADATA,)),
    Plugin(SERVICE, "diff-service", (DIFFER,)),
    Plugin(SERVICE, "images-service", (METADATA, GC)),
    Plugin(SERVICE, "introspection-service"),
    Plugin(SERVICE, "namespaces-service", (EVENT, METADATA)),
    Plugin(SERVICE, "snapshots-service", (METADATA,)),
    Plugin(SERVICE, "tasks-service", (RUNTIME, METADATA)),
    *(Plugin(GRPC, name, (SERVICE,)) for name in _OVER_A_SERVICE),
    Plugin(GRPC, "events", (EVENT,)),
    Plugin(GRPC, "leases", (LEASE,)),
    Plugin(GRPC, "mounts", (MOUNT_MANAGER,)),
    Plugin(GRPC, "sandbox-controllers", (SANDBOX_CONTROLLER, EVENT)),
    Plugin(GRPC, "sandboxes", (SANDBOX_STORE,)),
    Plugin(GRPC, "streaming", (STREAMING,)),
    Plugin(GRPC, "transfer", (TRANSFER, STREAMING)),
    Plugin(GRPC, "healthcheck"),
    Plugin(GRPC, "version"),
)


def order(plugins: Iterable[Plugin]) -> list[Plugin]:
    """Each plugin after all others of the types it requires, otherwise as they come.

    Raises InvalidArgument, naming the plugins, where they require one another in a circle.
    """
    every = tuple(plugins)
    by_type: dict[str, list[Plugin]] = {}
    for plugin in every:
        by_type.setdefault(plugin.type, []).append(plugin)
    ordered: dict[str, Plugin] = {}

    def place(plugin: Plugin, path: tuple[str, ...]) -> None:
        if plugin.uri in ordered:
            return
        if plugin.uri in path:
            circle = " -> ".join((*path[path.index(plugin.uri) :], plugin.uri))
            raise InvalidArgument(f"plugins require one another: {circle}")
        for required in plugin.requires:
            for other in by_type.get(required, ()):
                if other.uri != plugin.uri:
                    place(other, (*path, plugin.uri))
        ordered[plugin.uri] = plugin

    for plugin in every:
        place(plugin, ())
    return list(ordered.values())


def plugin_rows(
    failures: Mapping[str, str],
    disabled: Collection[str],
    exports: Mapping[str, Mapping[str, str]] = NO_EXPORTS,
    capabilities: Mapping[str, tuple[str, ...]] = NO_CAPABILITIES,
) -> list[Plugin]:
    """The builtins that are not disabled, as this host has them.

    ``failures`` says, by snapshotter or by URI, why one does not work; ``exports``, by URI, what
    one tells of itself; ``capabilities``, by snapshotter, what it can do on this host.
    """
    host = default()
    return [
        replace(
            plugin,
            platforms=(host,) if plugin.host else (),
            exports=tuple(exports.get(plugin.uri, {}).items()),
            capabilities=_capabilities(plugin, capabilities),
            init_error=_failure(plugin, failures),
        )
        for plugin in order(BUILTINS)
        if plugin.uri not in disabled
    ]


def _capabilities(plugin: Plugin, found: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    by_name = found if plugin.type == SNAPSHOTTER else {}
    return by_name.get(plugin.id, plugin.capabilities)


def _failure(plugin: Plugin, failures: Mapping[str, str]) -> str:
    by_name = failures.get(plugin.id, "") if plugin.type == SNAPSHOTTER else ""
    return failures.get(plugin.uri, by_name)


def check_required(rows: Iterable[Plugin], required: Iterable[str]) -> None:
    """Raises FailedPrecondition where a plugin of ``required`` (URIs) is not there or failed."""
    by_uri = {row.uri: row for row in rows}
    for uri in required:
        if uri not in by_uri:
            raise FailedPrecondition(f"required plugin {uri} not included")
        if by_uri[uri].init_error:
            raise FailedPrecondition(f"load required plugin {uri}: {by_uri[uri].init_error}")
