"""config.toml and what it imports, as one frozen value."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from kontti.config.decode import DERIVED, Decoder
from kontti.config.document import Table, as_list, as_table, merge, read, without
from kontti.config.duration import MINUTE, SECOND, Duration
from kontti.config.migrate import LATEST, migrate
from kontti.config.sections import (
    PLUGINS,
    Cgroup,
    Debug,
    Grpc,
    ProxyPlugin,
    Section,
    StreamProcessor,
    Ttrpc,
)
from kontti.errors import InvalidArgument, NotFound

P = TypeVar("P", bound=Section)
DEFAULT_PATH = "/etc/containerd/config.toml"
DEFAULT_IMPORTS = ("/etc/containerd/conf.d/*.toml",)
MAX_FILES = 1000
TIMEOUTS: Mapping[str, Duration] = MappingProxyType(
    {
        "io.containerd.timeout.bolt.open": Duration(0),
        "io.containerd.timeout.cri.defercleanup": Duration(MINUTE),
        "io.containerd.timeout.metrics.shimstats": Duration(2 * SECOND),
        "io.containerd.timeout.shim.cleanup": Duration(5 * SECOND),
        "io.containerd.timeout.shim.load": Duration(5 * SECOND),
        "io.containerd.timeout.shim.shutdown": Duration(3 * SECOND),
        "io.containerd.timeout.task.state": Duration(2 * SECOND),
    }
)
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_KEYS = "/etc/containerd/ocicrypt"


def _decoder(compression: str) -> StreamProcessor:
    return StreamProcessor(
        accepts=(f"{_LAYER}{compression}+encrypted",),
        returns=f"{_LAYER}{compression}",
        path="ctd-decoder",
        args=("--decryption-keys-path", f"{_KEYS}/keys"),
        env=(f"OCICRYPT_KEYPROVIDER_CONFIG={_KEYS}/ocicrypt_keyprovider.conf",),
    )


def _default_processors() -> Mapping[str, StreamProcessor]:
    return {
        "io.containerd.ocicrypt.decoder.v1.tar": _decoder(""),
        "io.containerd.ocicrypt.decoder.v1.tar.gzip": _decoder("+gzip"),
    }


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says; "" where it says nothing."""

    address: str = ""
    root: str = ""
    state: str = ""
    log_level: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration in force. Get a plugin's table by its type: ``config.plugin(Grpc)``."""

    version: int = LATEST
    root: str = "/var/lib/containerd"
    state: str = "/run/containerd"
    temp: str = ""
    disabled_plugins: tuple[str, ...] = ()
    required_plugins: tuple[str, ...] = ()
    oom_score: int = 0
    imports: tuple[str, ...] = DEFAULT_IMPORTS
    debug: Debug = field(default_factory=Debug)
    cgroup: Cgroup = field(default_factory=Cgroup)
    timeouts: Mapping[str, Duration] = field(default_factory=lambda: TIMEOUTS)
    proxy_plugins: Mapping[str, ProxyPlugin] = field(default_factory=dict)
    stream_processors: Mapping[str, StreamProcessor] = field(default_factory=_default_processors)
    # by URI: values of kontti.config.sections where there is a type, tables as given where not
    plugins: Mapping[str, object] = field(default_factory=dict)
    files: tuple[str, ...] = field(default=(), metadata=DERIVED)
    warnings: tuple[str, ...] = field(default=(), metadata=DERIVED)

    def plugin(self, kind: type[P]) -> P:
        """The table of the plugin that ``kind`` (of kontti.config.sections) is for."""
        found = self.plugins.get(kind.URI)
        return found if isinstance(found, kind) else kind()

    def timeout(self, name: str) -> Duration:
        """The timeout ``io.containerd.timeout.<name>``; 0 is none at all."""
        return self.timeouts.get(f"io.containerd.timeout.{name}", Duration(0))


def defaults() -> Config:
    """What holds where nothing is configured."""
    return _settle(Config(), Overrides())


