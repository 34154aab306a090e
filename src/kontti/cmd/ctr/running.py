"""A task from creation to deletion, as ``run``, ``tasks start`` and ``attach`` need it."""

from __future__ import annotations

from kontti.client.client import FOREVER, Client
from kontti.cmd.ctr.session import CONTAINERS, SNAPSHOTS, TASKS
from kontti.cmd.ctr.stdio import Fifos, Streams, streams
from kontti.errors import Error, NotFound
from kontti.wire.messages.google import Empty
from kontti.wire.messages.services.containers.v1.containers import (
    Container,
    DeleteContainerRequest,
)
from kontti.wire.messages.services.snapshots.v1.snapshots import (
    MountsRequest,
    MountsResponse,
    RemoveSnapshotRequest,
)
from kontti.wire.messages.services.tasks.v1.tasks import (
    CloseIORequest,
    CreateTaskRequest,
    CreateTaskResponse,
    DeleteResponse,
    DeleteTaskRequest,
    GetRequest,
    GetResponse,
    KillRequest,
    ResizePtyRequest,
    StartRequest,
    StartResponse,
    WaitRequest,
    WaitResponse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.wire.messages.google import Any
    from kontti.wire.messages.types.descriptor import Descriptor
    from kontti.wire.messages.types.task.task import Process


class Run:
    """How a task is to be run: anew, or from ``checkpoint``."""

    __slots__ = (
        "checkpoint",
        "detach",
        "fifo_dir",
        "id",
        "log_uri",
        "no_pivot",
        "null_io",
        "pid_file",
        "tty",
    )

    def __init__(
        self,
        *,
        id: str,
        detach: bool = False,
        null_io: bool = False,
        log_uri: str = "",
        fifo_dir: str = "",
        pid_file: str = "",
        no_pivot: bool = False,
        tty: bool = False,
    ) -> None:
        self.id = id
        self.detach = detach
        self.null_io = null_io
        self.log_uri = log_uri
        self.fifo_dir = fifo_dir
        self.pid_file = pid_file
        self.no_pivot = no_pivot
        self.tty = tty
        self.checkpoint: Descriptor | None = None


def create_task(client: Client, record: Container, run: Run) -> Streams:
    """Have the daemon create the task; gives its streams. A failure leaves none."""
    run.tty = run.tty or wants_terminal(record)
    io = streams(run.id, null=run.null_io, log_uri=run.log_uri, directory=run.fifo_dir, tty=run.tty)
    try:
        rootfs = []
        if record.snapshotter and record.snapshot_key:
            asked = MountsRequest(snapshotter=record.snapshotter, key=record.snapshot_key)
            rootfs = client.unary(SNAPSHOTS + "Mounts", asked, MountsResponse).mounts
        request = CreateTaskRequest(
            container_id=run.id,
            rootfs=rootfs,
            stdin=io.stdin,
            stdout=io.stdout,
            stderr=io.stderr,
            terminal=io.terminal,
            checkpoint=run.checkpoint,
            options=task_options(record, run),
        )
        made = client.unary(TASKS + "Create", request, CreateTaskResponse)
        note_pid(client, run, made.pid)
    except BaseException:
        io.close()
        raise
    return io


def note_pid(client: Client, run: Run, pid: int) -> None:
    """Write the pid file, where one is wanted; a task whose pid nobody can have is deleted."""
    if not run.pid_file:
        return
    try:
        with open(run.pid_file, "w") as file:
            file.write(str(pid))
    except BaseException:
        delete_task(client, run.id)
        raise


def wants_terminal(record: Container) -> bool:
    """Whether the container's spec has a terminal."""
    return record.spec is not None and b'"terminal":true' in record.spec.value.replace(b" ", b"")


def task_options(record: Container, run: Run) -> Any | None:
    """The container's runtime options with what the flags change."""
    from kontti.wire.messages.types.runc.options.oci import Options
    from kontti.wire.typeurl import name_of, pack

    packed = record.runtime.options if record.runtime else None
    if not run.no_pivot:
        return packed
    known = packed is not None and name_of(packed.type_url) == Options.NAME
    options = Options.decode(packed.value) if known and packed is not None else Options()
    options.no_pivot_root = True
    return pack(options)


def follow(client: Client, io: Streams, run: Run) -> int:
    """Start the task and, unless detached, stay until it ends; its exit code."""
    attach_calls(client, io, run.id, "")
    try:
        if not run.detach:
            io.prepare()
        client.unary(TASKS + "Start", StartRequest(container_id=run.id), StartResponse)
    except BaseException:
        delete_task(client, run.id)
        io.close()
        raise
    if run.detach:
        return 0
    try:
        io.start()
        request = WaitRequest(container_id=run.id)
        ended = client.unary(TASKS + "Wait", request, WaitResponse, timeout=FOREVER)
        io.finish()
        delete_task(client, run.id)
    finally:
        io.close()
    return ended.exit_status


def attach_calls(client: Client, io: Streams, id: str, exec_id: str) -> None:
    """Have the end of our stdin, our signals and our terminal's size reach the process."""

    def quietly(method: str, request: CloseIORequest | KillRequest | ResizePtyRequest) -> None:
        try:
            client.unary(TASKS + method, request, Empty)
        except Error:
            return  # it has ended meanwhile

    io.close_stdin = lambda: quietly(
        "CloseIO", CloseIORequest(container_id=id, exec_id=exec_id, stdin=True)
    )
    io.forward = lambda number: quietly(
        "Kill", KillRequest(container_id=id, exec_id=exec_id, signal=number)
    )
    io.resize = lambda width, height: quietly(
        "ResizePty", ResizePtyRequest(container_id=id, exec_id=exec_id, width=width, height=height)
    )


def delete_task(client: Client, id: str) -> None:
    """Delete a task; one that is gone is no error."""
    try:
        client.unary(TASKS + "Delete", DeleteTaskRequest(container_id=id), DeleteResponse)
    except NotFound:
        return


def detach(client: Client, id: str) -> None:
    """Take a container out of the network that --cni put it into."""
    from kontti.cmd.ctr import cni

    cni.Attachment(f"{client.namespace}-{id}").remove()


def has_network(record: Container) -> bool:
    """Whether the container was made with --cni."""
    if not record.extensions:
        return False  # most have none
    from kontti.cmd.ctr import cni

    return cni.wanted(record.extensions)


def delete_container(client: Client, record: Container) -> None:
    """Delete a container, its network and its snapshot."""
    if has_network(record):
        detach(client, record.id)
    if record.snapshotter and record.snapshot_key:
        request = RemoveSnapshotRequest(snapshotter=record.snapshotter, key=record.snapshot_key)
        try:
            client.unary(SNAPSHOTS + "Remove", request, Empty)
        except NotFound:
            pass
    client.unary(CONTAINERS + "Delete", DeleteContainerRequest(id=record.id), Empty)


def attach_existing(client: Client, process: Process) -> int:
    """Copy a task's FIFOs until it ends; its exit code."""
    io = Fifos.existing(process.stdin, process.stdout, process.stderr, tty=process.terminal)
    attach_calls(client, io, process.container_id, "")
    try:
        io.start()
        request = WaitRequest(container_id=process.container_id)
        ended = client.unary(TASKS + "Wait", request, WaitResponse, timeout=FOREVER)
        io.finish()
        delete_task(client, process.container_id)
    finally:
        io.close()
    return ended.exit_status


def clean_up(client: Client, record: Container) -> None:
    """After a failed run: what it made goes too, but not from under a task that goes on.

    A second failure does not hide the first.
    """
    try:
        client.unary(TASKS + "Get", GetRequest(container_id=record.id), GetResponse)
    except NotFound:
        pass
    except Error:
        return
    else:
        return
    try:
        delete_container(client, record)
    except Error:
        return
