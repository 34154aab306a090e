"""Garbage collection: mark in one transaction, then delete what nobody refers to."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kontti.errors import Error, NotFound
from kontti.metadata.backing import Backing, now
from kontti.metadata.base import Collected
from kontti.metadata.content import remove_unowned
from kontti.metadata.database import load
from kontti.metadata.gc import Graph, Node, Type
from kontti.metadata.leases import CONTENT, INGESTS, SNAPSHOTS
from kontti.values import Digest
from kontti.wire.messages.events.content import ContentDelete
from kontti.wire.messages.events.image import ImageDelete
from kontti.wire.messages.events.snapshot import SnapshotRemove

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Garbage:
    """What a mark found: rows are deleted with it, backends afterwards."""

    blobs: list[tuple[str, str]] = field(default_factory=list)
    snapshots: list[tuple[str, str, str, str]] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    leases: list[tuple[str, str]] = field(default_factory=list)
    ingests: list[tuple[str, str, str]] = field(default_factory=list)


def collect(backing: Backing) -> Collected:
    """One collection, from mark to the last deleted file."""
    started = time.monotonic()
    # creating takes the same lock: nothing is made between the mark and the deletion of rows
    with backing.database.write() as connection:
        garbage = find(connection)
        delete_rows(connection, garbage)
    sweep(backing, garbage)
    return Collected(
        blobs=len(garbage.blobs),
        snapshots=len(garbage.snapshots),
        leases=len(garbage.leases),
        images=len(garbage.images),
        seconds=time.monotonic() - started,
    )


def find(connection: sqlite3.Connection) -> Garbage:
    """Mark, and list what was not reached."""
    graph = Graph(now())
    for namespace, name, digest, labels in connection.execute(
        "SELECT namespace, name, digest, labels FROM images"
    ):
        target = Node(Type.CONTENT, namespace, digest)
        graph.add(Node(Type.IMAGE, namespace, name), load(labels), [target], root=True)
    for namespace, id, snapshotter, key, labels in connection.execute(
        "SELECT namespace, id, snapshotter, snapshot_key, labels FROM containers"
    ):
        held = [Node(Type.SNAPSHOT, namespace, f"{snapshotter}/{key}")] if key else []
        graph.add(Node(Type.CONTAINER, namespace, id), load(labels), held, root=True)
    blobs = connection.execute("SELECT namespace, digest, labels FROM blobs").fetchall()
    for namespace, digest, labels in blobs:
        graph.add(Node(Type.CONTENT, namespace, digest), load(labels), root=False)
    snapshots = connection.execute(
        "SELECT namespace, snapshotter, key, backend, parent, labels FROM snapshots"
    ).fetchall()
    for namespace, snapshotter, key, _, parent, labels in snapshots:
        above = [Node(Type.SNAPSHOT, namespace, f"{snapshotter}/{parent}")] if parent else []
        node = Node(Type.SNAPSHOT, namespace, f"{snapshotter}/{key}")
        graph.add(node, load(labels), above, root=False)
    add_leases(connection, graph)
    live = graph.reachable()
    return Garbage(
        blobs=[(n, d) for n, d, _ in blobs if Node(Type.CONTENT, n, d) not in live],
        snapshots=[
            (n, s, k, b)
            for n, s, k, b, _, _ in snapshots
            if Node(Type.SNAPSHOT, n, f"{s}/{k}") not in live
        ],
        images=[(n.namespace, n.key) for n in graph.expired if n.type is Type.IMAGE],
        leases=[(n.namespace, n.key) for n in graph.expired if n.type is Type.LEASE],
        ingests=dead_ingests(connection, graph.now, live),
    )


def add_leases(connection: sqlite3.Connection, graph: Graph) -> None:
    """Every lease with what it holds."""
    held: dict[tuple[str, str], list[Node]] = {}
    for namespace, lease, type, id in connection.execute(
        "SELECT namespace, lease, type, id FROM lease_resources"
    ):
        held.setdefault((namespace, lease), []).append(_resource_node(namespace, type, id))
    for namespace, id, labels in connection.execute("SELECT namespace, id, labels FROM leases"):
        graph.add_lease(namespace, id, load(labels), held.get((namespace, id), ()))


def _resource_node(namespace: str, type: str, id: str) -> Node:
    if type == CONTENT:
        return Node(Type.CONTENT, namespace, id)
    if type == INGESTS:
        return Node(Type.INGEST, namespace, id)
    return Node(Type.SNAPSHOT, namespace, f"{type.removeprefix(SNAPSHOTS)}/{id}")


def dead_ingests(
    connection: sqlite3.Connection, now_ns: int, live: set[Node]
) -> list[tuple[str, str, str]]:
    """Ingests whose time is up and that no lease holds."""
    rows = connection.execute(
        "SELECT namespace, ref, backend FROM ingests WHERE expires_at <= ?", (now_ns,)
    )
    return [(n, r, b) for n, r, b in rows if Node(Type.INGEST, n, r) not in live]


def delete_rows(connection: sqlite3.Connection, garbage: Garbage) -> None:
    """Forget what is garbage."""
    deletions: tuple[tuple[str, Iterable[tuple[str, ...]]], ...] = (
        ("DELETE FROM blobs WHERE namespace = ? AND digest = ?", garbage.blobs),
        (
            "DELETE FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?",
            [row[:3] for row in garbage.snapshots],
        ),
        ("DELETE FROM images WHERE namespace = ? AND name = ?", garbage.images),
        ("DELETE FROM lease_resources WHERE namespace = ? AND lease = ?", garbage.leases),
        ("DELETE FROM leases WHERE namespace = ? AND id = ?", garbage.leases),
        (
            "DELETE FROM ingests WHERE namespace = ? AND ref = ?",
            [row[:2] for row in garbage.ingests],
        ),
    )
    for statement, rows in deletions:
        connection.executemany(statement, rows)


def sweep(backing: Backing, garbage: Garbage) -> None:
    """Delete from the backends what is forgotten, with no lock on the database."""
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
    for namespace, digest in garbage.blobs:
        remove_unowned(backing, Digest(digest))
        publish(namespace, "/content/delete", ContentDelete(digest=digest))
    for _, _, backend in garbage.ingests:
        with contextlib.suppress(NotFound):
            backing.content.abort(backend)


def remove_snapshots(backing: Backing, name: str, backends: set[str]) -> None:
    """Remove snapshots from a backend, children before parents; one that fails stops no other."""
    snapshotter = backing.snapshotters.get(name)
    if snapshotter is None:
        return
    parents = {i.name: i.parent for i in snapshotter.walk() if i.name in backends}
    for backend in sorted(parents, key=lambda b: -depth(parents, b)):
        try:
            snapshotter.remove(backend)
        except Error as error:
            log.warning("snapshot %s of %s stays: %s", backend, name, error)
    snapshotter.cleanup()


def depth(parents: Mapping[str, str], name: str) -> int:
    """How many of ``parents`` stand above ``name``."""
    steps = 0
    while name := parents.get(name, ""):
        steps += 1
    return steps


def reconcile(backing: Backing) -> None:
    """At start, before anybody is served: remove from the backends what no record names.

    A crash between a backend's change and its record leaves such things.
    """
    with backing.database.read() as connection:
        recorded = {
            (s, b) for s, b in connection.execute("SELECT snapshotter, backend FROM snapshots")
        }
        digests = {d for (d,) in connection.execute("SELECT DISTINCT digest FROM blobs")}
        ingests = {b for (b,) in connection.execute("SELECT backend FROM ingests")}
    for name, snapshotter in backing.snapshotters.items():
        found = {info.name for info in snapshotter.walk()}
        orphans = {b for b in found if (name, b) not in recorded}
        if orphans:
            remove_snapshots(backing, name, orphans)
    for info in list(backing.content.walk()):
        if info.digest not in digests:
            remove_unowned(backing, info.digest)
    for status in backing.content.list_statuses():
        if status.ref not in ingests:
            with contextlib.suppress(NotFound):
                backing.content.abort(status.ref)
