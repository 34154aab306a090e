"""``ctr shim``: calls of a shim at its own socket, past the daemon."""

from __future__ import annotations

from kontti.client.ttrpc import CLOSED, FOREVER, call, connect
from kontti.cmd.ctr import pprof
from kontti.cmd.ctr.grammar import BOOL, INT, LIST, Call, Command, Flag, Group, UsageError
from kontti.cmd.ctr.output import print_json, rfc3339
from kontti.cmd.ctr.session import CONNECT_SECONDS, namespace_of
from kontti.cmd.ctr.shim_address import candidates, computed
from kontti.errors import Error, Unavailable, Unimplemented
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.typeurl import PROCESS_URL

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from typing import TypeVar

    from kontti.cmd.ctr.stdio import Streams
    from kontti.wire.protobuf import Message

    M = TypeVar("M", bound=Message)

ANSWER_SECONDS = 10.0
RUNTIME_SECONDS = 150.0
"""Of a call that has the shim wait for an OCI runtime."""
VERSIONS = (3, 2)
"""Of the Task service, as they are tried."""
NO_TIME = -62135596800 * 1_000_000_000
"""The time that Go's zero value is, in ns since the epoch."""


class Shim:
    """The shim that a command line names. Each call has a connection of its own."""

    def __init__(self, command: Call) -> None:
        outer = command.globals or command
        self._namespace = namespace_of(command)
        self._addresses: Iterable[str] = candidates(outer)
        self._connecting = outer.float("connect-timeout") or CONNECT_SECONDS
        self._timeout = outer.float("timeout")
        self._versions: tuple[int, ...] = VERSIONS
        if "api-version" in command.given:
            self._versions = (command.int("api-version"),)
            if self._versions[0] not in VERSIONS:
                raise UsageError("api-version must be 2 or 3")

    def call(
        self, method: str, request: Message, response: type[M], timeout: float = ANSWER_SECONDS
    ) -> M:
        """One call of the Task service, of the newest version that the shim has; raises Error.

        The command line's --timeout goes before ``timeout``, in seconds.
        """
        if timeout != FOREVER:
            timeout = self._timeout or timeout
        while True:
            version, *others = self._versions
            name = f"containerd.task.v{version}.Task/{method}"
            try:
                with self._connected() as peer:
                    return call(peer, self._namespace, name, request, response, timeout)
            except Unimplemented:
                if not others:
                    raise
                self._versions = (*others,)

    def _connected(self) -> socket.socket:
        tried = []
        for address in self._addresses:
            try:
                peer = connect(address, self._connecting)
            except Unavailable:
                tried.append(address.replace("\0", "@"))
            else:
                self._addresses = [address]
                return peer
        sockets = " ".join(tried)
        raise Unavailable(f"fail to connect to container shim with sockets: [{sockets}]")


def task_of(command: Call) -> str:
    """The task that is meant: an argument, or that with the shim's own id."""
    id = command.args[0] if command.args else (command.globals or command).str("id")
    if not id:
        raise UsageError("task id must be provided")
    return id


def start(command: Call) -> None:
    """Start a task that is created, or an exec of one."""
    request = api.StartRequest(id=task_of(command), exec_id=command.str("exec-id"))
    Shim(command).call("Start", request, api.StartResponse, RUNTIME_SECONDS)


def delete(command: Call) -> None:
    """Delete a task that has ended, or an exec of one."""
    request = api.DeleteRequest(id=task_of(command), exec_id=command.str("exec-id"))
    deleted = Shim(command).call("Delete", request, api.DeleteResponse, RUNTIME_SECONDS)
    print(f"container deleted and returned exit status {deleted.exit_status}")


def shutdown(command: Call) -> None:
    """Have the shim end, if it has no task."""
    try:
        Shim(command).call("Shutdown", api.ShutdownRequest(), Empty)
    except Unavailable as error:
        # it may be gone before it has answered
        if error.message != CLOSED:
            raise


def state(command: Call) -> None:
    """Print what a process is doing, as JSON."""
    id = command.str("task-id") or (command.globals or command).str("id")
    request = api.StateRequest(id=id, exec_id=command.str("exec-id"))
    print_json(shown(Shim(command).call("State", request, api.StateResponse)))


def shown(found: api.StateResponse) -> dict[str, object]:
    """The fields that say something, in their order, and the time of the end in any case."""
    known = {name: getattr(found, name) for _, name, _ in found.FIELDS if name != "exited_at"}
    fields = {name: value for name, value in known.items() if value}
    exec_id = fields.pop("exec_id", None)
    ended = found.exited_at
    known_end = ended is not None and (ended.seconds or ended.nanos)
    time = ended.seconds * 10**9 + ended.nanos if ended is not None and known_end else NO_TIME
    fields["exited_at"] = rfc3339(time)
    return fields if exec_id is None else {**fields, "exec_id": exec_id}


