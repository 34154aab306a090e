"""containerd-shim-kontti-v1: the shim as a binary that any containerd can drive.

Runtime v2 shim contract: ``start``, in the bundle, leaves a server and prints where it listens;
``delete`` clears what a dead one left and prints how its process ended; without an action it
serves in the foreground.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys

from kontti.errors import Error, InvalidArgument
from kontti.linux import cgroups, fs, process
from kontti.shim import bootstrap
from kontti.shim.cleanup import clean
from kontti.shim.loop import complain
from kontti.shim.oci_runtime import find
from kontti.shim.serve import Settings, hide_unified_tree, join_cgroup, serve
from kontti.shim.server import listen
from kontti.shim.zygote import let_go_of_streams
from kontti.version import VERSION
from kontti.wire.messages.google import Any
from kontti.wire.messages.types.introspection import RuntimeInfo, RuntimeVersion
from kontti.wire.messages.types.runc.options.oci import Options
from kontti.wire.typeurl import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.shim.bootstrap import Flags

NAME = "io.containerd.kontti.v1"
FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
INHERITED = 3
"""The descriptor of the listening socket, where no -socket names one."""
MAX_INPUT = 10 << 20
FEATURES_SECONDS = 10.0
FEATURES_BYTES = 1 << 20


def main() -> int:
    """Do what the command line asks; the exit code."""
    try:
        flags = bootstrap.parse_flags(sys.argv[1:])
        sys.stdout.buffer.write(perform(flags))
        sys.stdout.buffer.flush()
    except (Error, OSError) as error:
        message = error.message if isinstance(error, Error) else str(error)
        sys.stderr.write(f"{NAME}: {message}\n")
        return 1
    return 0


def perform(flags: Flags) -> bytes:
    """One action; what to print. Raises Error, OSError."""
    if flags.switches & {"v", "version"}:
        return version_text().encode()
    if "info" in flags.switches:
        return info(read_input()).encode()
    if not flags.text("namespace"):
        raise InvalidArgument("shim namespace cannot be empty")
    if flags.action == "start":
        return start(flags, read_input())
    if flags.action == "delete":
        return delete(flags)
    if flags.action:
        raise InvalidArgument(f"unknown action {flags.action!r:.40}")
    foreground(flags)
    return b""


def version_text() -> str:
    """Ours and Python's."""
    python = sys.version.split()[0]
    name = os.path.basename(sys.argv[0])
    return f"{name}:\n  Version:  {VERSION}\n  Python version: {python}\n\n"


def read_input() -> bytes:
    """Standard input, none where it is a person's terminal."""
    return b"" if sys.stdin.isatty() else sys.stdin.buffer.read(MAX_INPUT)


def info(data: bytes) -> RuntimeInfo:
    """What this shim is and what the OCI runtime can do; ``data`` is an Any of its options."""
    packed = Any.decode(data)
    named = name_of(packed.type_url) == Options.NAME
    options = Options.decode(packed.value) if named else Options()
    features = read_features(find(options.binary_name))
    return RuntimeInfo(
        name=NAME,
        version=RuntimeVersion(version=VERSION),
        options=packed if named else None,
        features=Any(type_url=FEATURES_URL, value=features) if features else None,
    )


def read_features(binary: str) -> bytes:
    """``runc features``, as JSON; nothing from a runtime that does not know the command."""
    try:
        done = process.run([binary, "features"], timeout=FEATURES_SECONDS, limit=FEATURES_BYTES)
        json.loads(done.stdout)
    except (OSError, ValueError):
        return b""
    return done.stdout if done.returncode == 0 else b""


