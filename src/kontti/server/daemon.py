"""The daemon: an engine's stores and tasks with listeners in front, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from kontti.engine.lock import RootLock
from kontti.engine.logs import LogKeeper
from kontti.engine.stores import CONTENT_DIR, Stores, StoreSettings
from kontti.errors import Error, NotFound
from kontti.events.base import Exchange
from kontti.linux import process
from kontti.metadata.base import Metadata
from kontti.metadata.gc import Type
from kontti.mounts.base import Mounts
from kontti.mounts.manager import MountManager
from kontti.namespaces import Scope
from kontti.runtime import events as shim_events
from kontti.runtime.external import read_info
from kontti.runtime.manager import RuntimeSettings
from kontti.runtime.probe import choose
from kontti.runtime.ttrpc import TtrpcServer
from kontti.runtime.warm import GroupWarmer
from kontti.sandboxes.base import Controller
from kontti.sandboxes.shim import ShimController
from kontti.server.listen import GrpcListener, prepare_socket
from kontti.server.plugins import CONTENT, OPT, RESTART, Plugin, check_required, plugin_rows
from kontti.services.introspection import ServerInfo
from kontti.services.rpc import Bridge
from kontti.services.table import Backends, all_methods
from kontti.streaming.manager import StreamManager
from kontti.tasks.manager import TaskManager
from kontti.tasks.restart import Monitor
from kontti.transfer.settings import Rates, Supported

if TYPE_CHECKING:
    from kontti.server.debug import DebugServer

if TYPE_CHECKING:
    from kontti.services.transfer import Transfers

log = logging.getLogger(__name__)
OWN_RUNTIME = "io.containerd.kontti.v1"
UUID_DIR = "io.containerd.grpc.v1.introspection"
THREADS = 16
TRANSFERS = 16
"""Transfers at once; more wait for their turn."""
SWITCH_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Listen:
    """A unix socket and who may use it."""

    address: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How much transfers do at once, what they unpack, and where registries are configured.

    ``lazy``: the snapshotters that may get layers by themselves.
    """

    rates: Rates = field(default_factory=Rates)
    supported: tuple[Supported, ...] | None = None
    directories: tuple[str, ...] = ()
    lazy: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """All that the daemon is started with."""

    stores: StoreSettings
    runtime: RuntimeSettings
    grpc: Listen
    ttrpc: Listen
    max_receive: int = 16 << 20
    max_send: int = 16 << 20
    disabled_plugins: tuple[str, ...] = ()
    required_plugins: tuple[str, ...] = ()
    restart_seconds: float = 10.0
    transfer: TransferSettings = field(default_factory=TransferSettings)
    opt_path: str = ""
    """Where programs are looked for first; ``ctr install`` puts them there."""
    proxies: tuple[Plugin, ...] = ()
    debug: Listen | None = None


async def serve(settings: DaemonSettings) -> None:
    """Run until SIGTERM or SIGINT. Raises Error where it cannot start."""
    began = time.monotonic()
    # who waits for another thread's Python waits this long at the most
    sys.setswitchinterval(SWITCH_SECONDS)
    # not for who we start: an OCI runtime would wait for its container to notify
    notify_address = os.environ.pop("NOTIFY_SOCKET", "")
    if settings.opt_path and OPT not in settings.disabled_plugins:
        prefer(settings.opt_path)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # SIGUSR1 says on stderr what every thread is doing
    faulthandler.register(signal.SIGUSR1)
    # shims and clients go on while a terminal is closed
    loop.add_signal_handler(signal.SIGHUP, lambda: log.info("SIGHUP: nothing to reload"))
    async with running(settings):
        log.info("containerd successfully booted in %.6fs", time.monotonic() - began)
        notify(notify_address, "READY=1")
        await stopped.wait()
        notify(notify_address, "STOPPING=1")
        log.info("stopping: containers go on")


