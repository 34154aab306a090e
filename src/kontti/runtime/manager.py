"""Shims: started, found again, lost, ended. Which runtime's name means which shim."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from kontti.errors import Error
from kontti.runtime.bundle import BUILTIN, Bundle, Bundles
from kontti.runtime.external import External, resolve
from kontti.runtime.shim import Shim
from kontti.runtime.zygote import ShimSettings, Zygote
from kontti.wire.messages.runtime.task.v2.shim import DeleteResponse

log = logging.getLogger(__name__)
BUILTIN_RUNTIMES = ("io.containerd.runc.v2", "io.containerd.kontti.v1")
KILLED = 137


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """``root`` and ``state`` are the daemon's; ``runtimes`` names those our own shim serves."""

    root: str
    state: str
    socket_dir: str = "/run/containerd/s"
    ttrpc_address: str = ""
    grpc_address: str = ""
    publish_binary: str = "containerd"
    runtime: str = ""
    hide_unified: bool = False
    runtimes: tuple[str, ...] = BUILTIN_RUNTIMES
    environment: tuple[str, ...] = ()
    load_seconds: float = 5.0


class ShimManager:
    """Starts and connects shims. ``on_lost`` is told of each task whose shim broke away."""

    def __init__(self, settings: RuntimeSettings) -> None:
        self.settings = settings
        self.bundles = Bundles(settings.root, settings.state)
        shared = ShimSettings(
            settings.socket_dir, settings.ttrpc_address, settings.runtime, settings.hide_unified
        )
        self.zygote = Zygote(shared, os.path.join(settings.state, "zygote.sock"))
        self._external = External(
            settings.ttrpc_address,
            settings.grpc_address,
            settings.publish_binary,
            settings.environment,
        )
        self._shims: dict[str, Shim] = {}
        self.on_lost: Callable[[Shim, str], None] = lambda _shim, _namespace: None

    async def start(
        self, bundle: Bundle, runtime: str, path: str, options: bytes, group: str
    ) -> Shim:
        """The shim for a new task: the group's, or a new one. Raises Error, leaving no shim."""
        builtin = not path and runtime in self.settings.runtimes
        binary = BUILTIN if builtin else await asyncio.to_thread(resolve, runtime, path)
        shim = self._group_shim(bundle, group) if builtin else None
        if shim is None:
            if builtin:
                bootstrap = await self.zygote.shim(bundle, group)
            else:
                bootstrap = await self._external.start(binary, bundle, options)
            shim = await self._connect(bundle, bootstrap.address, binary, bootstrap.version)
        await asyncio.to_thread(bundle.write_bootstrap, shim.bootstrap, binary)
        shim.tasks.add(bundle.id)
        return shim

    def _group_shim(self, bundle: Bundle, group: str) -> Shim | None:
        if not group:
            return None
        path = self.zygote.socket_path(bundle.namespace, group)
        return self._shims.get(f"unix://{path}")

    async def _connect(self, bundle: Bundle, address: str, binary: str, version: int) -> Shim:
        from kontti.runtime.bundle import Bootstrap

        known = self._shims.get(address)
        if known is not None:
            return known
        shim = await Shim.connect(Bootstrap(address, version), bundle.namespace)
        self._shims[address] = shim

        def lost() -> None:
            self._shims.pop(address, None)
            self.on_lost(shim, bundle.namespace)

        shim.on_lost(lost)
        return shim

    async def load(self, bundle: Bundle) -> Shim:
        """The shim of a task that an earlier daemon started; raises Error where it is gone."""
        bootstrap = await asyncio.to_thread(bundle.bootstrap)
        if bootstrap is None:
            raise Error(f"task {bundle.id} has no shim")
        connecting = self._connect(bundle, bootstrap.address, bundle.binary(), bootstrap.version)
        async with asyncio.timeout(self.settings.load_seconds):
            shim = await connecting
        shim.tasks.add(bundle.id)
        return shim

    async def stop(self, shim: Shim, bundle: Bundle) -> None:
        """A task is deleted: end its shim if that was its last."""
        shim.tasks.discard(bundle.id)
        if not shim.tasks:
            self._shims.pop(shim.bootstrap.address, None)
            shim.on_lost(lambda: None)
            await shim.shutdown(bundle.id)
            await shim.close()
        await asyncio.to_thread(bundle.delete)

    async def clean(self, bundle: Bundle) -> DeleteResponse:
        """Clear what a dead shim left: processes, mounts, the bundle. How its process ended."""
        binary = await asyncio.to_thread(bundle.binary)
        ended = DeleteResponse(exit_status=KILLED)
        try:
            if binary == BUILTIN:
                ended = await asyncio.to_thread(self._clean_builtin, bundle)
            else:
                ended = await self._external.delete(binary, bundle)
        except Error as error:
            log.warning("cleaning up after the shim of %s: %s", bundle.id, error)
        await asyncio.to_thread(bundle.delete)
        return ended

    def _clean_builtin(self, bundle: Bundle) -> DeleteResponse:
        from kontti.shim.cleanup import clean

        return clean(bundle.namespace, bundle.id, bundle.path, self.settings.runtime)

    async def close(self) -> None:
        """Hang up on every shim, which go on, and end the zygote."""
        for shim in list(self._shims.values()):
            await shim.close()
        self._shims.clear()
        await asyncio.to_thread(self.zygote.close)