def start(flags: Flags, data: bytes) -> bytes:
    """Have a shim for the bundle that is the working directory: a new one, or its group's."""
    id, namespace = flags.text("id"), flags.text("namespace")
    if not id:
        raise InvalidArgument("shim id cannot be empty")
    params = bootstrap.read_params(data, id, namespace)
    folder, ttrpc = "", os.environ.get("TTRPC_ADDRESS", "")
    daemon = flags.text("address") or os.environ.get("GRPC_ADDRESS", "")
    if params is not None:
        folder = params.socket_dir or ""
        ttrpc = params.containerd_ttrpc_address or ttrpc
        daemon = params.containerd_grpc_address or daemon
    group = bootstrap.group_of(os.getcwd(), id)
    path = bootstrap.socket_path(folder, daemon, namespace, group)
    ensure(settings_of(namespace, path, ttrpc), bootstrap.read_options(data, params).shim_cgroup)
    address = f"unix://{path}"
    fs.atomic_write("address", address.encode(), sync=False)
    return bootstrap.answer(address, params, os.environ)


def settings_of(namespace: str, path: str, ttrpc: str) -> Settings:
    """What a shim of the command line is told; which OCI runtime, its options may say."""
    hide = cgroups.hybrid_with_controllers()
    return Settings(namespace, path, ttrpc, "", hide_unified=hide, sealed={})


def ensure(settings: Settings, cgroup: str) -> None:
    """Launch a shim in the control group ``cgroup``, if none listens yet."""
    folder = os.path.dirname(settings.socket_path)
    os.makedirs(folder, mode=0o711, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # of two containers of a group that start at once, one launches and the other finds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not listens(settings.socket_path):
            join_cgroup(cgroup)
            launch(settings)
    finally:
        os.close(lock)


def listens(path: str) -> bool:
    """Whether somebody accepts at a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except BlockingIOError:
            return True  # it has many to accept already
        except OSError:
            return False
    return True


def launch(settings: Settings) -> None:
    """Leave a shim that is nobody's child and already listens; raises OSError."""
    listener = listen(settings.socket_path)
    child = process.fork()
    if child == 0:
        os.setsid()
        if process.fork() == 0:
            become(settings, listener)
        os._exit(0)
    process.wait(child, None)
    listener.close()


def become(settings: Settings, listener: socket.socket) -> None:
    """In the forked process: serve until told to shut down, and end."""
    code = 1
    try:
        let_go_of_streams()
        close_others(listener.fileno())
        serve(settings, listener)
        code = 0
    except BaseException as error:  # noqa: BLE001 nothing may return into the command line's code
        complain(f"{type(error).__name__}: {error}")
        unlink(settings.socket_path)
    finally:
        os._exit(code)


def close_others(kept: int) -> None:
    """Close what was inherited; whoever waits for the end of a pipe is not to wait for us."""
    last = max(int(name) for name in os.listdir("/proc/self/fd"))
    os.closerange(3, kept)
    os.closerange(kept + 1, last + 1)


def unlink(path: str) -> None:
    """Remove a file, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def delete(flags: Flags) -> bytes:
    """Clear what a dead shim left of its container; raises Error where that cannot be done."""
    id = flags.text("id")
    if not id:
        raise InvalidArgument("shim id cannot be empty")
    bundle = os.path.abspath(flags.text("bundle") or os.getcwd())
    if cgroups.hybrid_with_controllers():
        hide_unified_tree()
    response = clean(flags.text("namespace"), id, bundle, "")
    forget_socket(bundle)
    return response.encode()


def forget_socket(bundle: str) -> None:
    """Remove the socket that the bundle's shim listened on, unless others of its group go on."""
    try:
        with open(os.path.join(bundle, "address")) as file:
            path = file.read().removeprefix("unix://")
    except (OSError, ValueError):
        return
    if path and not listens(path):
        unlink(path)


def foreground(flags: Flags) -> None:
    """Serve on -socket, or on the listening socket that is descriptor 3."""
    path = flags.text("socket").removeprefix("unix://")
    listener = listen(path) if path else socket.socket(fileno=INHERITED)
    where = path or str(listener.getsockname())
    serve(
        settings_of(flags.text("namespace"), where, os.environ.get("TTRPC_ADDRESS", "")), listener
    )


if __name__ == "__main__":
    sys.exit(main())