@contextlib.asynccontextmanager
async def running(settings: DaemonSettings) -> AsyncIterator[None]:
    """The daemon, up inside the block."""
    async with contextlib.AsyncExitStack() as stack:
        stores = await open_stores(settings, stack)
        if settings.debug is not None:
            stack.push_async_callback(asyncio.to_thread, serve_debug(settings.debug).close)
        executor = ThreadPoolExecutor(THREADS, thread_name_prefix="engine")
        stack.callback(executor.shutdown)
        stack.callback(GroupWarmer(stores.exchange).close)
        stack.callback((await asyncio.to_thread(keep_logs, settings, stores)).close)
        mounts = await asyncio.to_thread(MountManager, settings.stores.root, settings.runtime.state)
        stack.push_async_callback(asyncio.to_thread, mounts.close)
        streams = StreamManager(asyncio.get_running_loop())
        stores.metadata.collect_with(Type.MOUNT, mounts)
        stores.metadata.collect_with(Type.STREAM, streams)
        tasks = await start_tasks(settings, stores, mounts)
        stack.push_async_callback(tasks.close)
        sandboxes = ShimController(settings.runtime, tasks.shims, tasks, stores.exchange)
        stack.push_async_callback(sandboxes.close)
        stack.push_async_callback((await hear_shims(settings.ttrpc, stores.exchange)).stop)
        # events of running shims are heard before the first of them is asked anything
        await sandboxes.load()
        await tasks.load()
        if f"{RESTART}.restart" not in settings.disabled_plugins:
            monitor = Monitor(stores.metadata, tasks, stores.exchange, settings.restart_seconds)
            stack.push_async_callback(monitor.close)
        transfers = transfer_threads(stack)
        parts = Parts(stores, tasks, {"shim": sandboxes}, streams, mounts, transfers)
        stack.push_async_callback((await serve_grpc(settings, parts, Bridge(executor))).stop)
        if stores.was_unclean:
            # in the background: nobody waits for it, and it is over before the threads are
            executor.submit(look_after_crash, stores)
        log.info(
            "serving grpc on %s and ttrpc on %s", settings.grpc.address, settings.ttrpc.address
        )
        yield


def serve_debug(listen: Listen) -> DebugServer:
    """The debug socket's server."""
    # with an HTTP server that few daemons need
    from kontti.server.debug import DebugServer

    return DebugServer(listen.address, listen.uid, listen.gid)


async def serve_grpc(settings: DaemonSettings, parts: Parts, bridge: Bridge) -> GrpcListener:
    """Every service on its socket."""
    grpc = GrpcListener(
        all_methods(make_backends(settings, parts), bridge),
        max_receive=settings.max_receive,
        max_send=settings.max_send,
    )
    await grpc.start(settings.grpc.address, settings.grpc.uid, settings.grpc.gid)
    return grpc


def transfer_threads(stack: contextlib.AsyncExitStack) -> Bridge:
    """Threads that transfers have to themselves, as each takes its time."""
    threads = ThreadPoolExecutor(TRANSFERS, thread_name_prefix="transfer")
    # not by the loop itself: a transfer may wait for it
    stack.push_async_callback(asyncio.to_thread, threads.shutdown)
    return Bridge(threads)


async def hear_shims(listen: Listen, exchange: Exchange) -> TtrpcServer:
    """The server of shims' events."""
    ttrpc = TtrpcServer(shim_events.handlers(exchange))
    prepare_socket(listen.address)
    await ttrpc.start(listen.address, listen.uid, listen.gid)
    return ttrpc


def look_after_crash(stores: Stores) -> None:
    """Check what a crash may have damaged; a failure of the check itself is logged."""
    from kontti.engine.checkup import after_crash

    log.warning("the last daemon did not stop in order: looking through what is kept")
    try:
        found = after_crash(stores)
    except (Error, OSError):
        log.exception("looking through what is kept")
    else:
        log.info("looked through what is kept: %d findings", len(found))


async def open_stores(settings: DaemonSettings, stack: contextlib.AsyncExitStack) -> Stores:
    """The stores, ours alone; raises Error where a plugin that is required is not there."""
    stores = await asyncio.to_thread(Stores, settings.stores)
    stack.push_async_callback(asyncio.to_thread, stores.close)
    # two daemons on one state directory would bury each other's tasks
    stack.enter_context(RootLock(settings.runtime.state, settings.stores.owner, "state"))
    if settings.required_plugins:
        check_required(all_rows(settings, stores), settings.required_plugins)
    return stores


