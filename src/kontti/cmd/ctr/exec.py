"""``ctr tasks exec``, which is ``ctr containers exec`` too."""

from __future__ import annotations

import json
import os

from kontti.client.client import FOREVER
from kontti.cmd.ctr.grammar import BOOL, Call, Command, Flag
from kontti.cmd.ctr.lookup import container, task
from kontti.cmd.ctr.running import attach_calls
from kontti.cmd.ctr.session import TASKS, connect
from kontti.cmd.ctr.stdio import Streams, streams
from kontti.errors import FailedPrecondition, NotFound
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.services.tasks.v1.tasks import (
    DeleteProcessRequest,
    DeleteResponse,
    ExecProcessRequest,
    StartRequest,
    StartResponse,
    WaitRequest,
    WaitResponse,
)
from kontti.wire.typeurl import PROCESS_URL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kontti.client.client import Client
    from kontti.wire.messages.services.containers.v1.containers import Container


def exec_(call: Call) -> int:
    """Run a process in a running container, with its output and exit code."""
    id = call.arg(0, "container id must be provided")
    if not call.args[1:]:
        raise FailedPrecondition("a command must be provided")
    exec_id = call.str("exec-id") if "exec-id" in call.given else random_id()
    detach = call.bool("detach")
    with connect(call) as client:
        record = container(client, id)
        task(client, id)
        tty = call.bool("tty")
        spec = process_spec(record, call, tty)
        io = streams(exec_id, log_uri=call.str("log-uri"), directory=call.str("fifo-dir"), tty=tty)
        try:
            return run_exec(client, io, spec, (id, exec_id), detach=detach)
        finally:
            if not detach:
                io.close()


def random_id() -> str:
    """An exec id for a user who does not care."""
    return f"exec-{os.urandom(6).hex()}"


def run_exec(
    client: Client, io: Streams, spec: bytes, ids: tuple[str, str], *, detach: bool
) -> int:
    """Exec, start, wait and delete one process; its exit code, 0 where detached."""
    id, exec_id = ids
    request = ExecProcessRequest(
        container_id=id,
        exec_id=exec_id,
        stdin=io.stdin,
        stdout=io.stdout,
        stderr=io.stderr,
        terminal=io.terminal,
        spec=Any(type_url=PROCESS_URL, value=spec),
    )
    client.unary(TASKS + "Exec", request, Empty)
    deleted = DeleteProcessRequest(container_id=id, exec_id=exec_id)
    try:
        attach_calls(client, io, id, exec_id)
        client.unary(TASKS + "Start", StartRequest(container_id=id, exec_id=exec_id), StartResponse)
        if detach:
            return 0
        io.start()
        wait = WaitRequest(container_id=id, exec_id=exec_id)
        ended = client.unary(TASKS + "Wait", wait, WaitResponse, timeout=FOREVER)
        io.finish()
    finally:
        if not detach:
            delete_quietly(client, deleted)
    return ended.exit_status


def delete_quietly(client: Client, request: DeleteProcessRequest) -> None:
    """Delete an exec; one that is gone is no error."""
    try:
        client.unary(TASKS + "DeleteProcess", request, DeleteResponse)
    except NotFound:
        return


def process_spec(record: Container, call: Call, tty: bool) -> bytes:
    """The container's own process with what the flags change, as JSON."""
    spec = json.loads(record.spec.value) if record.spec else {}
    process = dict(spec.get("process") or {})
    process["terminal"] = tty
    process["args"] = call.args[1:]
    if call.str("cwd"):
        process["cwd"] = call.str("cwd")
    if call.str("user"):
        process["user"] = user_of(record, call)
    return json.dumps(process).encode()


def user_of(record: Container, call: Call) -> dict[str, object]:
    """The user by number, or by name in the container's own passwd."""
    from kontti.cmd.ctr.specs import user_in_snapshot

    with connect(call) as client:
        found = user_in_snapshot(client, record.snapshotter, record.snapshot_key, call.str("user"))
    # the group itself is one of the process's groups, as the original has it
    return {"additionalGids": [found["gid"]], **found}


_EXEC = (
    Flag("cwd"),
    Flag("tty,t", BOOL),
    Flag("detach,d", BOOL),
    Flag("exec-id", required=True),
    Flag("fifo-dir"),
    Flag("log-uri"),
    Flag("user"),
)


def _command(flags: Sequence[Flag]) -> Command:
    return Command(
        "exec",
        exec_,
        "execute additional processes in an existing container",
        args="[flags] CONTAINER CMD [ARG...]",
        flags=flags,
        passthrough=True,
    )


EXEC = _command(_EXEC)
# of `ctr containers`, where the original has none: an id is picked
EXEC_ANY = _command([Flag("exec-id") if flag.names == ("exec-id",) else flag for flag in _EXEC])
