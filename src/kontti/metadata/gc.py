"""What is garbage: the graph of references between records, and what its roots reach. No I/O.

Edges come from records (an image refers to its target, a container to its snapshot, a snapshot to
its parent) and from labels: ``containerd.io/gc.ref.*`` forward, ``containerd.io/gc.bref.*`` back.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

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

    def add(
        self, node: Node, labels: Mapping[str, str], refers: Iterable[Node] = (), *, root: bool
    ) -> None:
        """A record with what it refers to; a root is one no more once its label says it expired."""
        self.edges.setdefault(node, []).extend(refers)
        self.edges[node].extend(references(node.namespace, labels))
        for source in back_references(node.namespace, labels):
            self.edges.setdefault(source, []).append(node)
        expiry = expires_at(labels)
        if root and expiry is not None and expiry <= self.now:
            self.expired.add(node)
        elif root or labels.get(ROOT) or (expiry is not None and expiry > self.now):
            self.roots.add(node)

    def add_lease(
        self, namespace: str, id: str, labels: Mapping[str, str], holds: Iterable[Node]
    ) -> None:
        """A lease: while it has not expired it keeps what it holds, a flat one only that itself."""
        node = Node(Type.LEASE, namespace, id)
        expiry = expires_at(labels)
        if expiry is not None and expiry <= self.now:
            self.expired.add(node)
        elif FLAT in labels:
            self.flat.update(holds)
        else:
            self.roots.update(holds)

    def add_parent(self, node: Node, parent: Node) -> None:
        """A snapshot stands on its parent, and cannot be without it, whoever keeps it."""
        self.parents[node] = parent
        self.edges.setdefault(node, []).append(parent)

    def reachable(self) -> set[Node]:
        """Roots, all that they refer to, and what flat leases hold."""
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
            yield Node(Type.SNAPSHOT, namespace, f"{_snapshotter(key, REF_SNAPSHOT)}/{value}")
        for prefix, type in _FORWARD:
            if _is(key, prefix):
                yield Node(type, namespace, value)


def back_references(namespace: str, labels: Mapping[str, str]) -> Iterator[Node]:
    """What keeps the labelled record alive while it lives itself."""
    for key, value in labels.items():
        if not key.startswith(PREFIX):
            continue
        if key.startswith(BREF_SNAPSHOT):
            yield Node(Type.SNAPSHOT, namespace, f"{_snapshotter(key, BREF_SNAPSHOT)}/{value}")
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


def _snapshotter(key: str, prefix: str) -> str:
    """``overlayfs`` of ``…snapshot.overlayfs``, ``…overlayfs.x`` and ``…overlayfs/x``."""
    rest = key.removeprefix(prefix)
    for separator in ("/", "."):
        rest = rest.partition(separator)[0]
    return rest


def expires_at(labels: Mapping[str, str]) -> int | None:
    """The expiry label in ns since the epoch; None where there is none or it cannot be read."""
    text = labels.get(EXPIRE)
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        # RFC 3339 has an offset; without one nobody knows when it is meant
        return None if moment.tzinfo is None else int(moment.timestamp() * 1e9)
    except (ValueError, OverflowError):
        return None
