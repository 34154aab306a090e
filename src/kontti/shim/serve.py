"""A shim's life: from its socket to its last answer."""

from __future__ import annotations

import os
import signal

from kontti.errors import Error
from kontti.linux import cgroups, libc, process
from kontti.shim.container import Host
from kontti.shim.loop import Loop
from kontti.shim.publisher import Publisher
from kontti.shim.server import SANDBOX, SERVICES, Server
from kontti.shim.service import TaskService

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from kontti.shim.server import Answer, Handler

UNIFIED = "/sys/fs/cgroup/unified"
LINGER_SECONDS = 3.0


class Settings:
    """What a shim is told when it is made."""

    __slots__ = ("hide_unified", "namespace", "runtime", "sealed", "socket_path", "ttrpc_address")

    def __init__(
        self,
        namespace: str,
        socket_path: str,
        ttrpc_address: str,
        runtime: str,
        *,
        hide_unified: bool,
        sealed: dict[str, str],
    ) -> None:
        self.namespace = namespace
        self.socket_path = socket_path
        self.ttrpc_address = ttrpc_address
        self.runtime = runtime
        self.hide_unified = hide_unified
        self.sealed = sealed


def serve(settings: Settings, listener: socket.socket) -> None:
    """Keep containers until told to shut down. Returns when all is answered and published."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    process.set_child_subreaper()
    libc.prctl_set_name("kontti-shim")
    if settings.hide_unified:
        hide_unified_tree()
    service: TaskService

    loop = Loop(lambda pid, status: service.reaped(pid, status))
    publisher = Publisher(loop, settings.ttrpc_address, settings.namespace)
    host = Host(loop, settings.namespace, settings.runtime, settings.sealed)

    def shutdown() -> None:
        server.close()
        _unlink(settings.socket_path)
        publisher.on_idle = loop.stop
        # the answer to Shutdown itself is sent after this returns
        loop.later(0.0 if publisher.idle else LINGER_SECONDS, loop.stop)

    service = TaskService(host, publisher, shutdown)
    services: dict[str, Handler] = dict.fromkeys(SERVICES, service.handle)

    def sandbox(method: str, payload: bytes, answer: Answer) -> None:
        # loaded already where a zygote forked us; of others, few are a sandbox
        from kontti.shim.sandbox import SandboxService

        services[SANDBOX] = SandboxService(loop, service, shutdown).handle
        services[SANDBOX](method, payload, answer)

    services[SANDBOX] = sandbox
    server = Server(loop, listener, services)
    loop.run()
    for connection in list(server.connections):
        connection.flush()


def join_cgroup(path: str) -> None:
    """Live in the control group ``path``, "" for where we are; raises Error."""
    if not path:
        return
    try:
        cgroups.join(path, os.getpid())
    except FileNotFoundError:
        raise Error(f"failed to load cgroup {path:.200}: no such group") from None
    except OSError as error:
        raise Error(f"failed to join cgroup {path:.200}: {error.strerror}") from None


def hide_unified_tree() -> None:
    """Live in a mount namespace of our own without the v2 tree beside v1.

    crun up to 1.8 refuses a hybrid host; runtimes are started from here, so they do not see it.
    """
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_SLAVE, None)
    libc.umount2(UNIFIED, libc.MNT_DETACH)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
