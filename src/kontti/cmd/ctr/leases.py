"""``ctr leases``."""

from __future__ import annotations

import time

from kontti.cmd.ctr.grammar import BOOL, DURATION, Call, Command, Flag
from kontti.cmd.ctr.output import labels_text, rfc3339, write_table
from kontti.cmd.ctr.session import LEASES, connect, expiring, key_values
from kontti.wire.messages.google import Empty
from kontti.wire.messages.services.leases.v1.leases import (
    CreateRequest,
    CreateResponse,
    DeleteRequest,
    ListRequest,
    ListResponse,
)


def create(call: Call) -> None:
    """Make a lease; prints its id."""
    labels = key_values(call.args)
    seconds = call.float("expires")
    if seconds:
        labels |= expiring(seconds)
    name = call.str("id") or f"{time.time_ns()}"
    with connect(call) as client:
        answer = client.unary(
            LEASES + "Create", CreateRequest(id=name, labels=labels), CreateResponse
        )
    print(answer.lease.id if answer.lease else name)


def list_(call: Call) -> None:
    """Leases that match the filters."""
    with connect(call) as client:
        answer = client.unary(LEASES + "List", ListRequest(filters=call.args), ListResponse)
    if call.bool("quiet"):
        for lease in answer.leases:
            print(lease.id)
        return
    rows = []
    for lease in answer.leases:
        stamp = lease.created_at
        created = rfc3339(stamp.seconds * 10**9 + stamp.nanos, fraction=False) if stamp else ""
        rows.append((lease.id, created, labels_text(lease.labels)))
    write_table([("ID", "CREATED AT", "LABELS"), *rows])


def delete(call: Call) -> None:
    """Delete leases; with --sync wait for the collection that follows the last."""
    call.arg(0, "must provide lease ids to delete")
    with connect(call) as client:
        for number, name in enumerate(call.args, 1):
            sync = call.bool("sync") and number == len(call.args)
            client.unary(LEASES + "Delete", DeleteRequest(id=name, sync=sync), Empty)
            print(name)


COMMANDS = (
    Command(
        "list,ls", list_, "list all active leases", args="<filter>", flags=[Flag("quiet,q", BOOL)]
    ),
    Command(
        "create",
        create,
        "create lease",
        args="<label>=<value> ...",
        flags=[Flag("id"), Flag("expires,x", DURATION, default=86400.0)],
    ),
    Command(
        "delete,del,remove,rm",
        delete,
        "delete a lease",
        args="<lease id> ...",
        flags=[Flag("sync", BOOL)],
    ),
)
