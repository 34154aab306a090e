"""Older versions of config.toml, brought to version 4 one step at a time. Every step is pure."""

from __future__ import annotations

from collections.abc import Callable

from kontti.config.document import Table, as_list, as_table, merge, without
from kontti.errors import InvalidArgument

LATEST = 4
CRI = "io.containerd.grpc.v1.cri"
CRI_IMAGES = "io.containerd.cri.v1.images"
CRI_RUNTIME = "io.containerd.cri.v1.runtime"
SHIM_MANAGER = "io.containerd.shim.v1.manager"
RUNTIME_TASK = "io.containerd.runtime.v2.task"

_SNAPSHOTTERS = (
    "aufs", "btrfs", "devmapper", "native", "overlayfs", "zfs", "windows", "windows-lcow",
)  # fmt: skip
_SHORT_NAMES = {
    "cgroups": "io.containerd.monitor.v1.cgroups",
    "linux": "io.containerd.runtime.v1.linux",
    "scheduler": "io.containerd.gc.v1.scheduler",
    "bolt": "io.containerd.metadata.v1.bolt",
    "task": RUNTIME_TASK,
    "opt": "io.containerd.internal.v1.opt",
    "restart": "io.containerd.internal.v1.restart",
    "tracing": "io.containerd.internal.v1.tracing",
    "otlp": "io.containerd.tracing.processor.v1.otlp",
}
_RENAMED = {
    "io.containerd.internal.v1.restart": "io.containerd.monitor.container.v1.restart",
    "io.containerd.monitor.v1.cgroups": "io.containerd.monitor.task.v1.cgroups",
}
_CRI_SERVICE_KEYS = (
    "disable_tcp_service",
    "stream_server_address",
    "stream_server_port",
    "stream_idle_timeout",
    "enable_tls_streaming",
    "x509_key_pair_streaming",
)
_CRI_IMAGE_KEYS = (
    "registry",
    "image_decryption",
    "max_concurrent_downloads",
    "image_pull_progress_timeout",
    "image_pull_with_sync_fs",
    "stats_collect_period",
)
_CRI_IMAGE_KEYS_OF_CONTAINERD = (
    "snapshotter",
    "disable_snapshot_annotations",
    "discard_unpacked_layers",
)
# of [grpc], for the socket and for TCP
_GRPC_KEYS = ("address", "uid", "gid", "max_recv_message_size", "max_send_message_size")
_TCP_KEYS = {
    "tcp_address": "address",
    "tcp_tls_ca": "tls_ca",
    "tcp_tls_cert": "tls_cert",
    "tcp_tls_key": "tls_key",
    "tcp_tls_common_name": "tls_common_name",
}
_SOCKET_KEYS = ("address", "uid", "gid")
_TABLES = ("plugins", "grpc", "ttrpc", "debug", "metrics")


