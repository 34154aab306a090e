"""``ctr sandboxes``."""

from __future__ import annotations

import json

from kontti.client.convert import nanoseconds
from kontti.cmd.ctr.containers import any_json
from kontti.cmd.ctr.flags import DEFAULT_RUNTIME
from kontti.cmd.ctr.grammar import BOOL, LIST, Call, Command, Flag
from kontti.cmd.ctr.output import error, go_time, print_json, rfc3339, write_table
from kontti.cmd.ctr.session import (
    NAMESPACES,
    SANDBOX_CONTROLLER,
    SANDBOX_STORE,
    connect,
    namespace_of,
)
from kontti.errors import Error, InvalidArgument, NotFound
from kontti.wire.messages.google import Any
from kontti.wire.messages.services.namespaces.v1.namespace import (
    GetNamespaceRequest,
    GetNamespaceResponse,
)
from kontti.wire.messages.services.sandbox.v1 import sandbox as api
from kontti.wire.messages.types.sandbox import Sandbox, SandboxRuntime
from kontti.wire.typeurl import SPEC_URL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.client.client import Client

SANDBOXER_LABEL = "containerd.io/defaults/sandboxer"
EMPTY_URL = "google.protobuf.Empty"


def run(call: Call) -> None:
    """Make a sandbox of a file with its OCI spec, and start it; prints its id."""
    path = call.arg(0, "pod config and sandbox id must be provided")
    id = call.arg(1, "sandbox id must be provided")
    with open(path, "rb") as file:
        try:
            spec = json.dumps(json.load(file)).encode()
        except ValueError as problem:
            raise InvalidArgument(f"failed to parse sandbox config: {problem}") from None
    with connect(call) as client:
        wanted = Sandbox(
            sandbox_id=id,
            runtime=SandboxRuntime(name=call.str("runtime"), options=Any(type_url=EMPTY_URL)),
            spec=Any(type_url=SPEC_URL, value=spec),
            sandboxer=sandboxer(client, namespace_of(call)),
        )
        store = api.StoreCreateRequest(sandbox=wanted)
        client.unary(SANDBOX_STORE + "Create", store, api.StoreCreateResponse)
        try:
            bring_up(client, wanted)
        except BaseException:
            forget(client, id)
            raise
    print(id)


def sandboxer(client: Client, namespace: str) -> str:
    """The controller that the namespace's label names, or the one of shims."""
    request = GetNamespaceRequest(name=namespace)
    found = client.unary(NAMESPACES + "Get", request, GetNamespaceResponse).namespace
    return (found.labels.get(SANDBOXER_LABEL) if found else "") or "shim"


def bring_up(client: Client, wanted: Sandbox) -> None:
    """Have the controller create and start it."""
    id, name = wanted.sandbox_id, wanted.sandboxer
    create = api.ControllerCreateRequest(sandbox_id=id, sandbox=wanted, sandboxer=name)
    client.unary(SANDBOX_CONTROLLER + "Create", create, api.ControllerCreateResponse)
    start = api.ControllerStartRequest(sandbox_id=id, sandboxer=name)
    client.unary(SANDBOX_CONTROLLER + "Start", start, api.ControllerStartResponse)


def forget(client: Client, id: str) -> None:
    """Delete the record; one that is not there is no error."""
    try:
        request = api.StoreDeleteRequest(sandbox_id=id)
        client.unary(SANDBOX_STORE + "Delete", request, api.StoreDeleteResponse)
    except NotFound:
        return


def list_(call: Call) -> None:
    """Id, time and runtime of each."""
    with connect(call) as client:
        request = api.StoreListRequest(filters=call.list("filters"))
        found = client.unary(SANDBOX_STORE + "List", request, api.StoreListResponse).list
    rows = [
        (s.sandbox_id, go_time(nanoseconds(s.created_at)), s.runtime.name if s.runtime else "")
        for s in found
    ]
    write_table([("ID", "CREATED", "RUNTIME"), *rows])


def get(client: Client, id: str) -> Sandbox:
    """A sandbox's record; raises NotFound."""
    request = api.StoreGetRequest(sandbox_id=id)
    answer = client.unary(SANDBOX_STORE + "Get", request, api.StoreGetResponse)
    return answer.sandbox or Sandbox(sandbox_id=id)


def remove(call: Call) -> int:
    """Stop and remove sandboxes with all that is in them; --force where one does not stop."""
    call.arg(0, "sandbox id must be provided")
    failed = 0
    with connect(call) as client:
        for id in call.args:
            try:
                remove_one(client, id, force=call.bool("force"))
            except Error as problem:
                failed = 1
                error(f"failed to remove sandbox {id}", problem.message)
    return failed


def remove_one(client: Client, id: str, *, force: bool) -> None:
    """Stop, shut down and forget one; a controller that does not know it is no error."""
    name = get(client, id).sandboxer
    try:
        stop = api.ControllerStopRequest(sandbox_id=id, sandboxer=name)
        client.unary(SANDBOX_CONTROLLER + "Stop", stop, api.ControllerStopResponse)
    except Error as problem:
        if not force:
            raise
        error(f"failed to stop sandbox {id}", problem.message)
    try:
        shutdown = api.ControllerShutdownRequest(sandbox_id=id, sandboxer=name)
        client.unary(SANDBOX_CONTROLLER + "Shutdown", shutdown, api.ControllerShutdownResponse)
    except NotFound:
        pass  # it is gone already; the record is what is left of it
    forget(client, id)


def info(call: Call) -> None:
    """A sandbox's record as JSON."""
    id = call.arg(0, "sandbox id must be provided")
    with connect(call) as client:
        print_json(plain(get(client, id)))


def plain(sandbox: Sandbox) -> dict[str, object]:
    """A record with the names that the original prints."""
    runtime = sandbox.runtime
    options = any_json(runtime.options) if runtime and runtime.options else None
    return {
        "ID": sandbox.sandbox_id,
        "Labels": sandbox.labels or None,
        "Runtime": {"Name": runtime.name if runtime else "", "Options": options},
        "Spec": any_json(sandbox.spec) if sandbox.spec else None,
        "Sandboxer": sandbox.sandboxer,
        "CreatedAt": rfc3339(nanoseconds(sandbox.created_at)),
        "UpdatedAt": rfc3339(nanoseconds(sandbox.updated_at)),
        "Extensions": {k: any_json(v) for k, v in sandbox.extensions.items()},
    }


COMMANDS = (
    Command(
        "run,create,c,r",
        run,
        "run a new sandbox",
        args="<pod-config.json> <sandbox-id>",
        flags=[Flag("runtime", help="runtime name", default=DEFAULT_RUNTIME)],
    ),
    Command(
        "list,ls",
        list_,
        "list sandboxes",
        flags=[Flag("filters", LIST, "which sandboxes to list")],
    ),
    Command(
        "remove,rm",
        remove,
        "remove sandboxes",
        args="<id> ...",
        flags=[Flag("force,f", BOOL, "remove one that does not stop")],
    ),
    Command("info,i", info, "get info about a sandbox", args="<sandbox id>"),
)
