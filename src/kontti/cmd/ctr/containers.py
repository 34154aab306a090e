"""``ctr containers``, and beside the original's commands: start, exec and logs."""

from __future__ import annotations

import base64
import json
import os
import sys
import time

from kontti.cmd.ctr.exec import EXEC
from kontti.cmd.ctr.flags import CREATE
from kontti.cmd.ctr.grammar import BOOL, INT, Call, Command, Flag
from kontti.cmd.ctr.lookup import STATUSES, STOPPED, container, task
from kontti.cmd.ctr.output import error, print_json, rfc3339, write_table
from kontti.cmd.ctr.session import CONTAINERS, connect, key_values, namespace_of
from kontti.errors import Error, NotFound
from kontti.wire.messages.google import FieldMask, Timestamp
from kontti.wire.messages.services.containers.v1.containers import (
    Container,
    ListContainersRequest,
    ListContainersResponse,
    UpdateContainerRequest,
    UpdateContainerResponse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.client.client import Client
    from kontti.wire.messages.google import Any

LOG_DIR = "/var/lib/containerd/logs"
FOLLOW_SECONDS = 0.2


def create(call: Call) -> None:
    """Make a container and its snapshot."""
    from kontti.cmd.ctr.specs import check_arguments, create_container

    check_arguments(call)
    with connect(call) as client:
        create_container(client, call, run=False)


def list_(call: Call) -> None:
    """Id, image and runtime of each."""
    with connect(call) as client:
        request = ListContainersRequest(filters=call.args)
        found = client.unary(CONTAINERS + "List", request, ListContainersResponse).containers
    if call.bool("quiet"):
        for record in found:
            print(record.id)
        return
    rows = [(c.id, c.image or "-", c.runtime.name if c.runtime else "") for c in found]
    write_table([("CONTAINER", "IMAGE", "RUNTIME"), *rows], minimum=4, padding=4)


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
        answer = client.unary(CONTAINERS + "Update", request, UpdateContainerResponse)
    shown = answer.container.labels if answer.container else {}
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


def start(call: Call) -> int:
    """Start a container's task in the background, its output kept for ``logs``."""
    from kontti.cmd.ctr.running import Run, create_task, follow

    id = call.arg(0, "container id must be provided")
    path = log_path(call, id)
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    with connect(call) as client:
        record = container(client, id)
        plan = Run(id=id, detach=True, log_uri=f"file://{path}")
        return follow(client, create_task(client, record, plan), plan)


def log_path(call: Call, id: str) -> str:
    """Where ``start`` has a container's output written."""
    return os.path.join(LOG_DIR, namespace_of(call), f"{id}.log")


def logs(call: Call) -> int | None:
    """What a container that ``start`` started has written so far; -f goes on."""

    id = call.arg(0, "container id must be provided")
    path = log_path(call, id)
    with connect(call) as client:
        container(client, id)
        if not os.path.exists(path):
            raise NotFound(f"no output of container {id} was kept: it was not started by start")
        with open(path, "rb") as file:
            skip_to_tail(file, call.int("tail"))
            while True:
                data = file.read()
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
                if data:
                    continue
                if not call.bool("follow") or _ended(client, id, task, STOPPED):
                    return None
                time.sleep(FOLLOW_SECONDS)


def _ended(client: Client, id: str, task: object, stopped: int) -> bool:
    try:
        return bool(task(client, id).status == stopped)  # type: ignore[operator]
    except NotFound:
        return True


def skip_to_tail(file: object, lines: int) -> None:
    """Leave all but the last ``lines`` out; a negative number leaves nothing out."""
    if lines < 0:
        return
    data = file.read()  # type: ignore[attr-defined]
    kept = data.splitlines(keepends=True)[-lines:] if lines else []
    file.seek(len(data) - sum(map(len, kept)))  # type: ignore[attr-defined]


def checkpoint(call: Call) -> None:
    """Keep a container as an image."""
    from kontti.cmd.ctr.checkpoints import checkpoint_container

    checkpoint_container(call)


def restore(call: Call) -> int:
    """A container of a checkpoint."""
    from kontti.cmd.ctr import checkpoints

    return checkpoints.restore(call)


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
    EXEC,
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
        flags=[Flag("quiet,q", BOOL)],
    ),
    Command(
        "logs",
        logs,
        "print what a container has written",
        args="[flags] CONTAINER",
        flags=[Flag("follow,f", BOOL), Flag("tail", INT, default=-1)],
    ),
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
    Command("start", start, "start a container in the background", args="CONTAINER"),
)
