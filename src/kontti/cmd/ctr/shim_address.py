"""Where a shim listens: as it is told, as containerd computes it, or as its bundle says."""

from __future__ import annotations

import hashlib
import os.path

from kontti.cmd.ctr.grammar import UsageError
from kontti.errors import Unimplemented

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kontti.cmd.ctr.grammar import Call
    from kontti.runtime.bundle import Bootstrap, Bundle

SOCKET_DIR = "/run/containerd/s"
UNIX = "unix://"


def candidates(outer: Call) -> Iterator[str]:
    """Where the shim that the group's flags name may listen; raises UsageError where none do.

    A path begins with a NUL byte where the socket is none of the file system.
    """
    id, address = outer.str("id"), outer.str("shim-address")
    if not id and not address:
        raise UsageError("shim ID (--id) or address (--shim-address) must be specified")
    return _candidates(outer, id, address)


def _candidates(outer: Call, id: str, address: str) -> Iterator[str]:
    if address:
        path = address.removeprefix(UNIX)
        yield f"\0{path[1:]}" if path.startswith("@") else path
    if id:
        yield computed(outer)
        # where containerd up to 1.3 had it
        yield "\0" + os.path.join("/containerd-shim", outer.str("namespace"), id, "shim.sock")
        yield from of_bundle(outer, id)


def computed(outer: Call, *, debug: bool = False) -> str:
    """The socket of a shim by the daemon's address, the namespace and the shim's id."""
    words = [
        outer.str("address"),
        outer.str("namespace"),
        outer.str("id"),
        *["debug"][: int(debug)],
    ]
    # as Go joins paths: a word with a slash before it starts no new path
    name = os.path.normpath("/".join(word for word in words if word))
    return os.path.join(SOCKET_DIR, hashlib.sha256(name.encode()).hexdigest())


def of_bundle(outer: Call, id: str) -> Iterator[str]:
    """What is noted in the task's bundle, if the daemon's socket is in its state directory.

    A shim of several tasks has the id of the first, and every bundle tells where it listens.
    Raises InvalidArgument for an id or namespace that none can have.
    """
    from kontti.runtime.bundle import TASK_DIR, Bundle
    from kontti.values import check_identifier

    namespace = outer.str("namespace")
    check_identifier(namespace, "namespace")
    check_identifier(id, "shim id")
    state = os.path.dirname(os.path.abspath(outer.str("address").removeprefix(UNIX)))
    bundle = Bundle(namespace, id, os.path.join(state, TASK_DIR, namespace, id), "")
    found = bundle.bootstrap() or legacy_bootstrap(bundle)
    if found is None:
        return
    if found.protocol != "ttrpc" or not found.address.startswith(UNIX):
        raise Unimplemented(f"shim speaks {found.protocol} at {found.address}")
    yield found.address.removeprefix(UNIX)


def legacy_bootstrap(bundle: Bundle) -> Bootstrap | None:
    """What containerd up to 1.7 notes: an address alone."""
    from kontti.runtime.bundle import Bootstrap

    try:
        with open(os.path.join(bundle.path, "address")) as file:
            return Bootstrap(file.read())
    except (OSError, ValueError):
        return None
