"""cgroup metrics as the table that ``ctr tasks metrics`` prints."""

from __future__ import annotations

from kontti.errors import Unimplemented
from kontti.wire.typeurl import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kontti.wire.messages.google import Any
    from kontti.wire.protobuf import Message

V1 = "io.containerd.cgroups.v1.Metrics"
V2 = "io.containerd.cgroups.v2.Metrics"


def decode(data: Any) -> Message:
    """The metrics message; raises Unimplemented for a type that is not known."""
    name = name_of(data.type_url)
    if name == V1:
        from kontti.wire.messages.cgroups.v1.metrics import Metrics as MetricsV1

        return MetricsV1.decode(data.value)
    if name == V2:
        from kontti.wire.messages.cgroups.v2.metrics import Metrics as MetricsV2

        return MetricsV2.decode(data.value)
    raise Unimplemented(f"metrics of type {data.type_url}")


def rows_of(message: Message) -> Iterator[tuple[str, str]]:
    """Name and value of each figure that the original prints."""
    table = _V1 if message.NAME == V1 else _V2
    for name, path in table:
        value = _get(message, path)
        if value is not None:
            yield name, f"[{' '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _get(message: object, path: str) -> object:
    for part in path.split("."):
        if message is None:
            return None
        message = getattr(message, part)
    return message


_V1 = (
    ("memory.usage_in_bytes", "memory.usage.usage"),
    ("memory.limit_in_bytes", "memory.usage.limit"),
    ("memory.stat.cache", "memory.cache"),
    ("cpuacct.usage", "cpu.usage.total"),
    ("cpuacct.usage_percpu", "cpu.usage.per_cpu"),
    ("pids.current", "pids.current"),
    ("pids.limit", "pids.limit"),
)
_V2 = (
    ("pids.current", "pids.current"),
    ("pids.limit", "pids.limit"),
    ("cpu.usage_usec", "cpu.usage_usec"),
    ("cpu.user_usec", "cpu.user_usec"),
    ("cpu.system_usec", "cpu.system_usec"),
    ("cpu.nr_periods", "cpu.nr_periods"),
    ("cpu.nr_throttled", "cpu.nr_throttled"),
    ("cpu.throttled_usec", "cpu.throttled_usec"),
    ("memory.usage", "memory.usage"),
    ("memory.usage_limit", "memory.usage_limit"),
    ("memory.swap_usage", "memory.swap_usage"),
    ("memory.swap_limit", "memory.swap_limit"),
)
