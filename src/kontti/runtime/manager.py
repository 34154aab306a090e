"""Shims: started, found again, lost, ended. Which runtime's name means which shim."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from kontti.errors import AlreadyExists, Error, NotFound, Unavailable
from kontti.runtime.bundle import BUILTIN, Bootstrap, Bundle, Bundles
from kontti.runtime.external import External, resolve
from kontti.runtime.leftovers import clean_own, kill, unlink_dead
from kontti.runtime.sandboxes import SandboxShims
from kontti.runtime.shim import Shim
from kontti.runtime.shim_log import ShimLog
from kontti.runtime.zygote import ShimSettings, Zygote
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.messages.types.runc.options.oci import Options
from kontti.wire.typeurl import name_of

log = logging.getLogger(__name__)
BUILTIN_RUNTIMES = ("io.containerd.runc.v2", "io.containerd.kontti.v1")
KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """``root`` and ``state`` are the daemon's; ``runtimes`` names those our own shim serves.

    ``open_files`` is how many descriptors a shim may have open, 0 for as many as we may;
    ``log_options`` are for what a log's URI leaves open; ``*_seconds`` are the deadlines that
    config.toml calls timeouts.
    """

    root: str
    state: str
    socket_dir: str = "/run/containerd/s"
    ttrpc_address: str = ""
    grpc_address: str = ""
    publish_binary: str = "containerd"
    runtime: str = ""
    hide_unified: bool = False
    open_files: int = 0
    runtimes: tuple[str, ...] = BUILTIN_RUNTIMES
    environment: tuple[str, ...] = ()
    log_options: tuple[tuple[str, str], ...] = ()
    load_seconds: float = 5.0
    state_seconds: float = 2.0
    stats_seconds: float = 2.0
    shutdown_seconds: float = 3.0
    cleanup_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Start:
    """What a new task needs of a shim: its spec, the runtime's name or path, and the group.

    ``options`` are the runtime's, as a google.protobuf.Any; ``sandbox`` is the one it belongs to;
    ``api`` is where a shim listens already that is to be used.
    """

    spec: bytes | None
    runtime: str
    path: str = ""
    options: bytes = b""
    group: str = ""
    sandbox: str = ""
    api: Bootstrap | None = None


class ShimManager:
    """Starts and connects shims. ``on_lost`` are told of each shim that broke away."""

    def __init__(self, settings: RuntimeSettings) -> None:
        self.settings = settings
        self.bundles = Bundles(settings.root, settings.state)
        shared = ShimSettings(
            settings.socket_dir,
            settings.ttrpc_address,
            settings.runtime,
            settings.hide_unified,
            settings.open_files,
            settings.grpc_address,
        )
        self.zygote = Zygote(shared, os.path.join(settings.state, "zygote.sock"))
        self._external = External(
            settings.ttrpc_address,
            settings.grpc_address,
            settings.publish_binary,
            settings.environment,
            settings.cleanup_seconds,
            settings.open_files,
        )
        self._shims: dict[str, Shim] = {}
        # by address: a group's shim is not started twice, nor joined while it is being ended
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self.on_lost: list[Callable[[Shim, str], None]] = []
        self.sandboxes = SandboxShims()

    def is_own(self, runtime: str, path: str = "") -> bool:
        """Whether our own shim serves a runtime by its name, or by the path of a binary."""
        return not path and runtime in self.settings.runtimes

    def _lock(self, address: str) -> asyncio.Lock:
        return self._locks.setdefault(address, asyncio.Lock())

    async def start(self, bundle: Bundle, start: Start) -> Shim:
        """Make the bundle and start a shim, or join the sandbox's or group's.

        A failure leaves neither. Raises Error.
        """
        if self.sandboxes.address(bundle.namespace, bundle.id):
            raise AlreadyExists(f"sandbox {bundle.id}")
        host = await self._host(bundle, start.sandbox) if start.sandbox else None
        if start.api is not None:
            host = await self._given(bundle, start, start.api)
        return await self._start(bundle, start, host)

    async def _given(self, bundle: Bundle, start: Start, api: Bootstrap) -> Shim:
        """The shim that the caller says to use; it is the caller's to end."""
        binary = self._binary(start)
        async with self._lock(api.address):
            shim = self._shims.get(api.address) or await self._connect(bundle, api, binary)
            shim.given = True
            return shim

    async def start_sandbox(self, bundle: Bundle, start: Start) -> Shim:
        """Make the bundle and start the shim of a sandbox; a failure leaves neither.

        Raises AlreadyExists where a shim has that name, Error.
        """
        if self.zygote.bootstrap(bundle, "").address in self._shims:
            raise AlreadyExists(f"shim of {bundle.id}")
        shim = await self._start(bundle, start, None)
        self.sandboxes.hold(bundle.namespace, bundle.id, shim.bootstrap.address)
        return shim

    async def _host(self, bundle: Bundle, sandbox: str) -> Shim | None:
        """The shim of a sandbox, or of a task of that name that stands for it.

        None where nobody has heard of the sandbox; raises NotFound where its shim is gone.
        """
        address = self.sandboxes.address(bundle.namespace, sandbox)
        if address in self._shims:
            return self._shims[address]
        for shim in self._shims.values():
            if shim.namespace == bundle.namespace and sandbox in shim.tasks:
                return shim
        if await asyncio.to_thread(self.sandboxes.recorded, bundle.namespace, sandbox):
            raise NotFound(f"failed to start shim: can't find shim for sandbox {sandbox}")
        return None

    async def _start(self, bundle: Bundle, start: Start, host: Shim | None) -> Shim:
        try:
            binary = await asyncio.to_thread(self._prepare, bundle, start, host)
        except AlreadyExists:
            # no task of ours: what an earlier one could not clean up
            log.warning("bundle of %s was left behind; cleaning up", bundle.id)
            await self.clean(bundle)
            binary = await asyncio.to_thread(self._prepare, bundle, start, host)
        try:
            if host is not None:
                return await self._enter(bundle, host)
            if binary == BUILTIN:
                return await self._start_own(bundle, start)
            return await self._start_external(bundle, binary, start.options)
        except BaseException as error:
            await self._delete_bundle(bundle)
            if isinstance(error, Error):
                raise type(error)(f"failed to start shim: {error.message}") from None
            raise

    def _prepare(self, bundle: Bundle, start: Start, host: Shim | None) -> str:
        """Find the shim's binary and make the bundle, with all of it that is known now."""
        binary = host.binary if host is not None else self._binary(start)
        bundle.make(start.spec)
        try:
            bundle.write_binary(binary)
            if host is not None:
                bundle.write_sandbox(start.sandbox)
                bundle.write_bootstrap(host.bootstrap)
            elif binary == BUILTIN:
                bundle.write_bootstrap(self.zygote.bootstrap(bundle, start.group))
        except BaseException:
            bundle.delete()
            raise
        return binary

    def _binary(self, start: Start) -> str:
        if self.is_own(start.runtime, start.path):
            return BUILTIN
        try:
            return resolve(start.runtime, start.path)
        except Error as error:
            raise type(error)(f"failed to start shim: {error.message}") from None

    async def _enter(self, bundle: Bundle, host: Shim) -> Shim:
        """Have the shim of a sandbox keep a task; raises Unavailable where it is gone by now."""
        async with self._lock(host.bootstrap.address):
            if self._shims.get(host.bootstrap.address) is not host:
                raise Unavailable("the sandbox's shim is gone")
            host.tasks.add(bundle.id)
            return host

    async def _start_own(self, bundle: Bundle, start: Start) -> Shim:
        bootstrap = self.zygote.bootstrap(bundle, start.group)
        async with self._lock(bootstrap.address):
            shim = self._shims.get(bootstrap.address)
            if shim is None:
                cgroup = runc_options(start.options).shim_cgroup
                pid = await self.zygote.shim(bundle, bootstrap, cgroup)
                try:
                    shim = await self._connect(bundle, bootstrap, BUILTIN)
                except BaseException:
                    kill(pid)
                    raise
            shim.tasks.add(bundle.id)
            return shim

    async def _start_external(self, bundle: Bundle, binary: str, options: bytes) -> Shim:
        shim_log = await ShimLog.open(bundle)
        try:
            bootstrap = await self._external.start(binary, bundle, options)
            try:
                await asyncio.to_thread(bundle.write_bootstrap, bootstrap)
                return await self._join(bundle, bootstrap, binary, shim_log)
            except BaseException:
                with contextlib.suppress(Error):
                    await self._external.delete(binary, bundle)
                raise
        except BaseException:
            shim_log.close()
            raise

    async def _join(
        self, bundle: Bundle, bootstrap: Bootstrap, binary: str, shim_log: ShimLog | None
    ) -> Shim:
        """The shim at an address, connected to once; it keeps ``shim_log``."""
        async with self._lock(bootstrap.address):
            shim = self._shims.get(bootstrap.address)
            if shim is None:
                shim = await self._connect(bundle, bootstrap, binary)
                if shim_log is not None:
                    shim.keep_log(shim_log)
            elif shim_log is not None:
                # a group's shim writes to the log of the first
                shim_log.close()
            shim.tasks.add(bundle.id)
            return shim

    async def _connect(self, bundle: Bundle, bootstrap: Bootstrap, binary: str) -> Shim:
        seconds = self.settings.load_seconds
        shim = await Shim.connect(bootstrap, bundle.namespace, seconds, own=binary == BUILTIN)
        shim.namespace, shim.binary = bundle.namespace, binary
        self._shims[bootstrap.address] = shim

        def lost() -> None:
            self._shims.pop(bootstrap.address, None)
            # it may live on, and must not keep what is now cleaned up
            shim.kill()
            shim.release()
            for tell in self.on_lost:
                tell(shim, bundle.namespace)

        shim.on_lost(lost)
        return shim

    async def load(self, bundle: Bundle) -> Shim:
        """The shim of a task that an earlier daemon started.

        Raises Unavailable where it is gone, DeadlineExceeded where it does not answer.
        """
        # two small files: to read them costs less than to go to a thread, with hundreds at a start
        bootstrap, binary = bundle.bootstrap(), bundle.binary()
        if bootstrap is None:
            raise Unavailable(f"task {bundle.id} has no shim")
        shim_log = None if binary == BUILTIN else await ShimLog.open(bundle)
        try:
            return await self._join(bundle, bootstrap, binary, shim_log)
        except BaseException:
            if shim_log is not None:
                shim_log.close()
            raise

    async def stop(self, shim: Shim, bundle: Bundle) -> None:
        """A task is deleted: end its shim if that was its last, and remove the bundle."""
        shim.tasks.discard(bundle.id)
        await self._end_unused(shim, bundle.id)
        await self._delete_bundle(bundle)

    async def _end_unused(self, shim: Shim, id: str) -> None:
        address = shim.bootstrap.address
        async with self._lock(address):
            kept = shim.tasks or shim.given or self.sandboxes.holds(address)
            if kept or self._shims.get(address) is not shim:
                return
            shim.on_lost(lambda: None)
            try:
                await shim.shutdown(id, self.settings.shutdown_seconds)
            except Unavailable:
                pass  # it ended before it answered
            except Error as error:
                log.warning("shim of %s: %s; it is killed", id, error)
                shim.kill()
            finally:
                self._shims.pop(address, None)
                await shim.close()

    async def clean(self, bundle: Bundle, shim: Shim | None = None) -> api.DeleteResponse:
        """End a task whatever state it is in: processes, mounts, shim and bundle.

        Asks ``shim`` first, where there is one. How its process ended.
        """
        if shim is not None:
            try:
                return await self._clean_by_shim(bundle, shim)
            except NotFound:
                await self.stop(shim, bundle)
                return api.DeleteResponse(exit_status=KILLED)
            except Error as error:
                log.warning("shim of %s does not clean up: %s", bundle.id, error)
            shim.tasks.discard(bundle.id)
            if not shim.tasks:
                shim.kill()
                await self._end_unused(shim, bundle.id)
        ended = await self._clean_after_shim(bundle)
        await self._remove_dead_socket(bundle)
        await self._delete_bundle(bundle)
        return ended

    async def clear(self, bundle: Bundle) -> None:
        """Clear what a dead shim left of a sandbox; of its tasks, each is cleaned by itself."""
        binary = await asyncio.to_thread(bundle.binary)
        if binary != BUILTIN:
            try:
                await self._external.delete(binary, bundle)
            except Error as error:
                log.warning("cleaning up after the shim of sandbox %s: %s", bundle.id, error)
        await self._remove_dead_socket(bundle)
        await self._delete_bundle(bundle)

    @staticmethod
    async def _delete_bundle(bundle: Bundle) -> None:
        try:
            await asyncio.to_thread(bundle.delete)
        except Error as error:
            log.warning("%s", error)

    async def _remove_dead_socket(self, bundle: Bundle) -> None:
        """A shim that was killed could not take its socket away."""
        bootstrap = await asyncio.to_thread(bundle.bootstrap)
        if bootstrap is None:
            return
        async with self._lock(bootstrap.address):
            if bootstrap.address not in self._shims:
                await asyncio.to_thread(unlink_dead, bootstrap.address)

    async def _clean_by_shim(self, bundle: Bundle, shim: Shim) -> api.DeleteResponse:
        id, seconds = bundle.id, self.settings.cleanup_seconds
        kill = api.KillRequest(id=id, signal=signal.SIGKILL, all=True)
        with contextlib.suppress(Error):
            await shim.call("Kill", kill, Empty, seconds)
            await shim.call("Wait", api.WaitRequest(id=id), api.WaitResponse, seconds)
        request = api.DeleteRequest(id=id)
        ended = await shim.call("Delete", request, api.DeleteResponse, seconds)
        await self.stop(shim, bundle)
        return ended

    async def _clean_after_shim(self, bundle: Bundle) -> api.DeleteResponse:
        """Clear what a dead shim left of a task."""
        binary = await asyncio.to_thread(bundle.binary)
        try:
            if binary == BUILTIN:
                return await asyncio.to_thread(
                    clean_own, bundle, self.settings.runtime, self.settings.hide_unified
                )
            return await self._external.delete(binary, bundle)
        except (Error, OSError) as error:
            log.warning("cleaning up after the shim of %s: %s", bundle.id, error)
            return api.DeleteResponse(exit_status=KILLED)

    async def close(self) -> None:
        """Hang up on every shim, which go on, and end the zygote."""
        for shim in list(self._shims.values()):
            await shim.close()
        self._shims.clear()
        await asyncio.to_thread(self.zygote.close)


def runc_options(packed: bytes) -> Options:
    """runc's options in a google.protobuf.Any, none in one of another type."""
    value = Any.decode(packed)
    named = name_of(value.type_url) == Options.NAME
    return Options.decode(value.value) if named else Options()
