"""``ctr containers``, and beside the original's commands: start, exec and logs."""

from __future__ import annotations

import base64
import json

from kontti.cmd.ctr.exec import EXEC_ANY
from kontti.cmd.ctr.flags import CREATE
from kontti.cmd.ctr.grammar import BOOL, INT, LIST, Call, Command, Flag
from kontti.cmd.ctr.hints import hint_elsewhere
from kontti.cmd.ctr.lookup import LOG_LABEL, STATUSES, STOPPED, container, task
from kontti.cmd.ctr.output import error, print_json, rfc3339, write_table
from kontti.cmd.ctr.session import CONTAINERS, TASKS, connect, key_values
from kontti.errors import Error, NotFound
from kontti.wire.messages.google import FieldMask, Timestamp
from kontti.wire.messages.services.containers.v1.containers import (
    Container,
    ListContainersRequest,
    ListContainersResponse,
    UpdateContainerRequest,
    UpdateContainerResponse,
)
from kontti.wire.messages.services.tasks.v1.tasks import ListTasksRequest, ListTasksResponse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.client.client import Client
    from kontti.wire.messages.google import Any


def create(call: Call) -> None:
    """Make a container and its snapshot."""
    from kontti.cmd.ctr.specs import check_arguments, create_container

    check_arguments(call)
    with connect(call) as client:
        create_container(client, call, run=False)


def list_(call: Call) -> None:
    """Id, image and runtime of each, and what its task is doing."""
    with connect(call) as client:
        request = ListContainersRequest(filters=call.args)
        found = client.unary(CONTAINERS + "List", request, ListContainersResponse).containers
        if call.bool("quiet"):
            for record in found:
                print(record.id)
            return
        states = statuses(client) if call.bool("status") else {}
        if not found and not call.args:
            hint_elsewhere(client, call, "containers", lambda name: count(client, name))
    rows: list[tuple[str, ...]]
    rows = [(c.id, c.image or "-", c.runtime.name if c.runtime else "") for c in found]
    titles: tuple[str, ...] = ("CONTAINER", "IMAGE", "RUNTIME")
    if call.bool("status"):
        titles = (*titles, "STATUS")
        rows = [(*row, states.get(row[0], "-")) for row in rows]
    write_table([titles, *rows], minimum=4, padding=4)


def statuses(client: Client) -> dict[str, str]:
    """What each task is doing, by container."""
    tasks = client.unary(TASKS + "List", ListTasksRequest(), ListTasksResponse).tasks
    return {process.id: STATUSES[process.status] for process in tasks}


def count(client: Client, namespace: str) -> int:
    """How many containers there are in a namespace."""
    request = ListContainersRequest()
    answer = client.unary(CONTAINERS + "List", request, ListContainersResponse, namespace=namespace)
    return len(answer.containers)


def info(call: Call) -> None:
    """A container's record as JSON."""
    id = call.arg(0, "container id must be provided")
    with connect(call) as client:
        record = container(client, id)
    spec = json.loads(record.spec.value) if record.spec else None
    print_json(spec if call.bool("spec") else plain(record, spec))


def plain(record: Container, spec: object) -> dict[str, object]:
    """A record with the names that the original prints."""
    runtime = record.runtime
    options = any_json(runtime.options) if runtime and runtime.options else None
    return {
        "ID": record.id,
        "Labels": record.labels,
        "Image": record.image,
        "Runtime": {"Name": runtime.name if runtime else "", "Options": options},
        "SnapshotKey": record.snapshot_key,
        "Snapshotter": record.snapshotter,
        "CreatedAt": rfc3339(_ns(record.created_at)),
        "UpdatedAt": rfc3339(_ns(record.updated_at)),
        "Extensions": {k: any_json(v) for k, v in record.extensions.items()} or None,
        "Spec": spec,
    }


def any_json(value: Any) -> dict[str, str]:
    """A typed value as JSON."""
    shown = {"type_url": value.type_url}
    if value.value:
        shown["value"] = base64.b64encode(value.value).decode()
    return shown


def _ns(stamp: Timestamp | None) -> int:
    return stamp.seconds * 10**9 + stamp.nanos if stamp else 0


def label(call: Call) -> None:
    """Set and clear labels; prints what the container has then."""
    id = call.arg(0, "container id must be provided")
    labels = key_values(call.args[1:])
    request = UpdateContainerRequest(
        container=Container(id=id, labels=labels),
        update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
    )
    with connect(call) as client:
        # an update that names no field is one of them all
        if labels:
            answer = client.unary(CONTAINERS + "Update", request, UpdateContainerResponse)
            shown = answer.container.labels if answer.container else {}
        else:
            shown = container(client, id).labels
    print(",".join(f"{key}={value}" for key, value in shown.items()))


