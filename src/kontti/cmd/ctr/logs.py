"""``ctr containers start`` and ``logs``: a task in the background, its output kept."""

from __future__ import annotations

import os

from kontti.cmd.ctr.grammar import Call, UsageError
from kontti.cmd.ctr.lookup import LOG_LABEL, STATUSES, STOPPED, container, task
from kontti.cmd.ctr.output import write_log
from kontti.cmd.ctr.session import CONTAINERS, INTROSPECTION, connect, namespace_of
from kontti.errors import FailedPrecondition, NotFound
from kontti.wire import log_uri
from kontti.wire.messages.google import FieldMask
from kontti.wire.messages.services.containers.v1.containers import (
    Container,
    UpdateContainerRequest,
    UpdateContainerResponse,
)
from kontti.wire.messages.services.introspection.v1.introspection import (
    PluginsRequest,
    PluginsResponse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.client.client import Client

DEFAULT_ROOT = "/var/lib/containerd"
CREATED = 1
PLUGINS = (
    "type==io.containerd.content.v1,id==content",
    "type==io.containerd.internal.v1,id==kontti-log",
)


def start(call: Call) -> int:
    """Start a container's task in the background, its output kept for ``logs``."""
    from kontti.cmd.ctr.running import Run, create_task, follow

    id = call.arg(0, "container id must be provided")
    with connect(call) as client:
        record = container(client, id)
        make_way(client, id)
        uri = choose(client, call, id)
        note(client, record, uri)
        plan = Run(id=id, detach=True, log_uri=uri, pid_file=call.str("pid-file"))
        return follow(client, create_task(client, record, plan), plan)


def make_way(client: Client, id: str) -> None:
    """Delete a task that has ended; raises FailedPrecondition where there is another."""
    from kontti.cmd.ctr.running import delete_task

    try:
        found = task(client, id)
    except NotFound:
        return
    if found.status not in (STOPPED, CREATED):
        state = STATUSES[found.status].lower()
        raise FailedPrecondition(f"container {id} is {state} already")
    delete_task(client, id)


def choose(client: Client, call: Call, id: str) -> str:
    """Where the output is to go: below the daemon's root, said as that daemon understands it.

    Raises InvalidArgument, FailedPrecondition.
    """
    options = log_uri.options_of(call.list("log-opt"))
    log_uri.Limits().changed(options)
    request = PluginsRequest(filters=list(PLUGINS))
    found = client.unary(INTROSPECTION + "Plugins", request, PluginsResponse).plugins
    roots = [plugin.exports["root"] for plugin in found if plugin.exports.get("root")]
    root = os.path.dirname(roots[0]) if roots else DEFAULT_ROOT
    folder = os.path.join(root, log_uri.FOLDER, namespace_of(call), id)
    uri = log_uri.make(folder, options)
    if any(plugin.id == "kontti-log" for plugin in found):
        return uri
    from kontti.tasks.streams import logger

    return log_uri.for_logger(uri, log_uri.Limits(), logger())


def note(client: Client, record: Container, uri: str) -> None:
    """Keep with the container where its output goes: a task is forgotten sooner."""
    if record.labels.get(LOG_LABEL) == uri:
        return
    request = UpdateContainerRequest(
        container=Container(id=record.id, labels={LOG_LABEL: uri}),
        update_mask=FieldMask(paths=[f"labels.{LOG_LABEL}"]),
    )
    client.unary(CONTAINERS + "Update", request, UpdateContainerResponse)


def logs(call: Call) -> None:
    """What a container that was started in the background has written; -f goes on to its end."""
    from kontti.logs import times
    from kontti.logs.reader import Query
    from kontti.logs.watch import Watched

    id = call.arg(0, "container id must be provided")
    if call.int("tail") < -1:
        raise UsageError("tail must be a number of lines")
    since, until = times.stamp(call.str("since")), times.stamp(call.str("until"))
    with connect(call) as client:
        folder = folder_of(client, id)
        process = Watched(running_pid(client, id))
    with process:
        wanted = Query(
            follow=call.bool("follow"),
            tail=None if call.int("tail") < 0 else call.int("tail"),
            since=since,
            until=until,
            ended=process.ended,
        )
        write_log(folder, wanted, timestamps=call.bool("timestamps"))


def running_pid(client: Client, id: str) -> int:
    """The pid of a task's first process, 0 where it has ended."""
    try:
        found = task(client, id)
    except NotFound:
        return 0
    return found.pid if found.status != STOPPED else 0


def folder_of(client: Client, id: str) -> str:
    """Where a container's output is kept, by its task or, if that is gone, its label.

    Raises NotFound, and FailedPrecondition where its output went elsewhere.
    """
    record = container(client, id)
    try:
        stdout = task(client, id).stdout
    except NotFound:
        stdout = record.labels.get(LOG_LABEL, "")
    folder = log_uri.folder_of(stdout)
    if not folder:
        where = f"went to {stdout}" if stdout not in ("", log_uri.NONE) else "was not kept"
        raise FailedPrecondition(
            f"output of container {id} {where}: `ctr containers start` keeps it for `logs`"
        )
    if not os.path.isdir(folder):
        raise NotFound(f"output of container {id} in {folder}")
    return folder