def load(path: str | None, overrides: Overrides | None = None) -> Config:
    """The configuration in the file ``path`` and what it imports.

    Without a path the usual file is read if it is there, and the usual directory's files unless it
    names others. Raises NotFound for a file that was named and is not there, InvalidArgument for
    one that is wrong.
    """
    documents = _read_all(path)
    warnings: list[str] = []
    for file, document in documents.items():
        warnings += _decode(document, file).warnings
    merged: Table = {}
    for document in documents.values():
        merged = merge(merged, document)
    config = _decode(merged, path or DEFAULT_PATH)
    config = replace(config, files=tuple(documents), warnings=tuple(warnings))
    return _settle(config, overrides or Overrides())


def _read_all(path: str | None) -> dict[str, Table]:
    """Each file, brought to the latest version, in the order they are laid over one another."""
    documents: dict[str, Table] = {}
    pending = _first(path)
    while pending:
        file = pending.pop(0)
        if file in documents:
            continue
        if len(documents) >= MAX_FILES:
            raise InvalidArgument(
                f"failed to load TOML from {path}: imports more than {MAX_FILES} files"
            )
        documents[file] = migrate(read(file), file)
        pending += _imported(documents[file], file)
    return documents


def _first(path: str | None) -> list[str]:
    if path is not None:
        return [os.path.abspath(path)]
    try:
        imports = read(DEFAULT_PATH).get("imports")
    except NotFound:
        return _expand(DEFAULT_IMPORTS, DEFAULT_PATH)
    return [DEFAULT_PATH, *(_expand(DEFAULT_IMPORTS, DEFAULT_PATH) if imports is None else ())]


def _imported(document: Table, path: str) -> list[str]:
    return _expand(tuple(str(item) for item in as_list(document.get("imports"))), path)


def _expand(patterns: tuple[str, ...], path: str) -> list[str]:
    """The files that ``patterns`` name; they are relative to ``path``'s directory."""
    found: list[str] = []
    for pattern in patterns:
        whole = os.path.normpath(os.path.join(os.path.dirname(path), pattern))
        found += sorted(glob.glob(whole)) if glob.has_magic(whole) else [whole]
    return found


def _decode(document: Table, path: str) -> Config:
    decoder = Decoder(path)
    config = decoder.decode(Config, without(document, "plugins"))
    plugins: dict[str, object] = {}
    kinds = {kind.URI: kind for kind in PLUGINS}
    for uri, value in as_table(document.get("plugins")).items():
        if uri in kinds:
            plugins[uri] = decoder.decode(kinds[uri], as_table(value), f"plugins.{uri}")
        else:
            decoder.warnings.append(f"config {path}: ignoring the settings of {uri}, unknown here")
            plugins[uri] = value
    return replace(
        config,
        plugins=MappingProxyType(plugins),
        timeouts=MappingProxyType({**TIMEOUTS, **config.timeouts}),
        stream_processors=MappingProxyType({**_default_processors(), **config.stream_processors}),
        warnings=tuple(decoder.warnings),
    )


def _settle(config: Config, overrides: Overrides) -> Config:
    """``config`` with what the command line says, checked as a whole."""
    grpc = config.plugin(Grpc)
    grpc = replace(grpc, address=overrides.address or grpc.address)
    ttrpc = config.plugin(Ttrpc)
    if not ttrpc.address and grpc.address:
        ttrpc = replace(ttrpc, address=f"{grpc.address}.ttrpc")
    settled = replace(
        config,
        version=LATEST,
        root=os.path.abspath(overrides.root) if overrides.root else config.root,
        state=os.path.abspath(overrides.state) if overrides.state else config.state,
        debug=replace(config.debug, level=overrides.log_level or config.debug.level),
        plugins=MappingProxyType({**config.plugins, Grpc.URI: grpc, Ttrpc.URI: ttrpc}),
    )
    _check_directories(settled)
    return settled


def _check_directories(config: Config) -> None:
    for name, path in (("root", config.root), ("state", config.state)):
        if not path:
            raise InvalidArgument(f"{name} must be specified")
        if not os.path.isabs(path):
            raise InvalidArgument(f"{name} {path!r:.200} must be an absolute path")
    if os.path.normpath(config.root) == os.path.normpath(config.state):
        raise InvalidArgument("root and state must be different paths")
