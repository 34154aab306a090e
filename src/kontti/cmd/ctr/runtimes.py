"""The runtime's options, by ctr's flags."""

from __future__ import annotations

from kontti.cmd.ctr.grammar import Call, UsageError
from kontti.wire.messages.types.runc.options.oci import Options
from kontti.wire.typeurl import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.wire.messages.google import Any

RUNC_LIKE = ("io.containerd.runc.v2", "io.containerd.kontti.v1")
"""Runtimes whose shims take runc's options."""


def runtime_options(call: Call) -> Any | None:
    """runc's options for the runtimes that take them, a configuration file's path for others.

    Raises UsageError for a flag that its runtime does not take.
    """
    runtime = call.str("runtime")
    if runtime in RUNC_LIKE:
        return pack(runc_options(call))
    if call.str("runc-binary") or call.bool("runc-systemd-cgroup"):
        raise UsageError(
            "specifying runc-binary and runc-systemd-cgroup is only supported for "
            f'"{RUNC_LIKE[0]}" runtime'
        )
    path = call.str("runtime-config-path")
    if not path:
        return None
    from kontti.wire.messages.types.runtimeoptions.v1.api import Options as GenericOptions

    return pack(GenericOptions(config_path=path))


def runc_options(call: Call) -> Options:
    """Options of runc's shim; raises UsageError."""
    systemd = call.bool("runc-systemd-cgroup")
    if systemd and not call.flags.get("cgroup"):
        # runc makes /machine.slice/foo-deadbeef.scope of it
        raise UsageError(
            "option --runc-systemd-cgroup requires --cgroup to be set, "
            'e.g. "machine.slice:foo:deadbeef"'
        )
    return Options(
        binary_name=call.str("runc-binary"), root=call.str("runc-root"), systemd_cgroup=systemd
    )
