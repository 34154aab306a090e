"""What is garbage: the graph of references between records, and what its roots reach. No I/O.

Edges come from records (an image refers to its target, a container to its snapshot, a snapshot to
its parent) and from labels: ``containerd.io/gc.ref.*`` forward, ``containerd.io/gc.bref.*`` back,
``containerd.io/gc.cond.*`` forward while a condition holds.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from kontti.metadata.conditions import PREFIX as CONDITIONAL
from kontti.metadata.conditions import USED, Condition, conditions

PREFIX = "containerd.io/gc."


def lets_go(old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Whether what ``old`` labels kept may be kept no longer by ``new`` ones."""
    return any(key.startswith(PREFIX) and new.get(key) != old[key] for key in old)


ROOT, EXPIRE, FLAT = PREFIX + "root", PREFIX + "expire", PREFIX + "flat"
REF_CONTENT, REF_SNAPSHOT, REF_IMAGE = (
    PREFIX + "ref.content",
    PREFIX + "ref.snapshot.",
    PREFIX + "ref.image",
)
REF_STREAM, REF_MOUNT = PREFIX + "ref.stream", PREFIX + "ref.mount"
BREF_CONTENT, BREF_SNAPSHOT = PREFIX + "bref.content", PREFIX + "bref.snapshot."
BREF_IMAGE, BREF_CONTAINER = PREFIX + "bref.image", PREFIX + "bref.container"


class Type(enum.IntEnum):
    """What a node is."""

    # numbers: an enum of anything else is hashed in Python, and nodes are hashed a lot
    CONTENT = 1
    SNAPSHOT = 2
    IMAGE = 3
    CONTAINER = 4
    INGEST = 5
    LEASE = 6
    SANDBOX = 7
    STREAM = 8
    MOUNT = 9


class Node(NamedTuple):
    """A record. A snapshot's key is ``snapshotter/key``."""

    type: Type
    namespace: str
    key: str


@dataclass(slots=True)
class Graph:
    """Records as they are added; ``reachable`` says which of them live."""

    now: int
    edges: dict[Node, list[Node]] = field(default_factory=dict)
    parents: dict[Node, Node] = field(default_factory=dict)
    roots: set[Node] = field(default_factory=set)
    flat: set[Node] = field(default_factory=set)
    expired: set[Node] = field(default_factory=set)
    conditional: list[tuple[Node, Condition]] = field(default_factory=list)
    used: dict[Node, int] = field(default_factory=dict)

    def add(
        self, node: Node, labels: Mapping[str, str], refers: Iterable[Node] = (), *, root: bool
    ) -> None:
        """A record with what it refers to; a root is one no more once its label says it expired."""
        self.edges.setdefault(node, []).extend(refers)
        self.edges[node].extend(references(node.namespace, labels))
        for source in back_references(node.namespace, labels):
            self.edges.setdefault(source, []).append(node)
        self._add_conditions(node, labels)
        expiry = moment(labels.get(EXPIRE, ""))
        if root and expiry is not None and expiry <= self.now:
            self.expired.add(node)
        elif root or is_root(labels) or (expiry is not None and expiry > self.now):
            self.roots.add(node)

    def _add_conditions(self, node: Node, labels: Mapping[str, str]) -> None:
        if not any(key.startswith(CONDITIONAL) for key in labels):
            return
        used = moment(labels.get(USED, ""))
        if node.type is Type.SNAPSHOT and used is not None:
            self.used[node] = used
        if node.type in (Type.CONTENT, Type.IMAGE):
            self.conditional += ((node, condition) for condition in conditions(labels))

    def add_ingest(self, node: Node, expected: str, expires: int) -> None:
        """An ingest keeps the blob that it is to be, and itself until its time is up."""
        targets = [Node(Type.CONTENT, node.namespace, expected)] if expected else []
        self.edges.setdefault(node, []).extend(targets)
        if expires > self.now:
            self.roots.add(node)

    def add_lease(
        self, namespace: str, id: str, labels: Mapping[str, str], holds: Iterable[Node]
    ) -> None:
        """A lease: while it has not expired it keeps what it holds, a flat one only that itself."""
        node = Node(Type.LEASE, namespace, id)
        expiry = moment(labels.get(EXPIRE, ""))
        if expiry is not None and expiry <= self.now:
            self.expired.add(node)
        elif FLAT in labels:
            for held in holds:
                # an ingest has no labels
                (self.roots if held.type is Type.INGEST else self.flat).add(held)
        else:
            self.roots.update(holds)

    def add_parent(self, node: Node, parent: Node) -> None:
        """A snapshot stands on its parent, an image on its target: with it, whoever keeps it."""
        self.parents[node] = parent
        self.edges.setdefault(node, []).append(parent)

    def reachable(self) -> set[Node]:
        """Roots, all that they refer to, and what flat leases hold."""
        for node, condition in self.conditional:
            target = conditional(node.namespace, condition)
            if target in self.used and condition.holds(self.used[target], self.now):
                self.edges[node].append(target)
        found = set(self.roots)
        stack = list(self.roots)
        while stack:
            for target in self.edges.get(stack.pop(), ()):
                if target not in found:
                    found.add(target)
                    stack.append(target)
        return found | self._standing_on(self.flat)

    def _standing_on(self, nodes: Iterable[Node]) -> set[Node]:
        found: set[Node] = set()
        for node in nodes:
            above: Node | None = node
            while above is not None and above not in found:
                found.add(above)
                above = self.parents.get(above)
        return found


