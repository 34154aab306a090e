"""Options for what a container may do: privileges, capabilities, seccomp and AppArmor."""

from __future__ import annotations

from kontti.errors import FailedPrecondition
from kontti.oci import capabilities, seccomp
from kontti.oci.base import linux_of, process_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kontti.oci.base import Context, Option
    from kontti.oci.spec import Spec

_APPARMOR = "/sys/module/apparmor/parameters/enabled"
_KERNEL_VIEWS = ("sysfs", "cgroup", "cgroup2")


def with_privileged() -> Option:
    """All that this process may do: its capabilities, no masked or read-only paths, no seccomp."""
    ours = capabilities.current()

    def option(_context: Context, spec: Spec) -> None:
        process, linux = process_of(spec), linux_of(spec)
        process["capabilities"] = capabilities.same(ours)
        linux.pop("maskedPaths", None)
        linux.pop("readonlyPaths", None)
        linux.pop("seccomp", None)
        process.pop("apparmorProfile", None)
        process.pop("selinuxLabel", None)
        for mount in spec.get("mounts", []):
            if mount.get("type") in _KERNEL_VIEWS:
                mount["options"] = ["rw" if o == "ro" else o for o in mount.get("options", ())]

    return option


def with_added_capabilities(names: Sequence[str]) -> Option:
    """Capabilities beside those that are there; raises InvalidArgument for an unknown one."""
    capabilities.check(names)

    def option(_context: Context, spec: Spec) -> None:
        process = process_of(spec)
        process["capabilities"] = capabilities.added(process.get("capabilities", {}), names)

    return option


def with_dropped_capabilities(names: Sequence[str]) -> Option:
    """Without these capabilities; raises InvalidArgument for an unknown one."""
    capabilities.check(names)

    def option(_context: Context, spec: Spec) -> None:
        process = process_of(spec)
        process["capabilities"] = capabilities.dropped(process.get("capabilities", {}), names)

    return option


def with_new_privileges() -> Option:
    """Set-user-ID programs may gain privileges."""

    def option(_context: Context, spec: Spec) -> None:
        process_of(spec).pop("noNewPrivileges", None)

    return option


def with_default_seccomp() -> Option:
    """The default profile for the capabilities that the spec has when its turn comes."""

    def option(_context: Context, spec: Spec) -> None:
        bounding = process_of(spec).get("capabilities", {}).get("bounding", ())
        linux_of(spec)["seccomp"] = seccomp.default_profile(bounding)

    return option


def with_seccomp_profile(path: str) -> Option:
    """The profile in a file; raises InvalidArgument at once where it is none."""
    profile = seccomp.load_profile(path)

    def option(_context: Context, spec: Spec) -> None:
        linux_of(spec)["seccomp"] = profile

    return option


def with_apparmor_profile(name: str, enabled: str = _APPARMOR) -> Option:
    """A profile that is loaded; raises FailedPrecondition at once on a host without AppArmor."""
    try:
        with open(enabled, encoding="ascii") as file:
            present = file.read(1) == "Y"
    except OSError:
        present = False
    if not present:
        raise FailedPrecondition(f"apparmor profile {name!r:.120}: the host has no AppArmor")

    def option(_context: Context, spec: Spec) -> None:
        process_of(spec)["apparmorProfile"] = name

    return option
