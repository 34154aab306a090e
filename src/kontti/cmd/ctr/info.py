"""``ctr info``."""

from __future__ import annotations

from kontti.cmd.ctr.grammar import Call, Command
from kontti.cmd.ctr.output import print_json
from kontti.cmd.ctr.session import INTROSPECTION, connect
from kontti.wire.messages.google import Empty
from kontti.wire.messages.services.introspection.v1.introspection import ServerResponse


def info(call: Call) -> None:
    """The server's identity."""
    with connect(call) as client:
        server = client.unary(INTROSPECTION + "Server", Empty(), ServerResponse)
    print_json({"server": {"uuid": server.uuid, "pid": server.pid, "pidns": server.pidns}})


COMMANDS = Command("info", info, "print the server info")