def references(namespace: str, labels: Mapping[str, str]) -> Iterator[Node]:
    """What labels refer to."""
    for key, value in labels.items():
        if not key.startswith(PREFIX):
            continue
        if key.startswith(REF_SNAPSHOT):
            for snapshotter in _snapshotters(key, REF_SNAPSHOT):
                yield Node(Type.SNAPSHOT, namespace, f"{snapshotter}/{value}")
        for prefix, type in _FORWARD:
            if _is(key, prefix):
                yield Node(type, namespace, value)


def back_references(namespace: str, labels: Mapping[str, str]) -> Iterator[Node]:
    """What keeps the labelled record alive while it lives itself."""
    for key, value in labels.items():
        if not key.startswith(PREFIX):
            continue
        if key.startswith(BREF_SNAPSHOT):
            for snapshotter in _snapshotters(key, BREF_SNAPSHOT):
                yield Node(Type.SNAPSHOT, namespace, f"{snapshotter}/{value}")
        for prefix, type in _BACK:
            if _is(key, prefix):
                yield Node(type, namespace, value)


_FORWARD = (
    (REF_CONTENT, Type.CONTENT),
    (REF_IMAGE, Type.IMAGE),
    (REF_STREAM, Type.STREAM),
    (REF_MOUNT, Type.MOUNT),
)
_BACK = (
    (BREF_CONTENT, Type.CONTENT),
    (BREF_IMAGE, Type.IMAGE),
    (BREF_CONTAINER, Type.CONTAINER),
)


def _is(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and key[len(prefix) :][:1] in ("", ".", "/")


def _snapshotters(key: str, prefix: str) -> Iterator[str]:
    """``overlayfs`` of ``…snapshot.overlayfs/x``; of ``…overlayfs.x`` that and ``overlayfs.x``.

    A snapshotter may have dots in its name, and what follows one may be no part of it.
    """
    name = key.removeprefix(prefix).partition("/")[0]
    while name:
        yield name
        name = name.rpartition(".")[0]


def conditional(namespace: str, condition: Condition) -> Node:
    """The snapshot that a condition is about."""
    return Node(Type.SNAPSHOT, namespace, f"{condition.snapshotter}/{condition.key}")


def is_root(labels: Mapping[str, str]) -> bool:
    """Whether a label makes a record its own reason to live; its name may be longer."""
    return any(value and key.startswith(ROOT) for key, value in labels.items())


def moment(text: str) -> int | None:
    """RFC 3339 in ns since the epoch; None for what cannot be read."""
    try:
        found = datetime.fromisoformat(text)
        # RFC 3339 has an offset; without one nobody knows when it is meant
        return None if found.tzinfo is None else int(found.timestamp() * 1e9)
    except (ValueError, OverflowError):
        return None
