"""``[proxy_plugins]``: snapshotters, a content store and differs that other processes are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from kontti.client.proxy import ProxyContent, ProxyDiffer, ProxySnapshotter
from kontti.config.load import Config
from kontti.config.sections import DiffService, ProxyPlugin
from kontti.diff.chain import Differ
from kontti.errors import InvalidArgument
from kontti.images.platforms import default, parse
from kontti.namespaces import Scope
from kontti.server.plugins import BUILTINS, CONTENT, DIFFER, SNAPSHOTTER, Plugin
from kontti.transfer.settings import is_told

SANDBOX_CONTROLLER = "io.containerd.sandbox.controller.v1"
TYPES = {"snapshot": SNAPSHOTTER, "content": CONTENT, "diff": DIFFER, "sandbox": SANDBOX_CONTROLLER}
WALKING, EROFS = "walking", "erofs"


class Proxies:
    """What a configuration's proxy plugins stand for; nothing is dialled yet.

    Raises InvalidArgument for a proxy of an unknown type, without an address, or in the place of a
    plugin that is there.
    """

    def __init__(self, config: Config) -> None:
        self._differs: dict[tuple[str, str], ProxyDiffer] = {}
        self._lock = threading.Lock()
        self._config = config.proxy_plugins
        builtin = {row.uri for row in BUILTINS if row.uri not in config.disabled_plugins}
        self.rows = tuple(_row(id, p, builtin) for id, p in config.proxy_plugins.items())
        self.snapshotters: Mapping[str, ProxySnapshotter] = {
            row.id: ProxySnapshotter(self._config[row.id].address, row.id)
            for row in self.rows
            if row.type == SNAPSHOTTER
        }
        self.content = self._content(builtin)
        self._order = config.plugin(DiffService).default

    def _content(self, builtin: set[str]) -> ProxyContent | None:
        found = [row for row in self.rows if row.type == CONTENT]
        stores = [row.uri for row in found] + [uri for uri in builtin if uri.startswith(CONTENT)]
        if len(stores) > 1:
            names = ", ".join(sorted(stores))
            raise InvalidArgument(f"one content store is needed, and there are more: {names}")
        return ProxyContent(self._config[found[0].id].address, found[0].id) if found else None

    @property
    def lazy(self) -> frozenset[str]:
        """The snapshotters that are told where layers are, to get them by themselves."""
        return frozenset(
            row.id for row in self.rows if row.type == SNAPSHOTTER and is_told(dict(row.exports))
        )

    @property
    def order(self) -> Sequence[str]:
        """The differs in the order they are asked: "walking" is ours."""
        known = {row.id for row in self.rows if row.type == DIFFER} | {WALKING}
        wanted = [name for name in self._order if name in known]
        return wanted or [WALKING]

    def named(self) -> dict[str, Callable[[Scope], Differ] | None]:
        """The differs by name; None is ours, which makes the images of erofs as well."""
        rows = (row for row in self.rows if row.type == DIFFER)
        return {
            WALKING: None,
            EROFS: None,
            **{row.id: partial(self.differ, row.id) for row in rows},
        }

    def differ(self, id: str, scope: Scope) -> Differ:
        """The differ ``id`` for the scope's namespace."""
        key = (id, scope.namespace)
        with self._lock:
            if key not in self._differs:
                self._differs[key] = ProxyDiffer(self._config[id].address, id, scope)
            return self._differs[key]

    def close(self) -> None:
        """Hang up on the differs; the stores are closed by who has them."""
        with self._lock:
            for differ in self._differs.values():
                differ.close()


def _row(id: str, proxy: ProxyPlugin, builtin: set[str]) -> Plugin:
    kind = TYPES.get(proxy.type, proxy.type)
    if kind not in TYPES.values():
        raise InvalidArgument(f"proxy plugin {id}: unknown type {proxy.type!r:.60}")
    if kind == SANDBOX_CONTROLLER:
        raise InvalidArgument(f"proxy plugin {id}: sandbox controllers cannot be proxies yet")
    if not proxy.address:
        raise InvalidArgument(f"proxy plugin {id} has no address")
    row = Plugin(
        kind,
        id,
        capabilities=proxy.capabilities,
        platforms=(parse(proxy.platform) if proxy.platform else default(),),
        exports=tuple({**proxy.exports, "address": proxy.address}.items()),
    )
    if row.uri in builtin:
        raise InvalidArgument(f"proxy plugin {row.uri} is there already: disable that one first")
    return row
