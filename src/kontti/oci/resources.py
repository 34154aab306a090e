"""Options for what a container is given: devices, limits, its cgroup."""

from __future__ import annotations

from kontti.errors import InvalidArgument
from kontti.oci import devices
from kontti.oci.base import linux_of, process_of, resources_of
from kontti.oci.default import unix_device_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.oci.base import Context, Option
    from kontti.oci.spec import Cpu, Rlimit, Spec


def with_host_devices() -> Option:
    """Every device of the host, and leave to use them and any other."""

    def option(_context: Context, spec: Spec) -> None:
        linux = linux_of(spec)
        linux.setdefault("devices", []).extend(devices.host_devices())
        resources_of(spec)["devices"] = [{"allow": True, "access": "rwm"}]

    return option


def with_default_unix_devices() -> Option:
    """Leave to use /dev/null and the other devices that every container has."""

    def option(_context: Context, spec: Spec) -> None:
        resources_of(spec).setdefault("devices", []).extend(unix_device_rules())

    return option


def with_device(path: str, inside: str = "", access: str = "rwm") -> Option:
    """The host's device at ``path``, or those below it; raises NotFound at once."""
    devices.check_access(access)
    found = devices.devices_at(path, inside)

    def option(_context: Context, spec: Spec) -> None:
        linux_of(spec).setdefault("devices", []).extend(found)
        rules = resources_of(spec).setdefault("devices", [])
        rules.extend(devices.rule_for(device, access) for device in found)

    return option


def with_rlimit(limit: Rlimit) -> Option:
    """A resource limit, in place of the one of its type."""

    def option(_context: Context, spec: Spec) -> None:
        process = process_of(spec)
        others = [one for one in process.get("rlimits", []) if one.get("type") != limit["type"]]
        process["rlimits"] = [*others, limit]

    return option


def with_memory_limit(limit: int) -> Option:
    """A memory limit in bytes."""

    def option(_context: Context, spec: Spec) -> None:
        resources_of(spec).setdefault("memory", {})["limit"] = limit

    return option


def with_cpu(settings: Cpu) -> Option:
    """Shares, quota and period (in microseconds), cpus and mems: those that are given."""

    def option(_context: Context, spec: Spec) -> None:
        resources_of(spec).setdefault("cpu", {}).update(settings)

    return option


def with_cpus(count: float) -> Option:
    """As much time as ``count`` CPUs have; raises InvalidArgument unless it is positive."""
    if not 0 < count < 1 << 20:
        raise InvalidArgument(f"cannot use {count} cpus")
    period = 100_000
    return with_cpu({"quota": int(count * period), "period": period})


def with_pids_limit(limit: int) -> Option:
    """A limit of the number of processes."""

    def option(_context: Context, spec: Spec) -> None:
        resources_of(spec)["pids"] = {"limit": limit}

    return option


def with_rdt(name: str) -> Option:
    """A class of Intel's resource director, by name."""

    def option(_context: Context, spec: Spec) -> None:
        linux_of(spec)["intelRdt"] = {"closID": name}

    return option


def with_cgroup(path: str) -> Option:
    """The cgroup's path; "" for none."""

    def option(_context: Context, spec: Spec) -> None:
        linux = linux_of(spec)
        linux.pop("cgroupsPath", None)
        if path:
            linux["cgroupsPath"] = path

    return option
