"""The tables of config.toml that mean something here, each a value with containerd's defaults.

Fields are named as the keys are. ``URI`` is the plugin a table is of.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Protocol

from kontti.config.duration import MILLISECOND, SECOND, Duration
from kontti.errors import InvalidArgument
from kontti.wire.log_uri import Limits

MESSAGE_SIZE = 16 << 20
_AT_ONCE, _SOON, _TEN_SECONDS = Duration(0), Duration(100 * MILLISECOND), Duration(10 * SECOND)
_NO_TEXTS: Mapping[str, str] = MappingProxyType({})


class Section(Protocol):
    """The type of a plugin's table."""

    URI: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Grpc:
    """The socket that clients dial."""

    URI: ClassVar[str] = "io.containerd.server.v1.grpc"
    address: str = "/run/containerd/containerd.sock"
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)
    max_recv_message_size: int = MESSAGE_SIZE
    max_send_message_size: int = MESSAGE_SIZE


@dataclass(frozen=True, slots=True)
class GrpcTcp:
    """The same over TCP, where it has an address."""

    URI: ClassVar[str] = "io.containerd.server.v1.grpc-tcp"
    address: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_common_name: str = ""
    max_recv_message_size: int = MESSAGE_SIZE
    max_send_message_size: int = MESSAGE_SIZE


@dataclass(frozen=True, slots=True)
class Ttrpc:
    """The socket that shims dial; "" stands for the gRPC one with ``.ttrpc`` behind it."""

    URI: ClassVar[str] = "io.containerd.server.v1.ttrpc"
    address: str = ""
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)


@dataclass(frozen=True, slots=True)
class DebugServer:
    """The socket of /debug/vars and /debug/pprof, where it has an address."""

    URI: ClassVar[str] = "io.containerd.server.v1.debug"
    address: str = ""
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """The TCP address of /v1/metrics, where it has one."""

    URI: ClassVar[str] = "io.containerd.server.v1.metrics"
    address: str = ""


@dataclass(frozen=True, slots=True)
class GrpcPrometheus:
    """Metrics of gRPC calls."""

    URI: ClassVar[str] = "io.containerd.metrics.v1.grpc-prometheus"
    grpc_histogram: bool = False


@dataclass(frozen=True, slots=True)
class GcScheduler:
    """When garbage is collected."""

    URI: ClassVar[str] = "io.containerd.gc.v1.scheduler"
    pause_threshold: float = 0.02
    deletion_threshold: int = 0
    mutation_threshold: int = 100
    schedule_delay: Duration = _AT_ONCE
    startup_delay: Duration = _SOON

    def __post_init__(self) -> None:
        if not 0 <= self.pause_threshold <= 0.5:
            raise InvalidArgument(f"pause_threshold {self.pause_threshold} is not within 0 and 0.5")


@dataclass(frozen=True, slots=True)
class Bolt:
    """The metadata database, whatever it is made with."""

    URI: ClassVar[str] = "io.containerd.metadata.v1.bolt"
    content_sharing_policy: str = "shared"
    no_sync: bool = False

    def __post_init__(self) -> None:
        if self.content_sharing_policy not in ("shared", "isolated"):
            raise InvalidArgument(f"unknown policy: {self.content_sharing_policy}")


@dataclass(frozen=True, slots=True)
class DiffService:
    """Which differs are asked, in their order."""

    URI: ClassVar[str] = "io.containerd.service.v1.diff-service"
    default: tuple[str, ...] = ("walking",)
    sync_fs: bool = False


@dataclass(frozen=True, slots=True)
class WalkingDiffer:
    """What a layer may become when it is unpacked; 0 is no limit.

    ``max_layer_size``: bytes uncompressed; ``max_layer_ratio``: how many times its compressed size,
    past a gibibyte; ``max_layer_entries``: files and directories.
    """

    URI: ClassVar[str] = "io.containerd.differ.v1.walking"
    max_layer_size: int = 256 << 30
    max_layer_ratio: int = 1500
    max_layer_entries: int = 10_000_000

    def __post_init__(self) -> None:
        if min(self.max_layer_size, self.max_layer_ratio, self.max_layer_entries) < 0:
            raise InvalidArgument("limits of layers must not be negative")


@dataclass(frozen=True, slots=True)
class Opt:
    """Where ``ctr install`` puts things."""

    URI: ClassVar[str] = "io.containerd.internal.v1.opt"
    path: str = "/opt/containerd"


@dataclass(frozen=True, slots=True)
class ImageVerifier:
    """Programs that judge an image before it is pulled."""

    URI: ClassVar[str] = "io.containerd.image-verifier.v1.bindir"
    bin_dir: str = "/opt/containerd/image-verifier/bin"
    max_verifiers: int = 10
    per_verifier_timeout: Duration = _TEN_SECONDS


