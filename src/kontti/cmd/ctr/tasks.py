"""``ctr tasks``."""

from __future__ import annotations

import sys

from kontti.cmd.ctr.exec import EXEC
from kontti.cmd.ctr.grammar import BOOL, Call, Command, Flag, UsageError
from kontti.cmd.ctr.lookup import STATUSES, STOP_SIGNAL_LABEL, STOPPED, container, task
from kontti.cmd.ctr.output import error, go_time, print_json, table, warn
from kontti.cmd.ctr.running import Run, attach_existing, create_task, follow
from kontti.cmd.ctr.session import TASKS, connect
from kontti.cmd.ctr.stdio import remove_fifos
from kontti.errors import Error, FailedPrecondition, NotFound
from kontti.wire.messages.google import Empty
from kontti.wire.messages.services.tasks.v1.tasks import (
    DeleteProcessRequest,
    DeleteResponse,
    DeleteTaskRequest,
    KillRequest,
    ListPidsRequest,
    ListPidsResponse,
    ListTasksRequest,
    ListTasksResponse,
    MetricsRequest,
    MetricsResponse,
    PauseTaskRequest,
    ResumeTaskRequest,
    WaitRequest,
    WaitResponse,
)
from kontti.wire.messages.types.metrics import Metric

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.client.client import Client


def list_(call: Call) -> None:
    """Container, pid and status of each task."""
    with connect(call) as client:
        tasks = client.unary(TASKS + "List", ListTasksRequest(), ListTasksResponse).tasks
    if call.bool("quiet"):
        for process in tasks:
            print(process.id)
        return
    rows: list[tuple[str, ...]] = [("TASK", "PID", "STATUS", "")]
    rows += [(p.id, str(p.pid), STATUSES[p.status]) for p in tasks]
    sys.stdout.write(table(rows, minimum=4, padding=4))


def start(call: Call) -> int:
    """Create and start a container's task; without --detach stay with it."""
    id = call.arg(0, "container id must be provided")
    with connect(call) as client:
        record = container(client, id)
        run = Run(
            id=id,
            detach=call.bool("detach"),
            null_io=call.bool("null-io"),
            log_uri=call.str("log-uri"),
            fifo_dir=call.str("fifo-dir"),
            pid_file=call.str("pid-file"),
            no_pivot=call.bool("no-pivot"),
        )
        return follow(client, create_task(client, record, run), run)


def kill(call: Call) -> None:
    """Send a signal: the one asked for, or the image's stop signal."""
    id = call.arg(0, "container id must be provided")
    with connect(call) as client:
        record = container(client, id)
        text = call.str("signal") or record.labels.get(STOP_SIGNAL_LABEL, "") or "SIGTERM"
        request = KillRequest(
            container_id=id,
            exec_id=call.str("exec-id"),
            signal=signal_of(text),
            all=call.bool("all"),
        )
        task(client, id)
        client.unary(TASKS + "Kill", request, Empty)


def signal_of(text: str) -> int:
    """A signal's number by its name or number; raises UsageError."""
    from kontti.linux.process import signal_number

    try:
        return signal_number(text)
    except ValueError:
        raise UsageError(f'unknown signal "{text}"') from None


def pause(call: Call) -> None:
    """Freeze a container's processes."""
    id = call.arg(0, "container id must be provided")
    with connect(call) as client:
        task(client, id)
        client.unary(TASKS + "Pause", PauseTaskRequest(container_id=id), Empty)


def resume(call: Call) -> None:
    """Thaw a container's processes."""
    id = call.arg(0, "container id must be provided")
    with connect(call) as client:
        task(client, id)
        client.unary(TASKS + "Resume", ResumeTaskRequest(container_id=id), Empty)


def ps(call: Call) -> None:
    """Pids, and what the runtime says of each."""
    from kontti.wire.messages.types.runc.options.oci import ProcessDetails
    from kontti.wire.typeurl import name_of

    id = call.arg(0, "container id must be provided")
    with connect(call) as client:
        task(client, id)
        request = ListPidsRequest(container_id=id)
        found = client.unary(TASKS + "ListPids", request, ListPidsResponse).processes
    rows: list[tuple[str, ...]] = [("PID", "INFO")]
    for process in found:
        info = "-"
        if process.info is not None and name_of(process.info.type_url) == ProcessDetails.NAME:
            details = ProcessDetails.decode(process.info.value)
            info = f"&ProcessDetails{{ExecID:{details.exec_id},}}"
        rows.append((str(process.pid), info))
    sys.stdout.write(table(rows, minimum=1, padding=4 if len(rows) else 1))


