"""Forgetting what a mark found dead, but for what was referred to meanwhile."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kontti.metadata.backing import Backing
from kontti.metadata.changes import Change, Changes
from kontti.metadata.conditions import conditions
from kontti.metadata.database import load
from kontti.metadata.gc import Node, Type, conditional, references
from kontti.metadata.marking import Found, resource_node
from kontti.values import Held

BATCH = 100
"""Records that are forgotten in one transaction: who wants to write waits for no more."""
BREATH_SECONDS = 0.002
"""Between two of them, for those who wait."""
TYPES = {
    "images": Type.IMAGE,
    "containers": Type.CONTAINER,
    "sandboxes": Type.SANDBOX,
    "blobs": Type.CONTENT,
    "snapshots": Type.SNAPSHOT,
    "leases": Type.LEASE,
    "ingests": Type.INGEST,
}
REREAD = {
    "images": "SELECT labels, digest FROM images WHERE namespace = ? AND name = ?",
    "containers": (
        "SELECT labels, snapshotter, snapshot_key FROM containers WHERE namespace = ? AND id = ?"
    ),
    "sandboxes": "SELECT labels FROM sandboxes WHERE namespace = ? AND id = ?",
    "blobs": "SELECT labels FROM blobs WHERE namespace = ? AND digest = ?",
    "snapshots": (
        "SELECT labels, snapshotter, parent FROM snapshots "
        "WHERE namespace = ? AND snapshotter = ? AND key = ?"
    ),
}
"""What a record of a table refers to: its labels, and the names that stand for more."""


@dataclass(slots=True)
class Garbage:
    """What was forgotten: its rows are deleted, backends are next."""

    blobs: list[tuple[str, str]] = field(default_factory=list)
    snapshots: list[tuple[str, str, str, str]] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    leases: list[tuple[str, str]] = field(default_factory=list)
    ingests: list[tuple[str, str, str]] = field(default_factory=list)
    held: dict[Type, list[Held]] = field(default_factory=dict)


class Forgetting:
    """Deletes the rows of what was found dead, but for what was referred to meanwhile."""

    def __init__(self, backing: Backing, found: Found, changes: Changes) -> None:
        self._backing = backing
        self._found = found
        self._changes = changes
        self._saved: set[Node] = set()

    def into(self, garbage: Garbage) -> None:
        """All of it, batch by batch."""
        order = referrers_first(self._found.dead, self._found.graph.edges)
        for start in range(0, len(order), BATCH):
            if start:
                time.sleep(BREATH_SECONDS)
            self._batch(order[start : start + BATCH], garbage)
        with self._backing.database.write(durable=False) as connection:
            self._save(connection)
        for node, held in self._found.held.items():
            if node not in self._saved:
                garbage.held.setdefault(node.type, []).append(held)

    def _batch(self, nodes: Iterable[Node], garbage: Garbage) -> None:
        batch = Garbage()
        with self._backing.database.write() as connection:
            self._save(connection)
            for node in nodes:
                if node not in self._saved:
                    add_row(batch, node, self._found.dead[node])
            batch.ingests = [i for i in batch.ingests if i[:2] not in self._backing.writers]
            delete_rows(connection, batch)
        garbage.blobs += batch.blobs
        garbage.snapshots += batch.snapshots
        garbage.images += batch.images
        garbage.leases += batch.leases
        garbage.ingests += batch.ingests

    def _save(self, connection: sqlite3.Connection) -> None:
        """Save what has changed since the last look, and all that it refers to."""
        found = self._found
        stack: list[Node] = []
        for change in self._changes.since(connection):
            node, targets = current(connection, change)
            stack += [node, *targets]
        while stack:
            node = stack.pop()
            if node in self._saved or not (node in found.dead or node in found.held):
                continue
            self._saved.add(node)
            stack += found.graph.edges.get(node, ())


def referrers_first(
    dead: Mapping[Node, tuple[str, ...]], edges: Mapping[Node, Sequence[Node]]
) -> list[Node]:
    """Each after those that refer to it; those that refer to one another in some order."""
    counts = dict.fromkeys(dead, 0)
    for node in dead:
        for target in edges.get(node, ()):
            if target in counts:
                counts[target] += 1
    ready = [node for node, count in counts.items() if not count]
    ordered: dict[Node, None] = {}
    while ready:
        node = ready.pop()
        ordered[node] = None
        for target in edges.get(node, ()):
            if target in counts:
                counts[target] -= 1
                if not counts[target]:
                    ready.append(target)
    ordered |= dict.fromkeys(node for node in dead if node not in ordered)
    return list(ordered)


def current(connection: sqlite3.Connection, change: Change) -> tuple[Node, list[Node]]:
    """The node of a row that was written, and what it refers to now."""
    table, namespace, first, second = change
    if table == "lease_resources":
        return resource_node(namespace, first, second), []
    type = TYPES[table]
    node = Node(type, namespace, f"{first}/{second}" if type is Type.SNAPSHOT else first)
    statement = REREAD.get(table)
    row = None
    if statement is not None:
        key = (namespace, first, second) if type is Type.SNAPSHOT else (namespace, first)
        row = connection.execute(statement, key).fetchone()
    if row is None:
        return node, []
    labels, *held = row
    targets = list(references(namespace, load(labels)))
    # whether a condition holds is the next collection's to find out
    targets += (conditional(namespace, found) for found in conditions(load(labels)))
    if table == "images":
        targets.append(Node(Type.CONTENT, namespace, held[0]))
    elif held and held[1]:
        targets.append(Node(Type.SNAPSHOT, namespace, f"{held[0]}/{held[1]}"))
    return node, targets


def add_row(garbage: Garbage, node: Node, row: tuple[str, ...]) -> None:
    """Put a node's row where it belongs."""
    lists: dict[Type, list[Any]] = {
        Type.CONTENT: garbage.blobs,
        Type.SNAPSHOT: garbage.snapshots,
        Type.IMAGE: garbage.images,
        Type.LEASE: garbage.leases,
        Type.INGEST: garbage.ingests,
    }
    lists[node.type].append(row)


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
