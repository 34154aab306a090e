"""``ctr run``."""

from __future__ import annotations

from kontti.cmd.ctr.flags import RUN
from kontti.cmd.ctr.grammar import Call, Command, UsageError
from kontti.cmd.ctr.running import (
    Run,
    clean_up,
    create_task,
    delete_container,
    follow,
)
from kontti.cmd.ctr.session import connect
from kontti.cmd.ctr.specs import check_arguments, create_container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.wire.messages.services.containers.v1.containers import Container


def run(call: Call) -> int:
    """Create a container and its task, run it, and with --rm remove what was made."""
    if call.bool("rm") and call.bool("detach"):
        raise UsageError("flags --detach and --rm cannot be specified together")
    if "dump-config" in call.given and not call.str("dump-config"):
        raise UsageError("file name is required with --dump-config")
    check_arguments(call)
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
            code = follow(client, create_task(client, record, plan), plan)
        except BaseException:
            if call.bool("rm"):
                clean_up(client, record)
            raise
        if call.bool("rm"):
            delete_container(client, record)
    return code


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
