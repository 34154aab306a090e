"""``ctr plugins``."""

from __future__ import annotations

from kontti.cmd.ctr.flags import RUNTIME
from kontti.cmd.ctr.grammar import BOOL, Call, Command, Flag, UsageError
from kontti.cmd.ctr.output import print_json, write_table
from kontti.cmd.ctr.session import INTROSPECTION, connect
from kontti.wire.messages.services.introspection.v1.introspection import (
    Plugin,
    PluginInfoRequest,
    PluginInfoResponse,
    PluginsRequest,
    PluginsResponse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.wire.messages.google import Any

RUNTIME_TYPE = "io.containerd.runtime.v2"
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


def inspect_runtime(call: Call) -> None:
    """What the shim of a runtime is and can, as it tells itself."""
    from kontti.cmd.ctr.runtimes import runtime_options
    from kontti.wire.messages.types.introspection import RuntimeInfo, RuntimeRequest
    from kontti.wire.typeurl import pack, unpack

    asked = RuntimeRequest(runtime_path=call.str("runtime"), options=runtime_options(call))
    request = PluginInfoRequest(type=RUNTIME_TYPE, id="task", options=pack(asked))
    with connect(call) as client:
        answer = client.unary(INTROSPECTION + "PluginInfo", request, PluginInfoResponse)
    if answer.extra is None:
        raise UsageError("the daemon tells nothing of runtimes")
    found = unpack(answer.extra, RuntimeInfo)
    version = found.version
    print_json(
        {
            "Name": found.name,
            "Version": {
                "Version": version.version if version else "",
                "Revision": version.revision if version else "",
            },
            "Options": shown_options(found.options),
            "Features": shown_features(found.features),
            "Annotations": found.annotations or None,
        }
    )


def shown_options(packed: Any | None) -> object:
    """runc's options by name, those that are set; of others the type."""
    from kontti.wire.messages.types.runc.options.oci import Options
    from kontti.wire.typeurl import name_of

    if packed is None:
        return None
    if name_of(packed.type_url) != Options.NAME:
        return {"@type": packed.type_url}
    options = Options.decode(packed.value)
    values = ((name, getattr(options, name)) for _, name, _ in Options.FIELDS)
    return {name: value for name, value in values if value}


def shown_features(packed: Any | None) -> object:
    """What the OCI runtime can, as JSON."""
    import json

    try:
        return json.loads(packed.value) if packed is not None else None
    except ValueError:
        raise UsageError("the runtime's features are no JSON") from None


COMMANDS = (
    Command(
        "list,ls",
        list_,
        "lists containerd plugins",
        flags=[Flag("quiet,q", BOOL), Flag("detailed,d", BOOL)],
    ),
    Command(
        "inspect-runtime",
        inspect_runtime,
        "display runtime info",
        args="[flags]",
        flags=RUNTIME,
    ),
)