@dataclass(frozen=True, slots=True)
class LogDriver:
    """How much of a container's output is kept, where its ``kontti-log`` URI does not say."""

    URI: ClassVar[str] = "io.containerd.internal.v1.kontti-log"
    max_size: str = "10m"
    max_file: int = 5
    compress: bool = True

    def options(self) -> tuple[tuple[str, str], ...]:
        """As a URI has them."""
        compress = "true" if self.compress else "false"
        return (
            ("max-size", self.max_size),
            ("max-file", str(self.max_file)),
            ("compress", compress),
        )

    def __post_init__(self) -> None:
        Limits().changed(dict(self.options()))


@dataclass(frozen=True, slots=True)
class Restart:
    """Starts again what ended and has a label that asks for it."""

    URI: ClassVar[str] = "io.containerd.monitor.container.v1.restart"
    interval: Duration = _TEN_SECONDS


@dataclass(frozen=True, slots=True)
class CgroupMonitor:
    """Metrics of containers."""

    URI: ClassVar[str] = "io.containerd.monitor.task.v1.cgroups"
    no_prometheus: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeTask:
    """What tasks run on; no platforms stand for the host's."""

    URI: ClassVar[str] = "io.containerd.runtime.v2.task"
    platforms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ShimManager:
    """What shims are started with; no directory stands for ``<state>/s``."""

    URI: ClassVar[str] = "io.containerd.shim.v1.manager"
    env: tuple[str, ...] = ()
    socket_dir: str = ""


@dataclass(frozen=True, slots=True)
class UnpackConfig:
    """How images of a platform are unpacked."""

    platform: str = ""
    snapshotter: str = ""
    differ: str = ""
    config_type: str = ""
    layer_types: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True)
class TransferLocal:
    """Pull, push and unpack in the daemon.

    No ``max_concurrent_unpacks`` stands for one layer for each processor; 1 for one after another.
    No ``unpack_config`` has everything unpacked that is asked for, one without entries nothing.
    """

    URI: ClassVar[str] = "io.containerd.transfer.v1.local"
    max_concurrent_downloads: int = 3
    concurrent_layer_fetch_buffer: int = 0
    max_concurrent_uploaded_layers: int = 3
    max_concurrent_unpacks: int = 0
    check_platform_supported: bool = False
    config_path: str = ""
    unpack_config: tuple[UnpackConfig, ...] | None = None


@dataclass(frozen=True, slots=True)
class Overlayfs:
    """The overlayfs snapshotter; no path stands for its directory below the root."""

    URI: ClassVar[str] = "io.containerd.snapshotter.v1.overlayfs"
    root_path: str = ""
    upperdir_label: bool = False
    sync_remove: bool = False
    slow_chown: bool = False
    mount_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Erofs:
    """The erofs snapshotter; no path stands for its directory below the root."""

    URI: ClassVar[str] = "io.containerd.snapshotter.v1.erofs"
    root_path: str = ""
    ovl_mount_options: tuple[str, ...] = ()
    enable_fsverity: bool = False
    set_immutable: bool = False
    default_size: str = ""
    dmverity_mode: str = ""
    layer_content_caches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Native:
    """The native snapshotter; no path stands for its directory below the root."""

    URI: ClassVar[str] = "io.containerd.snapshotter.v1.native"
    root_path: str = ""


@dataclass(frozen=True, slots=True)
class Btrfs:
    """The btrfs snapshotter; no path stands for its directory below the root."""

    URI: ClassVar[str] = "io.containerd.snapshotter.v1.btrfs"
    root_path: str = ""


@dataclass(frozen=True, slots=True)
class Blockfile:
    """The blockfile snapshotter, there where it has a scratch file; no path as elsewhere."""

    URI: ClassVar[str] = "io.containerd.snapshotter.v1.blockfile"
    root_path: str = ""
    scratch_file: str = ""
    fs_type: str = ""
    mount_options: tuple[str, ...] = ()
    recreate_scratch: bool = False


@dataclass(frozen=True, slots=True)
class Debug:
    """``[debug]``: what is logged, and how."""

    level: str = ""
    format: str = ""
    log_trace_id: bool = False


@dataclass(frozen=True, slots=True)
class Cgroup:
    """``[cgroup]``: where the daemon puts itself."""

    path: str = ""


@dataclass(frozen=True, slots=True)
class ProxyPlugin:
    """``[proxy_plugins.<id>]``: a plugin that another process is."""

    type: str = ""
    address: str = ""
    platform: str = ""
    exports: Mapping[str, str] = field(default_factory=lambda: _NO_TEXTS)
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamProcessor:
    """``[stream_processors.<id>]``: a program that makes one media type of another."""

    accepts: tuple[str, ...] = ()
    returns: str = ""
    path: str = ""
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


PLUGINS: tuple[type[Section], ...] = (
    Blockfile, Bolt, Btrfs, CgroupMonitor, DebugServer, DiffService, Erofs, GcScheduler, Grpc,
    GrpcPrometheus, GrpcTcp, ImageVerifier, LogDriver, MetricsServer, Native, Opt, Overlayfs,
    Restart, RuntimeTask, ShimManager, TransferLocal, Ttrpc, WalkingDiffer,
)  # fmt: skip
