"""Finding what nobody refers to, in one state of the database, without holding anybody up."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kontti.metadata.backing import now
from kontti.metadata.base import Collector
from kontti.metadata.database import load
from kontti.metadata.gc import Graph, Node, Type
from kontti.metadata.leases import CONTENT, IMAGES, INGESTS, SNAPSHOTS
from kontti.metadata.pauses import breathing
from kontti.values import Held


@dataclass(frozen=True, slots=True)
class Found:
    """What a mark did not reach, with the rows of records, and the references it went by."""

    graph: Graph
    dead: Mapping[Node, tuple[str, ...]]
    held: Mapping[Node, Held]


def find(
    connection: sqlite3.Connection, collectors: Mapping[Type, Collector] = MappingProxyType({})
) -> Found:
    """Mark, and list what was not reached."""
    graph = Graph(now())
    others = add_held(graph, collectors)
    add_roots(connection, graph)
    rows = dict(breathing(add_records(connection, graph)))
    ingests = add_ingests(connection, graph)
    add_leases(connection, graph, others)
    live = graph.reachable()
    dead = {node: row for node, row in breathing(rows.items()) if node not in live}
    expired = (n for n in graph.expired if n.type is Type.LEASE or n not in live)
    dead |= {n: (n.namespace, n.key) for n in expired if n.type in (Type.LEASE, Type.IMAGE)}
    dead |= {node: row for node, row in ingests.items() if node not in live}
    return Found(graph, dead, {node: one for node, one in others.items() if node not in live})


def add_records(
    connection: sqlite3.Connection, graph: Graph
) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """Records that live while something refers to them, with their rows."""
    for namespace, digest, labels in connection.execute(
        "SELECT namespace, digest, labels FROM blobs"
    ):
        node = Node(Type.CONTENT, namespace, digest)
        graph.add(node, load(labels), root=False)
        yield node, (namespace, digest)
    for namespace, snapshotter, key, backend, parent, labels in connection.execute(
        "SELECT namespace, snapshotter, key, backend, parent, labels FROM snapshots"
    ):
        node = Node(Type.SNAPSHOT, namespace, f"{snapshotter}/{key}")
        graph.add(node, load(labels), root=False)
        if parent:
            graph.add_parent(node, Node(Type.SNAPSHOT, namespace, f"{snapshotter}/{parent}"))
        yield node, (namespace, snapshotter, key, backend)


def add_roots(connection: sqlite3.Connection, graph: Graph) -> None:
    """Records that nobody needs to refer to."""
    for namespace, name, digest, labels in connection.execute(
        "SELECT namespace, name, digest, labels FROM images"
    ):
        node = Node(Type.IMAGE, namespace, name)
        graph.add(node, load(labels), root=True)
        graph.add_parent(node, Node(Type.CONTENT, namespace, digest))
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


def add_leases(connection: sqlite3.Connection, graph: Graph, others: Mapping[Node, Held]) -> None:
    """Every lease with what it holds."""
    held: dict[tuple[str, str], list[Node]] = {}
    for node, other in others.items():
        if other.lease:
            held.setdefault((node.namespace, other.lease), []).append(node)
    for namespace, lease, type, id in connection.execute(
        "SELECT namespace, lease, type, id FROM lease_resources"
    ):
        held.setdefault((namespace, lease), []).append(resource_node(namespace, type, id))
    for namespace, id, labels in connection.execute("SELECT namespace, id, labels FROM leases"):
        graph.add_lease(namespace, id, load(labels), held.get((namespace, id), ()))


def resource_node(namespace: str, type: str, id: str) -> Node:
    if type == CONTENT:
        return Node(Type.CONTENT, namespace, id)
    if type == INGESTS:
        return Node(Type.INGEST, namespace, id)
    if type == IMAGES:
        return Node(Type.IMAGE, namespace, id)
    return Node(Type.SNAPSHOT, namespace, f"{type.removeprefix(SNAPSHOTS)}/{id}")


def add_ingests(connection: sqlite3.Connection, graph: Graph) -> dict[Node, tuple[str, str, str]]:
    """Every ingest, with its row."""
    found = {}
    for namespace, ref, backend, expected, expires in connection.execute(
        "SELECT namespace, ref, backend, expected, expires_at FROM ingests"
    ):
        node = Node(Type.INGEST, namespace, ref)
        graph.add_ingest(node, expected, expires)
        found[node] = (namespace, ref, backend)
    return found
