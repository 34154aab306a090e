"""What commands share: the connection, the names of the services, the snapshotter's flag."""

from __future__ import annotations

import time

from kontti.client.client import Client
from kontti.cmd.ctr.grammar import STRING, Flag
from kontti.cmd.ctr.output import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.cmd.ctr.grammar import Call

CONTAINERS = "containerd.services.containers.v1.Containers/"
CONTENT = "containerd.services.content.v1.Content/"
DIFF = "containerd.services.diff.v1.Diff/"
EVENTS = "containerd.services.events.v1.Events/"
IMAGES = "containerd.services.images.v1.Images/"
INTROSPECTION = "containerd.services.introspection.v1.Introspection/"
LEASES = "containerd.services.leases.v1.Leases/"
MOUNTS = "containerd.services.mounts.v1.Mounts/"
NAMESPACES = "containerd.services.namespaces.v1.Namespaces/"
SANDBOX_CONTROLLER = "containerd.services.sandbox.v1.Controller/"
SANDBOX_STORE = "containerd.services.sandbox.v1.Store/"
SNAPSHOTS = "containerd.services.snapshots.v1.Snapshots/"
TASKS = "containerd.services.tasks.v1.Tasks/"
VERSION = "containerd.services.version.v1.Version/"

CONNECT_SECONDS = 10.0
DAY = 24 * 3600.0
EXPIRE = "containerd.io/gc.expire"
DEFAULT_SNAPSHOTTER = "overlayfs"
SNAPSHOTTER = Flag("snapshotter", STRING, "snapshotter name", env="CONTAINERD_SNAPSHOTTER")


def connect(call: Call) -> Client:
    """A connection to the daemon that the global flags name; raises Unavailable."""
    outer = call.globals or call
    return Client(
        outer.str("address"),
        namespace=outer.str("namespace"),
        connect_timeout=outer.float("connect-timeout") or CONNECT_SECONDS,
        timeout=outer.float("timeout") or None,
    )


def namespace_of(call: Call) -> str:
    """The namespace that the global flags name."""
    return (call.globals or call).str("namespace")


def expiring(seconds: float) -> dict[str, str]:
    """The label of a lease that is over after ``seconds``, should nobody be left to delete it."""
    return {EXPIRE: rfc3339(time.time_ns() + int(seconds * 1e9), fraction=False)}


def key_values(words: list[str]) -> dict[str, str]:
    """``a=b c d=`` as a mapping: a word without ``=`` has the value of an empty string."""
    pairs = (word.partition("=") for word in words)
    return {key: value for key, _, value in pairs}
