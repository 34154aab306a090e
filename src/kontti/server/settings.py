"""From the configuration file to what the daemon is started with."""

from __future__ import annotations

import dataclasses
from functools import partial

from kontti.config import sections
from kontti.config.load import Config
from kontti.diff.base import Limits
from kontti.engine.stores import StoreSettings
from kontti.errors import InvalidArgument
from kontti.images.platforms import parse
from kontti.metadata.scheduler import Policy
from kontti.runtime.manager import RuntimeSettings
from kontti.server.daemon import DaemonSettings, Listen, TransferSettings
from kontti.server.plugins import BUILTINS, SNAPSHOTTER
from kontti.server.proxies import WALKING, Proxies
from kontti.transfer.settings import Rates, Supported
from kontti.transfer.verifiers import BinDir
from kontti.values import Platform

DEFAULT_SOCKET_DIR = "/run/containerd/s"
DAY = 86400.0
EROFS_REFUSED = (
    "enable_fsverity", "set_immutable", "default_size", "dmverity_mode", "layer_content_caches",
)  # fmt: skip


def settings_of(config: Config) -> DaemonSettings:
    """The daemon's settings in ``config``."""
    grpc, ttrpc = config.plugin(sections.Grpc), config.plugin(sections.Ttrpc)
    ttrpc_address = ttrpc.address or f"{grpc.address}.ttrpc"
    proxies = Proxies(config)
    return DaemonSettings(
        stores=store_settings(config, grpc.address, proxies),
        runtime=runtime_settings(config, grpc.address, ttrpc_address),
        grpc=Listen(grpc.address, grpc.uid, grpc.gid),
        ttrpc=Listen(ttrpc_address, ttrpc.uid, ttrpc.gid),
        max_receive=grpc.max_recv_message_size,
        max_send=grpc.max_send_message_size,
        disabled_plugins=config.disabled_plugins,
        required_plugins=config.required_plugins,
        proxies=proxies.rows,
        opt_path=config.plugin(sections.Opt).path,
        debug=debug_socket(config.plugin(sections.DebugServer)),
        restart_seconds=config.plugin(sections.Restart).interval.seconds,
        transfer=transfer_settings(config.plugin(sections.TransferLocal), proxies),
    )


def debug_socket(section: sections.DebugServer) -> Listen | None:
    """Where the debug socket is, if it is to be."""
    return Listen(section.address, section.uid, section.gid) if section.address else None


def transfer_settings(section: sections.TransferLocal, proxies: Proxies) -> TransferSettings:
    """How transfers are done; raises InvalidArgument."""
    return TransferSettings(
        rates=Rates(
            downloads=max(0, section.max_concurrent_downloads),
            uploads=max(0, section.max_concurrent_uploaded_layers),
            fetch_buffer=max(0, section.concurrent_layer_fetch_buffer),
        ),
        supported=unpack_platforms(section, proxies),
        directories=tuple(path for path in section.config_path.split(":") if path),
        lazy=proxies.lazy,
    )


def unpack_platforms(
    section: sections.TransferLocal, proxies: Proxies
) -> tuple[Supported, ...] | None:
    """What ``unpack_config`` says; None where it says nothing.

    Raises InvalidArgument for a platform, snapshotter or differ that is none, unless it is
    optional.
    """
    if section.unpack_config is None:
        return None
    found = []
    for entry in section.unpack_config:
        try:
            platform = unpack_platform(entry, proxies)
        except InvalidArgument as error:
            if entry.optional:
                continue
            raise InvalidArgument(f"{section.URI}: {error.message}") from error
        strict = section.check_platform_supported
        types = (entry.config_type, entry.layer_types)
        found.append(Supported(platform, entry.snapshotter, strict, entry.differ, *types))
    return tuple(found)


def unpack_platform(entry: sections.UnpackConfig, proxies: Proxies) -> Platform:
    """The platform of an entry in which all that is named is known."""
    try:
        platform = parse(entry.platform)
    except InvalidArgument as error:
        raise InvalidArgument(f"platform configuration {entry.platform} invalid") from error
    snapshotters = {row.id for row in (*BUILTINS, *proxies.rows) if row.type == SNAPSHOTTER}
    if entry.snapshotter not in snapshotters:
        raise InvalidArgument(f"snapshotter {entry.snapshotter!r:.80} not found")
    if entry.differ and entry.differ not in proxies.named():
        raise InvalidArgument(f"differ {entry.differ!r:.80} not found")
    return platform


