"""``ctr run``."""

from __future__ import annotations

from kontti.cmd.ctr.flags import RUN
from kontti.cmd.ctr.grammar import Call, Command, UsageError
from kontti.cmd.ctr.lookup import task
from kontti.cmd.ctr.output import error
from kontti.cmd.ctr.running import (
    Run,
    clean_up,
    create_task,
    delete_container,
    delete_task,
    detach,
    follow,
)
from kontti.cmd.ctr.session import connect
from kontti.cmd.ctr.specs import check_arguments, create_container
from kontti.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.client.client import Client
    from kontti.cmd.ctr.cni import Json
    from kontti.cmd.ctr.stdio import Streams
    from kontti.wire.messages.services.containers.v1.containers import Container


def run(call: Call) -> int:
    """Create a container and its task, run it, and with --rm remove what was made."""
    if call.bool("rm") and call.bool("detach"):
        raise UsageError("flags --detach and --rm cannot be specified together")
    if "dump-config" in call.given and not call.str("dump-config"):
        raise UsageError("file name is required with --dump-config")
    check_arguments(call)
    network = load_network() if call.bool("cni") else None
    with connect(call) as client:
        record = create_container(client, call, run=True)
        plan = Run(
            id=record.id,
            detach=call.bool("detach"),
            null_io=call.bool("null-io"),
            log_uri=call.str("log-uri"),
            fifo_dir=call.str("fifo-dir"),
            pid_file=call.str("pid-file"),
            no_pivot=call.bool("no-pivot"),
            tty=call.bool("tty"),
        )
        try:
            dump_config(call, record)
            io = create_task(client, record, plan)
            if network is not None:
                attach(client, record.id, io, network)
            code = follow(client, io, plan)
            if network is not None and not plan.detach:
                detach(client, record.id)
        except BaseException:
            if network is not None:
                give_back(client, record.id)
            if call.bool("rm"):
                clean_up(client, record)
            raise
        if call.bool("rm"):
            delete_container(client, record)
    return code


def load_network() -> Json:
    """The network that --cni means, before anything is made."""
    from kontti.cmd.ctr import cni

    return cni.load()


def attach(client: Client, id: str, io: Streams, network: Json) -> None:
    """Give a task that is created a network; where that fails the task is deleted."""
    from kontti.cmd.ctr import cni

    try:
        netns = f"/proc/{task(client, id).pid}/ns/net"
        cni.Attachment(f"{client.namespace}-{id}").add(network, netns)
    except BaseException:
        delete_task(client, id)
        io.close()
        raise


def give_back(client: Client, id: str) -> None:
    """Take a network away after a failure, which a second one does not hide."""
    try:
        detach(client, id)
    except Error as problem:
        error("failed to remove network", problem.message)


def dump_config(call: Call, record: Container) -> None:
    """Write the OCI spec to the file that --dump-config names."""
    if "dump-config" not in call.given:
        return
    import json

    plain = json.loads(record.spec.value) if record.spec else {}
    with open(call.str("dump-config"), "w") as file:
        json.dump(plain, file, indent=2)


COMMANDS = Command(
    "run",
    run,
    "run a container",
    args="[flags] Image|RootFS ID [COMMAND] [ARG...]",
    flags=RUN,
    passthrough=True,
)
