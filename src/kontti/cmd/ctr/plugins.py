"""``ctr plugins``."""

from __future__ import annotations

from kontti.cmd.ctr.grammar import BOOL, Call, Command, Flag
from kontti.cmd.ctr.output import write_table
from kontti.cmd.ctr.session import INTROSPECTION, connect
from kontti.wire.messages.services.introspection.v1.introspection import (
    Plugin,
    PluginsRequest,
    PluginsResponse,
)

UNIMPLEMENTED = 12
"""gRPC's number."""


def list_(call: Call) -> None:
    """What the daemon has loaded, and what failed to load."""
    with connect(call) as client:
        request = PluginsRequest(filters=call.args)
        plugins = client.unary(INTROSPECTION + "Plugins", request, PluginsResponse).plugins
    if call.bool("quiet"):
        for plugin in plugins:
            print(f"{plugin.type}.{plugin.id}")
    elif call.bool("detailed"):
        for plugin in plugins:
            describe(plugin)
    else:
        rows = [(p.type, p.id, platforms(p), status(p)) for p in plugins]
        write_table([("TYPE", "ID", "PLATFORMS", "STATUS"), *rows], minimum=4, padding=4)


def status(plugin: Plugin) -> str:
    """``ok``, ``error``, or ``skip`` for what the host has no means for."""
    if not plugin.init_err:
        return "ok"
    return "skip" if plugin.init_err.code == UNIMPLEMENTED else "error"


def platforms(plugin: Plugin) -> str:
    """``linux/amd64,...`` or ``-``."""
    names = ("/".join(x for x in (p.os, p.architecture, p.variant) if x) for p in plugin.platforms)
    return ",".join(names) or "-"


def describe(plugin: Plugin) -> None:
    """All that is known of one plugin."""
    rows: list[tuple[str, ...]] = [
        ("Type:", plugin.type),
        ("ID:", plugin.id),
        ("Requires:", ",".join(plugin.requires)),
        ("Platforms:", platforms(plugin)),
        ("Capabilities:", ",".join(plugin.capabilities)),
        *((f"Exports {key}:", value) for key, value in plugin.exports.items()),
    ]
    if plugin.init_err:
        rows.append(("Error:", plugin.init_err.message))
    write_table([row for row in rows if row[1] not in ("", "-")], padding=4)
    print()


COMMANDS = (
    Command(
        "list,ls",
        list_,
        "lists containerd plugins",
        flags=[Flag("quiet,q", BOOL), Flag("detailed,d", BOOL)],
    ),
)