def metrics(call: Call) -> None:
    """cgroup figures of one task."""
    from kontti.cmd.ctr.figures import decode, rows_of

    id = call.arg(0, "container id must be provided")
    with connect(call) as client:
        task(client, id)
        request = MetricsRequest(filters=[f"id=={id}"])
        found = client.unary(TASKS + "Metrics", request, MetricsResponse).metrics
    metric = found[0] if found else Metric()
    if metric.data is None:
        raise NotFound("no metrics received")
    data = decode(metric.data)
    if call.str("format") == "json":
        from kontti.cmd.ctr.events import plain

        print_json(plain(data))
        return
    stamp = metric.timestamp
    when = go_time(stamp.seconds * 10**9 + stamp.nanos) if stamp else "-"
    heading: list[tuple[str, ...]] = [("ID", "TIMESTAMP", ""), (metric.id, when, "")]
    sys.stdout.write(table(heading, minimum=1, padding=4) + "\n")
    rows = [("METRIC", "VALUE", ""), *((name, value, "") for name, value in rows_of(data))]
    sys.stdout.write(table(rows, minimum=1, padding=4))


def delete(call: Call) -> int:
    """Delete tasks, or one exec'd process; the exit code is the last process's."""
    if call.str("exec-id"):
        id = call.arg(0, "container id must be provided")
        with connect(call) as client:
            request = DeleteProcessRequest(container_id=id, exec_id=call.str("exec-id"))
            answer = client.unary(TASKS + "DeleteProcess", request, DeleteResponse)
        return answer.exit_status
    call.arg(0, "container id must be provided")
    failure: Error | None = None
    code = 0
    with connect(call) as client:
        for id in call.args:
            try:
                code = delete_one(client, id, force=call.bool("force"))
            except Error as problem:
                failure = failure or problem
                error(f"unable to delete {id}", problem.message)
    if failure is not None:
        raise failure
    return code


def delete_one(client: Client, id: str, *, force: bool) -> int:
    """Delete one task, killed first where forced; warns of an exit code that is not 0."""
    if force:
        kill_and_wait(client, id)
    found = task(client, id)
    # one that was to be restored and never was has no process to stop
    if found.status != STOPPED and found.pid and not force:
        state = STATUSES[found.status].lower()
        raise FailedPrecondition(f"task must be stopped before deletion: {state}")
    answer = client.unary(TASKS + "Delete", DeleteTaskRequest(container_id=id), DeleteResponse)
    remove_fifos((found.stdin, found.stdout, found.stderr))
    if answer.exit_status:
        warn(f"task {id} exit with non-zero exit code {answer.exit_status}")
    return 0


def kill_and_wait(client: Client, id: str) -> None:
    """SIGKILL, and wait for the end; a task that has ended already is no error."""
    task(client, id)
    try:
        client.unary(TASKS + "Kill", KillRequest(container_id=id, signal=9, all=True), Empty)
    except (NotFound, FailedPrecondition):
        return
    client.unary(TASKS + "Wait", WaitRequest(container_id=id), WaitResponse, timeout=30.0)


def attach(call: Call) -> int:
    """Take over the streams of a task that another client started with FIFOs."""
    id = call.arg(0, "container id must be provided")
    with connect(call) as client:
        return attach_existing(client, task(client, id))


def checkpoint(call: Call) -> None:
    """Keep a task's state."""
    from kontti.cmd.ctr.checkpoints import checkpoint_task

    checkpoint_task(call)


_START = (
    Flag("no-pivot", BOOL),
    Flag("null-io", BOOL, "send all IO to /dev/null"),
    Flag("log-uri"),
    Flag("fifo-dir"),
    Flag("pid-file"),
    Flag("detach,d", BOOL),
)
COMMANDS = (
    Command("attach", attach, "attach to the IO of a running container", args="CONTAINER"),
    Command(
        "checkpoint",
        checkpoint,
        "checkpoint a container",
        args="[flags] CONTAINER",
        flags=[
            Flag("exit", BOOL, "stop the container after the checkpoint"),
            Flag("image-path", help="path to criu image files"),
            Flag("work-path", help="path to criu work files and logs"),
        ],
    ),
    Command(
        "delete,del,remove,rm",
        delete,
        "delete one or more tasks",
        args="CONTAINER [CONTAINER, ...]",
        flags=[Flag("force,f", BOOL), Flag("exec-id")],
    ),
    EXEC,
    Command("list,ls", list_, "list tasks", flags=[Flag("quiet,q", BOOL)]),
    Command(
        "kill",
        kill,
        "signal a container (default: SIGTERM)",
        args="CONTAINER",
        flags=[Flag("signal,s"), Flag("exec-id"), Flag("all,a", BOOL)],
    ),
    Command(
        "metrics,metric",
        metrics,
        "get a single data point of metrics for a task",
        args="CONTAINER",
        flags=[Flag("format", default="table")],
    ),
    Command("pause", pause, "pause an existing container", args="CONTAINER"),
    Command("ps", ps, "list processes for container", args="CONTAINER"),
    Command("resume", resume, "resume a paused container", args="CONTAINER"),
    Command(
        "start", start, "start a container that has been created", args="CONTAINER", flags=_START
    ),
)