def delete(call: Call) -> None:
    """Delete containers that have no running task, with their snapshots."""
    call.arg(0, "must specify at least one container to delete")
    failure: Error | None = None
    with connect(call) as client:
        for id in call.args:
            try:
                delete_one(client, id, keep=call.bool("keep-snapshot"))
            except Error as problem:
                failure = failure or problem
                error(f'failed to delete container "{id}"', problem.message)
    if failure is not None:
        raise failure


def delete_one(client: Client, id: str, *, keep: bool) -> None:
    """Delete one, with its task where that has stopped."""
    from kontti.cmd.ctr.running import delete_container, delete_task

    record = container(client, id)
    try:
        found = task(client, id)
    except NotFound:
        pass
    else:
        if STATUSES[found.status] not in ("STOPPED", "CREATED") and found.status != STOPPED:
            state = f"{STATUSES[found.status].lower()} 0 0001-01-01 00:00:00 +0000 UTC"
            raise Error(f"cannot delete a non stopped container: {{{state}}}")
        delete_task(client, id)
    if keep:
        record.snapshot_key = ""
    delete_container(client, record)
    delete_log(record)


def delete_log(record: Container) -> None:
    """Delete what was kept of a container's output. kontti's daemon has done it, others do not."""
    if LOG_LABEL not in record.labels:
        return
    from kontti.shim.log_files import remove_all
    from kontti.wire.log_uri import folder_of

    folder = folder_of(record.labels[LOG_LABEL])
    if folder:
        remove_all(folder)


def start(call: Call) -> int:
    """Start a container's task in the background."""
    from kontti.cmd.ctr import logs

    return logs.start(call)


def print_logs(call: Call) -> None:
    """What a container has written."""
    from kontti.cmd.ctr import logs

    logs.logs(call)


def checkpoint(call: Call) -> None:
    """Keep a container as an image."""
    from kontti.cmd.ctr.checkpoints import checkpoint_container

    checkpoint_container(call)


def restore(call: Call) -> int:
    """A container of a checkpoint."""
    from kontti.cmd.ctr import checkpoints

    return checkpoints.restore(call)


START = Command(
    "start",
    start,
    "start a container in the background, its output kept for logs",
    args="[flags] CONTAINER",
    flags=[
        Flag("log-opt", LIST, "how much is kept: max-size=10m, max-file=5, compress=true"),
        Flag("pid-file", help="file path to write the task's pid"),
    ],
)
LOGS = Command(
    "logs",
    print_logs,
    "print what a container has written",
    args="[flags] CONTAINER",
    flags=[
        Flag("follow,f", BOOL, "go on to the container's end"),
        Flag("tail,n", INT, "only the last lines", default=-1),
        Flag("since", help="from a time on (2006-01-02T15:04:05Z), or 10m for ten minutes ago"),
        Flag("until", help="up to a time, or 10m for ten minutes ago"),
        Flag("timestamps,t", BOOL, "say when each line was written"),
    ],
)
COMMANDS = (
    Command(
        "checkpoint",
        checkpoint,
        "checkpoint a container",
        args="CONTAINER REF",
        flags=[
            Flag("rw", BOOL, "include the rw layer in the checkpoint"),
            Flag("image", BOOL, "include the image in the checkpoint"),
            Flag("task", BOOL, "checkpoint container task"),
        ],
    ),
    Command(
        "create",
        create,
        "create container",
        args="[flags] Image|RootFS CONTAINER [COMMAND] [ARG...]",
        flags=CREATE,
        passthrough=True,
    ),
    Command(
        "delete,del,remove,rm",
        delete,
        "delete one or more existing containers",
        args="[flags] CONTAINER [CONTAINER, ...]",
        flags=[Flag("keep-snapshot", BOOL)],
    ),
    EXEC_ANY,
    Command(
        "info", info, "get info about a container", args="CONTAINER", flags=[Flag("spec", BOOL)]
    ),
    Command(
        "label",
        label,
        "set and clear labels for a container",
        args="CONTAINER [<key>=<value>, ...]",
    ),
    Command(
        "list,ls",
        list_,
        "list containers",
        args="[flags] [<filter>, ...]",
        flags=[Flag("quiet,q", BOOL), Flag("status,s", BOOL, "show what each task is doing")],
    ),
    LOGS,
    Command(
        "restore",
        restore,
        "restore a container from checkpoint",
        args="CONTAINER REF",
        flags=[
            Flag("rw", BOOL, "restore the rw layer from the checkpoint"),
            Flag("live", BOOL, "restore the runtime and memory data from the checkpoint"),
        ],
    ),
    START,
)
