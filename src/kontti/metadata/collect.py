"""Garbage collection: find what nobody refers to, forget it, delete it; others hardly wait."""

from __future__ import annotations

import time
from functools import partial

from kontti.metadata.backing import Backing
from kontti.metadata.base import Collected
from kontti.metadata.changes import recording
from kontti.metadata.commits import noted
from kontti.metadata.forget import Forgetting, Garbage
from kontti.metadata.marking import find
from kontti.metadata.snapshots import NamespacedSnapshotter
from kontti.metadata.sweep import (
    abort_ingest,
    attempt,
    clean_up,
    remove_blobs,
    remove_orphans,
    remove_snapshots,
)
from kontti.namespaces import Scope
from kontti.values import Digest
from kontti.wire.messages.events.content import ContentDelete
from kontti.wire.messages.events.image import ImageDelete
from kontti.wire.messages.events.snapshot import SnapshotRemove


def collect(backing: Backing) -> Collected:
    """One collection, from mark to the last deleted file; two at a time take turns."""
    with backing.locks.hold("collection"):
        started = time.monotonic()
        backing.silent.clear()
        garbage = mark(backing)
        sweep(backing, garbage)
        if backing.leftovers.is_set():
            backing.leftovers.clear()
            finish_commits(backing)
            remove_orphans(backing)
        clean_up(backing)
        return Collected(
            blobs=len(garbage.blobs),
            snapshots=len(garbage.snapshots),
            leases=len(garbage.leases),
            images=len(garbage.images),
            seconds=time.monotonic() - started,
        )


def finish_commits(backing: Backing) -> None:
    """Make whole, or nothing, the commits of snapshots that were cut short."""
    with backing.database.read() as connection:
        found = noted(connection)
    for made in found:
        # of those that are being made now the makers see to it
        if made.backend in backing.in_flight.names(made.snapshotter):
            continue
        if made.snapshotter in backing.snapshotters:
            scope = Scope(made.namespace, made.lease)
            snapshots = NamespacedSnapshotter(backing, scope, made.snapshotter)
            attempt(backing, f"commit of {made.key}", partial(snapshots.finish, made))


def mark(backing: Backing) -> Garbage:
    """Find what is garbage and forget it.

    The search holds nobody up, and sees one state of the database; what is written after that is
    noted, and saves what it refers to. Records are forgotten in small batches, each before what it
    refers to: what one that is still there needs is there too.
    """
    with recording(backing.database) as changes:
        with backing.database.read() as connection:
            found = find(connection, backing.collectors)
        garbage = Garbage()
        if found.dead or found.held:
            Forgetting(backing, found, changes).into(garbage)
    return garbage


def sweep(backing: Backing, garbage: Garbage) -> None:
    """Delete from the backends what is forgotten, with no lock on the database, and tell."""
    publish = backing.publisher.publish
    for namespace, name in garbage.images:
        publish(namespace, "/images/delete", ImageDelete(name=name))
    by_snapshotter: dict[str, set[str]] = {}
    for _, snapshotter, _, backend in garbage.snapshots:
        by_snapshotter.setdefault(snapshotter, set()).add(backend)
    for snapshotter, backends in by_snapshotter.items():
        remove_snapshots(backing, snapshotter, backends)
    for namespace, snapshotter, key, _ in garbage.snapshots:
        event = SnapshotRemove(key=key, snapshotter=snapshotter)
        publish(namespace, "/snapshot/remove", event)
    remove_blobs(backing, (Digest(digest) for _, digest in garbage.blobs))
    for namespace, digest in garbage.blobs:
        publish(namespace, "/content/delete", ContentDelete(digest=digest))
    for type, held in garbage.held.items():
        collector = backing.collectors[type]
        attempt(backing, f"{type.name.lower()}s", partial(collector.collect, held))
    for _, _, ref in garbage.ingests:
        attempt(backing, f"ingest {ref}", partial(abort_ingest, backing, ref))