def version_of(table: Table, path: str) -> int:
    """The version a file says it has, 1 where it says none; raises InvalidArgument."""
    version = table.get("version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise InvalidArgument(f"failed to load TOML from {path}: version is not a number")
    if version > LATEST:
        raise InvalidArgument(
            f"failed to load TOML from {path}: expected containerd config version equal to or less "
            f"than `{LATEST}`, got `{version}`"
        )
    return version or 1


def migrate(table: Table, path: str) -> Table:
    """``table`` as version 4 would have it. Raises InvalidArgument for an unknown version."""
    check_shape(table, path)
    for version in range(version_of(table, path), LATEST):
        table = {**_STEPS[version](table), "version": version + 1}
    check_names(table, path)
    return table


def check_shape(table: Table, path: str) -> None:
    """Raises InvalidArgument where a key of any version holds another kind of thing than it may."""
    plugins = as_table(table.get("plugins"))
    tables = {key: table[key] for key in _TABLES if key in table}
    tables |= {f"plugins.{name}": value for name, value in plugins.items()}
    for key, value in tables.items():
        if not isinstance(value, dict):
            raise InvalidArgument(f"failed to load TOML from {path}: {key}: expected a table")
    for key in ("disabled_plugins", "required_plugins", "imports"):
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidArgument(
                f"failed to load TOML from {path}: {key}: expected a list of strings"
            )


def check_names(table: Table, path: str) -> None:
    """Raises InvalidArgument for a plugin that is not named by its whole URI."""
    for key, what in (("disabled_plugins", "disabled"), ("required_plugins", "required")):
        for name in as_list(table.get(key)):
            _check_name(str(name), what, path)
    for name in as_table(table.get("plugins")):
        _check_name(name, "key", path)


def _check_name(name: str, what: str, path: str) -> None:
    if not name.startswith("io.containerd.") or name.count(".") < 3:
        kind = "plugin key URI" if what == "key" else f"{what} plugin URI"
        raise InvalidArgument(
            f'failed to load TOML from {path}: invalid {kind} "{name}" expect io.containerd.x.vx'
        )


def _to_2(table: Table) -> Table:
    """Plugins by their URI."""
    plugins = {_uri(name): value for name, value in as_table(table.get("plugins")).items()}
    changed: dict[str, object] = {**table}
    if plugins:
        changed["plugins"] = plugins
    for key in ("disabled_plugins", "required_plugins"):
        if key in table:
            changed[key] = [_uri(str(name)) for name in as_list(table[key])]
    return changed


def _uri(name: str) -> str:
    if name.startswith("io.containerd."):
        return name
    if name in _SNAPSHOTTERS:
        return f"io.containerd.snapshotter.v1.{name}"
    if name.endswith("-service"):
        return f"io.containerd.service.v1.{name}"
    return _SHORT_NAMES.get(name, f"io.containerd.grpc.v1.{name}")


def _to_3(table: Table) -> Table:
    """CRI in three parts, and plugins under their newer names."""
    plugins = {name: value for name, value in as_table(table.get("plugins")).items() if name != CRI}
    for parts in (_cri_parts(table), _renamed(plugins), _sched_core(plugins)):
        plugins = merge(parts, plugins)
    if not plugins:
        return table
    kept = without(plugins, *_RENAMED)
    if RUNTIME_TASK in kept:
        kept[RUNTIME_TASK] = without(as_table(kept[RUNTIME_TASK]), "sched_core")
    return {**table, "plugins": kept}


def _renamed(plugins: Table) -> dict[str, object]:
    return {new: plugins[old] for old, new in _RENAMED.items() if old in plugins}


def _sched_core(plugins: Table) -> dict[str, object]:
    if as_table(plugins.get(RUNTIME_TASK)).get("sched_core") is not True:
        return {}
    return {SHIM_MANAGER: {"env": ["SCHED_CORE=1"]}}


def _cri_parts(table: Table) -> dict[str, object]:
    old = as_table(as_table(table.get("plugins")).get(CRI))
    parts = {
        CRI: {key: old[key] for key in _CRI_SERVICE_KEYS if key in old},
        CRI_IMAGES: _cri_images(old),
        CRI_RUNTIME: _cri_runtime(old),
    }
    return {name: part for name, part in parts.items() if part}


def _cri_images(old: Table) -> dict[str, object]:
    containerd = as_table(old.get("containerd"))
    images = {key: old[key] for key in _CRI_IMAGE_KEYS if key in old}
    images |= {k: containerd[k] for k in _CRI_IMAGE_KEYS_OF_CONTAINERD if k in containerd}
    if "sandbox_image" in old:
        images["pinned_images"] = {"sandbox": old["sandbox_image"]}
    platforms = {
        name: {"snapshotter": runtime["snapshotter"]}
        for name, runtime in as_table(containerd.get("runtimes")).items()
        if isinstance(runtime, dict) and runtime.get("snapshotter")
    }
    if platforms:
        images["runtime_platforms"] = platforms
    return images


def _cri_runtime(old: Table) -> dict[str, object]:
    runtime = without(old, *_CRI_SERVICE_KEYS, *_CRI_IMAGE_KEYS, "sandbox_image")
    containerd = runtime.get("containerd")
    if isinstance(containerd, dict):
        runtime["containerd"] = without(containerd, *_CRI_IMAGE_KEYS_OF_CONTAINERD)
    cni = as_table(runtime.get("cni"))
    if cni.get("bin_dir"):
        directories = {"bin_dirs": cni.get("bin_dirs") or [cni["bin_dir"]]}
        runtime["cni"] = {**without(cni, "bin_dir"), **directories}
    return runtime


def _to_4(table: Table) -> Table:
    """Listeners as plugins."""
    grpc, debug, metrics = (as_table(table.get(key)) for key in ("grpc", "debug", "metrics"))
    servers = {
        "io.containerd.server.v1.grpc": _picked(grpc, _GRPC_KEYS),
        "io.containerd.server.v1.grpc-tcp": {
            new: grpc[old] for old, new in _TCP_KEYS.items() if old in grpc
        },
        "io.containerd.server.v1.ttrpc": _picked(as_table(table.get("ttrpc")), _SOCKET_KEYS),
        "io.containerd.server.v1.debug": _picked(debug, _SOCKET_KEYS),
        "io.containerd.server.v1.metrics": _picked(metrics, ("address",)),
        "io.containerd.metrics.v1.grpc-prometheus": _picked(metrics, ("grpc_histogram",)),
    }
    given = {name: part for name, part in servers.items() if part}
    plugins = merge(given, as_table(table.get("plugins")))
    kept = without(table, "grpc", "ttrpc", "metrics", "debug", "plugins")
    if left := without(debug, *_SOCKET_KEYS):
        kept["debug"] = left
    if plugins:
        kept["plugins"] = plugins
    return kept


def _picked(table: Table, keys: tuple[str, ...]) -> dict[str, object]:
    return {key: table[key] for key in keys if key in table}


_STEPS: dict[int, Callable[[Table], Table]] = {1: _to_2, 2: _to_3, 3: _to_4}
