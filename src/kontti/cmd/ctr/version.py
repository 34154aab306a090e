"""``ctr version``."""

from __future__ import annotations

import kontti
from kontti.cmd.ctr.grammar import Call, Command
from kontti.cmd.ctr.session import INTROSPECTION, VERSION, connect
from kontti.wire.messages.google import Empty
from kontti.wire.messages.services.introspection.v1.introspection import ServerResponse
from kontti.wire.messages.services.version.v1.version import VersionResponse


def version(call: Call) -> None:
    """What the client is, then what the server is."""
    print("Client:")
    print(f"  Version:  {kontti.__version__}")
    print("  Revision: kontti")
    print("  Go version: none (Python)")
    print(flush=True)
    with connect(call) as client:
        answer = client.unary(VERSION + "Version", Empty(), VersionResponse)
        server = client.unary(INTROSPECTION + "Server", Empty(), ServerResponse)
    print("Server:")
    print(f"  Version:  {answer.version}")
    print(f"  Revision: {answer.revision}")
    print(f"  UUID: {server.uuid}")


COMMANDS = Command("version", version, "print the client and server versions")