def keep_logs(settings: DaemonSettings, stores: Stores) -> LogKeeper:
    """What removes the logs of containers that are deleted; those that a crash left go now."""
    keeper = LogKeeper(settings.stores.root, stores.metadata.containers, stores.exchange)
    keeper.sweep()
    return keeper


async def start_tasks(settings: DaemonSettings, stores: Stores, mounts: Mounts) -> TaskManager:
    """The task manager, its zygote warm."""
    choice = await asyncio.to_thread(choose, settings.runtime.state)
    runtime = replace(
        settings.runtime,
        runtime=choice.binary,
        hide_unified=choice.hide_unified,
        open_files=process.raise_open_files(),
    )
    records, checkpoints = stores.metadata.containers, stores.checkpoints()
    tasks = TaskManager(runtime, records, stores.exchange, checkpoints, mounts=mounts)
    tasks.shims.sandboxes.recorded = partial(is_sandbox, stores.metadata)
    await tasks.shims.zygote.start()
    return tasks


def all_rows(settings: DaemonSettings, stores: Stores) -> list[Plugin]:
    """Every plugin, those that other processes are last."""
    # clients find the root, and what is in it, by what the content store tells
    content = os.path.join(settings.stores.root, CONTENT_DIR)
    exports = {f"{CONTENT}.content": {"root": content}, OPT: {"path": settings.opt_path}}
    capable = stores.capabilities()
    builtins = plugin_rows(stores.failures, settings.disabled_plugins, exports, capable)
    return [*builtins, *settings.proxies]


def prefer(path: str) -> None:
    """Have programs and libraries below ``path`` found first, by us and by what we start."""
    for name, folder in (("PATH", "bin"), ("LD_LIBRARY_PATH", "lib")):
        old = os.environ.get(name, os.defpath if name == "PATH" else "")
        os.environ[name] = os.pathsep.join(filter(None, (os.path.join(path, folder), old)))


@dataclass(frozen=True, slots=True)
class Parts:
    """What a daemon is made of."""

    stores: Stores
    tasks: TaskManager
    sandboxers: Mapping[str, Controller]
    streams: StreamManager
    mounts: Mounts
    transfers: Bridge


def make_backends(settings: DaemonSettings, parts: Parts) -> Backends:
    """What the services adapt."""

    def plugins() -> Sequence[Plugin]:
        return all_rows(settings, parts.stores)

    def runtime_info(name: str, options: bytes) -> bytes:
        own = parts.tasks.shims.is_own(name, "")
        return read_info(OWN_RUNTIME if own else name, options)

    return Backends(
        metadata=parts.stores.metadata,
        collect=parts.stores.gc.collect_and_wait,
        exchange=parts.stores.exchange,
        applier=parts.stores.client_applier,
        comparer=parts.stores.comparer,
        tasks=parts.tasks,
        sandboxers=parts.sandboxers,
        streams=parts.streams,
        mounts=parts.mounts,
        transfers=partial(make_transfers, settings.transfer, parts.stores),
        transfer_bridge=parts.transfers,
        server=ServerInfo(server_uuid(settings.stores.root)),
        plugins=plugins,
        runtime_info=runtime_info,
    )


def make_transfers(settings: TransferSettings, stores: Stores) -> Transfers:
    """What the Transfer service adapts, loaded when it is first asked for."""
    from kontti.services.transfer import Transfers
    from kontti.transfer.local import LocalTransfers

    parts = stores.transfer_parts()
    local = LocalTransfers(parts, settings.rates, settings.supported, settings.lazy)
    return Transfers(local, settings.directories)


def is_sandbox(metadata: Metadata, namespace: str, id: str) -> bool:
    """Whether there is a record of a sandbox."""
    try:
        metadata.sandboxes(Scope.of(namespace)).get(id)
    except NotFound:
        return False
    return True


def server_uuid(root: str) -> str:
    """This root's identity, made once."""
    path = os.path.join(root, UUID_DIR, "uuid")
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        return str(uuid.UUID(file.read().strip()))
    made = str(uuid.uuid4())
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    with open(path, "w") as file:
        file.write(made)
    return made


def notify(address: str, state: str) -> None:
    """sd_notify(3), where systemd started us."""
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        target = "\0" + address[1:] if address.startswith("@") else address
        with contextlib.suppress(OSError):
            sender.sendto(state.encode(), target)
