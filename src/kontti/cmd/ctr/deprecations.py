"""``ctr deprecations``."""

from __future__ import annotations

from kontti.cmd.ctr.grammar import Call, Command, Flag
from kontti.cmd.ctr.output import print_json, rfc3339, write_table
from kontti.cmd.ctr.session import INTROSPECTION, connect
from kontti.wire.messages.google import Empty
from kontti.wire.messages.services.introspection.v1.introspection import ServerResponse


def list_(call: Call) -> None:
    """What deprecated features the server has seen in use."""
    with connect(call) as client:
        server = client.unary(INTROSPECTION + "Server", Empty(), ServerResponse)
    found = [
        {
            "id": w.id,
            "lastOccurrence": rfc3339(
                w.last_occurrence.seconds * 10**9 + w.last_occurrence.nanos
                if w.last_occurrence
                else 0
            ),
            "message": w.message,
        }
        for w in server.deprecations
    ]
    if call.str("format") == "json":
        print_json(found)
        return
    rows = [(w["id"], w["lastOccurrence"], w["message"]) for w in found]
    if rows:
        write_table([("ID", "LAST OCCURRENCE", "MESSAGE"), *rows])


COMMANDS = (
    Command("list,ls", list_, "list deprecation warnings", flags=[Flag("format", help="json")]),
)
