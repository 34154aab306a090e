"""A warm process that shims are forked from: everything is imported once, and shared.

Each request is one connection: a line of JSON, answered by the new shim itself with a line of
JSON when it listens. The zygote never waits for a shim.

    {"namespace", "socket", "ttrpc_address", "runtime", "hide_unified", "bundle", "cgroup"}
    {"address", "pid", "version": 3, "protocol": "ttrpc"}  or  {"error", "code"}
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys

from kontti.errors import Error, InvalidArgument
from kontti.linux import process
from kontti.shim.oci_runtime import find
from kontti.shim.serve import Settings, join_cgroup, serve
from kontti.shim.server import listen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

IDLE_SECONDS = 30
SPARES = 2
REQUEST_SECONDS = 5.0
MAX_REQUEST = 64 << 10
_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, SHRINK, GROW, WRITE


def run(path: str, control: int) -> None:
    """Serve requests on the socket ``path`` until ``control`` (a descriptor) ends.

    With ``control`` -1: until nobody has asked for anything for half a minute.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = listen(path)
    listener.setblocking(False)
    spares = Spares(listener, seal_default(), control)
    # pages that all share cost a shim that is no sandbox 20 KiB, and save one that is 600
    import kontti.shim.sandbox  # noqa: F401

    # objects that are never freed keep their pages shared with every shim
    gc.collect()
    gc.disable()
    gc.freeze()
    spares.fork(SPARES)
    watched = [spares.taken_read] + ([control] if control >= 0 else [])
    while True:
        timeout = None if control >= 0 else IDLE_SECONDS
        ready = select.select(watched, [], [], timeout)[0]
        if control in ready or not ready:
            break
        spares.fork(len(os.read(spares.taken_read, 64)))
    os.unlink(path)


class Spares:
    """Processes forked before they are wanted: a request need not wait for a fork.

    Each takes one request from the shared ``listener``, says so by a byte on a pipe, and becomes
    that request's shim; or ends when the zygote does.
    """

    def __init__(self, listener: socket.socket, sealed: dict[str, str], control: int) -> None:
        self._listener = listener
        self._sealed = sealed
        self._control = control
        self.taken_read, self._taken_write = os.pipe2(os.O_CLOEXEC)
        # only the zygote holds the writing end: its end is the zygote's end
        self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC)

    def fork(self, count: int) -> None:
        """Fork ``count`` more."""
        for _ in range(count):
            if process.fork() == 0:
                os.setsid()
                # no child of the zygote: a shim outlives it and is nobody's to wait for
                if process.fork() != 0:
                    os._exit(0)
                self._become()

    def _become(self) -> NoReturn:
        for fd in (self.taken_read, self._life_write, self._control):
            if fd >= 0:
                os.close(fd)
        peer = self._accept()
        try:
            os.write(self._taken_write, b"t")
        except BrokenPipeError:
            pass  # the zygote ended meanwhile; the request is served all the same
        for fd in (self._taken_write, self._life_read):
            os.close(fd)
        self._listener.close()
        become_shim(peer, self._sealed)

    def _accept(self) -> socket.socket:
        while True:
            watched = [self._listener.fileno(), self._life_read]
            if watched[0] in select.select(watched, [], [])[0]:
                try:
                    return self._listener.accept()[0]
                except BlockingIOError:
                    continue  # another spare was quicker
            os._exit(0)


def seal_default() -> dict[str, str]:
    """A sealed copy of crun in memory, by the path it stands for.

    crun copies itself before each container, so that the container cannot write to it; run from a
    sealed memfd it has no need to. Empty where crun is not there.
    """
    try:
        path = find("crun")
        fd = os.memfd_create("crun", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(path, "rb") as source:
            left = os.fstat(source.fileno()).st_size
            while left > 0:
                left -= os.sendfile(fd, source.fileno(), None, left)
        os.fchmod(fd, 0o755)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except (Error, OSError):
        return {}
    return {path: f"/proc/self/fd/{fd}"}


def become_shim(peer: socket.socket, sealed: dict[str, str]) -> NoReturn:
    """In the forked child: read the request, answer it, be a shim until told to shut down."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        settings, listener = prepare(peer, sealed)
        answer(
            peer,
            {
                "address": f"unix://{settings.socket_path}",
                "pid": os.getpid(),
                "version": 3,
                "protocol": "ttrpc",
            },
        )
        peer.close()
        serve(settings, listener)
        code = 0
    except Error as error:
        answer(peer, {"error": error.message, "code": error.code})
    except BaseException as error:  # noqa: BLE001 nothing may return into the zygote's loop
        answer(peer, {"error": f"{type(error).__name__}: {error}", "code": 13})
    finally:
        os._exit(code)


def prepare(peer: socket.socket, sealed: dict[str, str]) -> tuple[Settings, socket.socket]:
    """What the request asks for, and the shim's listening socket."""
    request = read_request(peer)
    bundle = str(request.get("bundle") or "/")
    os.chdir(bundle)
    let_go_of_streams()
    join_cgroup(str(request.get("cgroup") or ""))
    pid = os.getpid()
    settings = Settings(
        str(request["namespace"]),
        str(request["socket"]),
        str(request.get("ttrpc_address") or ""),
        str(request.get("runtime") or ""),
        hide_unified=bool(request.get("hide_unified")),
        # a path through our own pid: the runtime is run from it by a child of ours
        sealed={k: v.replace("self", str(pid)) for k, v in sealed.items()},
    )
    return settings, listen(settings.socket_path)


def let_go_of_streams() -> None:
    """Keep nobody's pipe open: what we inherited may be a program's that waits for its end."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        # a reader of the bundle's log gets what we have to say (containerd's shim contract)
        # (opened for both: that waits for no reader, and outlives one)
        errors = os.open("log", os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        errors = os.dup(null)
    for fd, number in ((null, 0), (null, 1), (errors, 2)):
        os.dup2(fd, number)
    for fd in {null, errors} - {0, 1, 2}:
        os.close(fd)


def read_request(peer: socket.socket) -> dict[str, Any]:
    """One line of JSON; raises InvalidArgument."""
    peer.settimeout(REQUEST_SECONDS)
    data = b""
    while not data.endswith(b"\n"):
        chunk = peer.recv(MAX_REQUEST)
        data += chunk
        if not chunk or len(data) > MAX_REQUEST:
            raise InvalidArgument("zygote: malformed request")
    try:
        request = json.loads(data)
    except ValueError:
        raise InvalidArgument("zygote: request is not JSON") from None
    if not isinstance(request, dict) or "namespace" not in request or "socket" not in request:
        raise InvalidArgument("zygote: incomplete request")
    return request


def answer(peer: socket.socket, result: dict[str, object]) -> None:
    """Send a line of JSON; a client that is gone is no concern of ours."""
    try:
        peer.sendall(json.dumps(result).encode() + b"\n")
    except OSError:
        return


def main() -> None:
    """``zygote SOCKET [CONTROL_FD [OPEN_FILES]]``."""
    limit = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    if limit:
        # containers start with what their daemon was given, not with what it took
        process.set_open_files(limit)
    run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else -1)


if __name__ == "__main__":
    main()
