"""``ctr install``."""

from __future__ import annotations

from kontti.cmd.ctr.grammar import BOOL, Call, Command, Flag, UsageError
from kontti.cmd.ctr.session import INTROSPECTION, connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.client.client import Client


def install(call: Call) -> None:
    """Put an image's programs into the daemon's directory for them, or another."""
    from kontti.client.content import RemoteContent
    from kontti.client.convert import descriptor_from_wire
    from kontti.cmd.ctr.images import get
    from kontti.images.install import Target
    from kontti.images.install import install as run
    from kontti.images.platforms import default, only

    name = call.arg(0, "please provide an image reference to install")
    with connect(call) as client:
        image = descriptor_from_wire(get(client, name).target)
        path = call.str("path") or managed_path(client)
        target = Target(path, call.bool("libs"), call.bool("replace"))
        run(RemoteContent(client), image, only(default()), target)


def managed_path(client: Client) -> str:
    """The directory that the daemon looks for programs in."""
    from kontti.wire.messages.services.introspection.v1.introspection import (
        PluginsRequest,
        PluginsResponse,
    )

    request = PluginsRequest(filters=["id==opt"])
    found = client.unary(INTROSPECTION + "Plugins", request, PluginsResponse).plugins
    if len(found) != 1:
        raise UsageError("opt service not enabled")
    path = found[0].exports.get("path", "")
    if not path:
        raise UsageError("opt path not exported")
    return path


COMMANDS = Command(
    "install",
    install,
    "install a new package",
    args="<ref>",
    flags=[
        Flag("libs,l", BOOL, "install libs from the image"),
        Flag("replace,r", BOOL, "replace any binaries or libs in the opt directory"),
        Flag("path", help="set an optional install path other than the managed opt directory"),
    ],
)
