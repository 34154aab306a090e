"""Taking things out of the backends: only what no record names, and one failure stops no other.

What fails stays behind, and the next collection looks through the whole backend for it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from kontti.errors import DeadlineExceeded, Error, NotFound
from kontti.metadata.backing import Backing
from kontti.metadata.leases import CONTENT
from kontti.metadata.pauses import breathing
from kontti.metadata.unseen import look_through_content, look_through_snapshots
from kontti.snapshots.base import Snapshotter
from kontti.values import Digest

log = logging.getLogger(__name__)
PATIENCE = 5.0
"""Seconds to wait for whoever works on the same thing: there is a next collection."""


def remove_blob(backing: Backing, digest: Digest) -> None:
    """Delete a blob's file unless a namespace has it."""
    with backing.locks.hold(("blob", digest), timeout=PATIENCE):
        with backing.database.read() as connection:
            query = "SELECT 1 FROM blobs WHERE digest = ? LIMIT 1"
            if connection.execute(query, (digest,)).fetchone() is not None:
                return
        backing.readers.drop()
        with contextlib.suppress(NotFound):
            backing.content.delete(digest)


def remove_snapshot(backing: Backing, snapshotter: str, name: str) -> None:
    """Remove a snapshot from its backend unless a namespace has it."""
    with backing.locks.hold(("backend", snapshotter, name), timeout=PATIENCE):
        with backing.database.read() as connection:
            query = "SELECT 1 FROM snapshots WHERE snapshotter = ? AND backend = ? LIMIT 1"
            if connection.execute(query, (snapshotter, name)).fetchone() is not None:
                return
        with contextlib.suppress(NotFound):
            backing.snapshotters[snapshotter].remove(name)
        backing.unclean.add(snapshotter)


def abort_ingest(backing: Backing, ref: str) -> None:
    """Throw an ingest of the content store away."""
    with contextlib.suppress(NotFound):
        backing.content.abort(ref)


def attempt(backing: Backing, what: str, action: Callable[[], None]) -> None:
    """Perform ``action``; where it fails, leave the thing to the next collection."""
    try:
        action()
    except (Error, OSError) as error:
        log.warning("%s stays: %s", what, error)
        backing.leftovers.set()


def ask(backing: Backing, snapshotter: str, what: str, action: Callable[[], None]) -> None:
    """``attempt`` at a snapshotter, which is asked no more once it was too late with an answer."""
    if snapshotter in backing.silent:
        backing.leftovers.set()
        return

    def act() -> None:
        try:
            action()
        except DeadlineExceeded:
            backing.silent.add(snapshotter)
            raise

    attempt(backing, what, act)


def remove_blobs(backing: Backing, digests: Iterable[Digest]) -> None:
    """Every one that no namespace has."""
    for digest in breathing(digests, 32):
        attempt(backing, f"blob {digest}", partial(remove_blob, backing, digest))


def remove_snapshots(backing: Backing, name: str, backends: set[str]) -> None:
    """Every one that no namespace has, children before parents."""
    if name in backing.snapshotters and backends:
        remove = partial(_remove_all, backing, name, backends)
        ask(backing, name, f"snapshots of {name}", remove)


def clean_up(backing: Backing) -> None:
    """Have the backends free what was removed from them, by a collection or by name."""
    for name in sorted(backing.unclean):
        ask(backing, name, f"removed snapshots of {name}", partial(_clean_up, backing, name))


def _clean_up(backing: Backing, name: str) -> None:
    # before, not after: what is removed meanwhile may not be freed by this
    backing.unclean.discard(name)
    try:
        backing.snapshotters[name].cleanup()
    except (Error, OSError):
        backing.unclean.add(name)
        raise


def _remove_all(backing: Backing, name: str, backends: set[str]) -> None:
    found = {i.name: i.parent for i in backing.snapshotters[name].walk() if i.name in backends}
    for backend in breathing(children_first(found), 32):
        what = f"snapshot {backend} of {name}"
        ask(backing, name, what, partial(remove_snapshot, backing, name, backend))


def children_first(parents: Mapping[str, str]) -> list[str]:
    """The names in ``parents`` (a name to its parent's), each before its own parent.

    A backend that claims a circle of parents gets them in some order.
    """
    children = dict.fromkeys(parents, 0)
    for parent in parents.values():
        if parent in children:
            children[parent] += 1
    ready = [name for name, count in children.items() if not count]
    ordered: list[str] = []
    while ready:
        name = ready.pop()
        ordered.append(name)
        parent = parents[name]
        if parent in children:
            children[parent] -= 1
            if not children[parent]:
                ready.append(parent)
    seen = set(ordered)
    return ordered + [name for name in parents if name not in seen]


def remove_orphans(backing: Backing) -> None:
    """Remove from the backends what no record names, such as a crash leaves."""
    attempt(backing, "orphaned blobs", partial(_blob_orphans, backing))
    for name, snapshotter in backing.snapshotters.items():
        look = partial(_snapshot_orphans, backing, name, snapshotter)
        ask(backing, name, f"orphans of {name}", look)
    attempt(backing, "orphaned ingests", partial(_ingest_orphans, backing))


def _snapshot_orphans(backing: Backing, name: str, snapshotter: Snapshotter) -> None:
    look_through_snapshots(backing, name)
    # in this order: what is found and in flight no more has its record by the time records are read
    found = {info.name for info in snapshotter.walk()}
    in_flight = backing.in_flight.names(name)
    with backing.database.read() as connection:
        query = (
            "SELECT backend FROM snapshots WHERE snapshotter = ?1 "
            "UNION SELECT backend FROM commits WHERE snapshotter = ?1"
        )
        recorded = {backend for (backend,) in connection.execute(query, (name,))}
    remove_snapshots(backing, name, found - in_flight - recorded)


def _blob_orphans(backing: Backing) -> None:
    look_through_content(backing)
    found = [info.digest for info in backing.content.walk()]
    with backing.database.read() as connection:
        recorded = {d for (d,) in connection.execute("SELECT DISTINCT digest FROM blobs")}
    remove_blobs(backing, (d for d in found if d not in recorded))


def _ingest_orphans(backing: Backing) -> None:
    if CONTENT in backing.unseen:
        return
    # an ingest's record is made before the ingest
    found = [status.ref for status in backing.content.list_statuses()]
    with backing.database.read() as connection:
        recorded = {b for (b,) in connection.execute("SELECT backend FROM ingests")}
    for ref in found:
        if ref not in recorded:
            attempt(backing, f"ingest {ref}", partial(abort_ingest, backing, ref))