def runtime_settings(config: Config, grpc_address: str, ttrpc_address: str) -> RuntimeSettings:
    """How shims are started, and how long each is waited for."""
    manager = config.plugin(sections.ShimManager)
    return RuntimeSettings(
        root=config.root,
        state=config.state,
        socket_dir=manager.socket_dir or DEFAULT_SOCKET_DIR,
        ttrpc_address=ttrpc_address,
        grpc_address=grpc_address,
        environment=manager.env,
        log_options=config.plugin(sections.LogDriver).options(),
        load_seconds=patience(config, "shim.load"),
        state_seconds=patience(config, "task.state"),
        stats_seconds=patience(config, "metrics.shimstats"),
        shutdown_seconds=patience(config, "shim.shutdown"),
        cleanup_seconds=patience(config, "shim.cleanup"),
    )


def patience(config: Config, name: str) -> float:
    """A timeout in seconds. 0 asks for none at all: a day, as every wait here ends some time."""
    return config.timeout(name).seconds or DAY


def store_settings(config: Config, address: str, proxies: Proxies) -> StoreSettings:
    """Where and how things are kept."""
    overlay, erofs = config.plugin(sections.Overlayfs), config.plugin(sections.Erofs)
    blockfile = config.plugin(sections.Blockfile)
    prefix = f"{SNAPSHOTTER}."
    return StoreSettings(
        root=config.root,
        owner=f"the daemon at {address}",
        gc=gc_policy(config.plugin(sections.GcScheduler)),
        sharing_policy=config.plugin(sections.Bolt).content_sharing_policy,
        overlay_root=overlay.root_path,
        overlay_options=options(overlay),
        native_root=config.plugin(sections.Native).root_path,
        btrfs_root=config.plugin(sections.Btrfs).root_path,
        blockfile_root=blockfile.root_path,
        blockfile_options=options(blockfile),
        erofs_root=erofs.root_path,
        erofs_mount_options=erofs.ovl_mount_options,
        erofs_refused=tuple(name for name in EROFS_REFUSED if getattr(erofs, name)),
        disabled_snapshotters=tuple(
            uri.removeprefix(prefix) for uri in config.disabled_plugins if uri.startswith(prefix)
        ),
        warm_workers=1,
        max_concurrent_unpacks=max(0, config.plugin(sections.TransferLocal).max_concurrent_unpacks),
        limits=layer_limits(config.plugin(sections.WalkingDiffer)),
        snapshotter_proxies=proxies.snapshotters,
        content_proxy=proxies.content,
        differs=tuple(
            None if name == WALKING else partial(proxies.differ, name) for name in proxies.order
        ),
        named_differs=proxies.named(),
        verifiers=image_verifiers(config),
    )


def image_verifiers(config: Config) -> tuple[BinDir, ...]:
    """Who is asked whether an image may be pulled; nobody where the plugin is disabled."""
    section = config.plugin(sections.ImageVerifier)
    if section.URI in config.disabled_plugins:
        return ()
    seconds = section.per_verifier_timeout.seconds
    return (BinDir(section.bin_dir, section.max_verifiers, seconds),)


def options(section: sections.Overlayfs | sections.Blockfile) -> dict[str, object]:
    """A snapshotter's settings but for where it is, by their names."""
    names = (field.name for field in dataclasses.fields(section) if field.name != "root_path")
    return {name: getattr(section, name) for name in names}


def layer_limits(section: sections.WalkingDiffer) -> Limits:
    """What a layer may become."""
    return Limits(section.max_layer_size, section.max_layer_ratio, section.max_layer_entries)


def gc_policy(section: sections.GcScheduler) -> Policy:
    """When to collect."""
    return Policy(
        pause_threshold=section.pause_threshold,
        deletion_threshold=section.deletion_threshold,
        mutation_threshold=section.mutation_threshold,
        schedule_delay=section.schedule_delay.seconds,
        startup_delay=section.startup_delay.seconds,
    )