def exec_(command: Call) -> int:
    """Run a process in a task's container; where attached, its exit code."""
    from kontti.cmd.ctr import shim_exec

    exec_id = command.arg(0, "exec id must be provided")
    outer = command.globals or command
    id = command.str("task-id") or outer.str("id")
    if not id:
        raise UsageError("task id must be provided (--task-id, or the shim's --id)")
    shim = Shim(command)
    spec = shim_exec.read_spec(command)
    io = shim_exec.streams(command)
    request = api.ExecProcessRequest(
        id=id,
        exec_id=exec_id,
        stdin=io.stdin,
        stdout=io.stdout,
        stderr=io.stderr,
        terminal=io.terminal,
        spec=Any(type_url=PROCESS_URL, value=spec),
    )
    try:
        shim.call("Exec", request, Empty, RUNTIME_SECONDS)
        return run_exec(shim, io, (id, exec_id), attach=command.bool("attach"))
    finally:
        io.close()


def run_exec(shim: Shim, io: Streams, ids: tuple[str, str], *, attach: bool) -> int:
    """Start an exec that is added, and where attached stay until it ends and delete it."""
    id, exec_id = ids
    deleted = api.DeleteRequest(id=id, exec_id=exec_id)
    try:
        request = api.StartRequest(id=id, exec_id=exec_id)
        started = shim.call("Start", request, api.StartResponse, RUNTIME_SECONDS)
    except Error:
        quietly(shim, "Delete", deleted)
        raise
    print(f"exec running with pid {started.pid}", flush=True)
    if not attach:
        return 0
    io.close_stdin = lambda: quietly(
        shim, "CloseIO", api.CloseIORequest(id=id, exec_id=exec_id, stdin=True)
    )
    io.forward = lambda number: quietly(
        shim, "Kill", api.KillRequest(id=id, exec_id=exec_id, signal=number)
    )
    io.resize = lambda width, height: quietly(
        shim, "ResizePty", api.ResizePtyRequest(id=id, exec_id=exec_id, width=width, height=height)
    )
    try:
        io.start()
        wait = api.WaitRequest(id=id, exec_id=exec_id)
        ended = shim.call("Wait", wait, api.WaitResponse, FOREVER)
        io.finish()
    finally:
        quietly(shim, "Delete", deleted)
    return ended.exit_status


def quietly(shim: Shim, method: str, request: Message) -> None:
    """A call for a process that may have ended meanwhile."""
    try:
        shim.call(method, request, Empty)
    except Error:
        return


def debug_socket(command: Call) -> str:
    """Where the shim's profiles are."""
    outer = command.globals or command
    if not outer.str("id"):
        raise UsageError("container id must be provided")
    return computed(outer, debug=True)


_EXEC_ID = Flag("exec-id", help="an exec of the task, for the task itself")
_VERSION = Flag("api-version", INT, "of the Task service, 2 or 3, for what the shim has")
_TASK = "[TASK]"
FLAGS = (
    Flag("id", help="shim id"),
    Flag("shim-address", help="shim address, for the one computed of its id"),
)
COMMANDS = (
    Command("delete", delete, "delete a task that has ended", args=_TASK, flags=[_EXEC_ID]),
    Command(
        "exec",
        exec_,
        "run a process in a task's container",
        args="EXEC-ID",
        flags=[
            Flag("stdin", help="path of the FIFO for its stdin"),
            Flag("stdout", help="path of the FIFO for its stdout"),
            Flag("stderr", help="path of the FIFO for its stderr"),
            Flag("tty,t", BOOL, "give it a terminal"),
            Flag("attach,a", BOOL, "stay until it ends, and copy its streams"),
            Flag("env,e", LIST, "variable of its environment, KEY=VALUE"),
            Flag("cwd", help="its working directory"),
            Flag("spec", help="file with its OCI process, as JSON"),
            Flag("task-id", help="the task, for the one of the shim's id"),
        ],
    ),
    Command("start", start, "start a task that is created", args=_TASK, flags=[_EXEC_ID]),
    Command(
        "state",
        state,
        "what a task is doing",
        flags=[
            Flag("task-id,t", help="the task, for the one of the shim's id"),
            _EXEC_ID,
            _VERSION,
        ],
    ),
    Command("shutdown", shutdown, "end a shim that has no task", flags=[_VERSION]),
    Group("pprof", "profiles of a shim, from its debug socket", pprof.commands(debug_socket)),
)
