"""Garbage collection: mark in one transaction, then delete what nobody refers to."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from kontti.metadata.backing import Backing, now
from kontti.metadata.base import Collected, Collector
from kontti.metadata.database import load
from kontti.metadata.gc import Graph, Node, Type
from kontti.metadata.leases import CONTENT, INGESTS, SNAPSHOTS
from kontti.metadata.sweep import (
    abort_ingest,
    attempt,
    clean_up,
    remove_blobs,
    remove_orphans,
    remove_snapshots,
)
from kontti.values import Digest, Held
from kontti.wire.messages.events.content import ContentDelete
from kontti.wire.messages.events.image import ImageDelete
from kontti.wire.messages.events.snapshot import SnapshotRemove


@dataclass(slots=True)
class Garbage:
    """What a mark found: rows are deleted with it, backends afterwards."""

    blobs: list[tuple[str, str]] = field(default_factory=list)
    snapshots: list[tuple[str, str, str, str]] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    leases: list[tuple[str, str]] = field(default_factory=list)
    ingests: list[tuple[str, str, str]] = field(default_factory=list)
    held: dict[Type, list[Held]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        found = (self.blobs, self.snapshots, self.images, self.leases, self.ingests, self.held)
        return any(found)


def collect(backing: Backing) -> Collected:
    """One collection, from mark to the last deleted file; two at a time take turns."""
    with backing.locks.hold("collection"):
        started = time.monotonic()
        garbage = mark(backing)
        sweep(backing, garbage)
        if backing.leftovers.is_set():
            remove_orphans(backing)
        clean_up(backing)
        return Collected(
            blobs=len(garbage.blobs),
            snapshots=len(garbage.snapshots),
            leases=len(garbage.leases),
            images=len(garbage.images),
            seconds=time.monotonic() - started,
        )


def mark(backing: Backing) -> Garbage:
    """Find what is garbage and forget it, as one change.

    The search holds nobody up: it is done again under the writer's lock only where something was
    written meanwhile.
    """
    database = backing.database
    generation = database.generation
    with database.read() as connection:
        garbage = find(connection, backing.writers, backing.collectors)
    if not garbage:
        return garbage
    with database.write() as connection:
        if database.generation != generation:
            garbage = find(connection, backing.writers, backing.collectors)
        delete_rows(connection, garbage)
    return garbage


def find(
    connection: sqlite3.Connection,
    writers: Container[object] = (),
    collectors: Mapping[Type, Collector] = MappingProxyType({}),
) -> Garbage:
    """Mark, and list what was not reached. The ingests in ``writers`` are being written."""
    graph = Graph(now())
    others = add_held(graph, collectors)
    add_roots(connection, graph)
    blobs = connection.execute("SELECT namespace, digest, labels FROM blobs").fetchall()
    for namespace, digest, labels in blobs:
        graph.add(Node(Type.CONTENT, namespace, digest), load(labels), root=False)
    snapshots = connection.execute(
        "SELECT namespace, snapshotter, key, backend, parent, labels FROM snapshots"
    ).fetchall()
    for namespace, snapshotter, key, _, parent, labels in snapshots:
        node = Node(Type.SNAPSHOT, namespace, f"{snapshotter}/{key}")
        graph.add(node, load(labels), root=False)
        if parent:
            graph.add_parent(node, Node(Type.SNAPSHOT, namespace, f"{snapshotter}/{parent}"))
    add_leases(connection, graph, others)
    live = graph.reachable()
    return Garbage(
        blobs=[(n, d) for n, d, _ in blobs if Node(Type.CONTENT, n, d) not in live],
        snapshots=[
            (n, s, k, b)
            for n, s, k, b, _, _ in snapshots
            if Node(Type.SNAPSHOT, n, f"{s}/{k}") not in live
        ],
        images=[(n.namespace, n.key) for n in graph.expired - live if n.type is Type.IMAGE],
        leases=[(n.namespace, n.key) for n in graph.expired if n.type is Type.LEASE],
        held=dead_held(others, live),
        ingests=[i for i in dead_ingests(connection, graph.now, live) if i[:2] not in writers],
    )


def add_roots(connection: sqlite3.Connection, graph: Graph) -> None:
    """Records that nobody needs to refer to."""
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
    for namespace, id, labels in connection.execute("SELECT namespace, id, labels FROM sandboxes"):
        graph.add(Node(Type.SANDBOX, namespace, id), load(labels), root=True)


def add_held(graph: Graph, collectors: Mapping[Type, Collector]) -> dict[Node, Held]:
    """What the collectors keep, by node."""
    found = {}
    for type, collector in collectors.items():
        for held in collector.held():
            node = Node(type, held.namespace, held.key)
            graph.add(node, held.labels, root=held.root)
            found[node] = held
    return found


def dead_held(held: Mapping[Node, Held], live: set[Node]) -> dict[Type, list[Held]]:
    """Those that were not reached, by their collector's type."""
    dead: dict[Type, list[Held]] = {}
    for node, one in held.items():
        if node not in live:
            dead.setdefault(node.type, []).append(one)
    return dead


def add_leases(connection: sqlite3.Connection, graph: Graph, others: Mapping[Node, Held]) -> None:
    """Every lease with what it holds."""
    held: dict[tuple[str, str], list[Node]] = {}
    for node, other in others.items():
        if other.lease:
            held.setdefault((node.namespace, other.lease), []).append(node)
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
