"""Backends that nobody has looked through since the database was made anew.

What such a one has is recorded before it is first used, or when garbage is first collected while it
answers. Until then nothing in it is garbage.
"""

from __future__ import annotations

import logging

from kontti.content.base import Store as ContentStore
from kontti.metadata.backing import Backing, ensure_namespace
from kontti.metadata.leases import CONTENT, SNAPSHOTS
from kontti.metadata.takeover import (
    ALL,
    Blobs,
    chains_of,
    documents_of,
    looked_through,
    namespaces,
    note_looked,
    record_snapshots,
    refer_to_snapshots,
    split,
)
from kontti.namespaces import DEFAULT

log = logging.getLogger(__name__)
PATIENCE = 5.0
"""Seconds to wait for who looks already: it may be long at it."""


def find_unseen(backing: Backing) -> set[str]:
    """The backends that are to be looked through."""
    with backing.database.read() as connection:
        looked = looked_through(connection)
    names = {CONTENT, *(SNAPSHOTS + name for name in backing.snapshotters)}
    return set() if ALL in looked else names - looked


def look_through_snapshots(backing: Backing, name: str) -> None:
    """Record what a snapshotter has, unless that was done; raises what asking it raises."""
    if SNAPSHOTS + name not in backing.unseen:
        return
    with backing.locks.hold(("unseen", name), timeout=PATIENCE):
        if SNAPSHOTS + name in backing.unseen:
            _take_over_snapshots(backing, name)
            backing.unseen.discard(SNAPSHOTS + name)


def _take_over_snapshots(backing: Backing, name: str) -> None:
    found = {info.name: info for info in backing.snapshotters[name].walk()}
    ours = [backend for backend in found if split(backend)[2]]
    content = backing.content
    documents = documents_of(content) if ours else {}
    chains = chains_of(content, documents)
    sizes = {info.digest: info.size for info in content.walk()} if ours else {}
    with backing.database.write() as connection:
        made = record_snapshots(connection, name, found)
        if made and CONTENT not in backing.unseen:
            # that these namespaces had images may have been told by nothing else
            blobs = Blobs(connection, content, documents, sizes)
            for namespace in sorted(made):
                blobs.name_images(namespace, blobs.record(namespace))
        refer_to_snapshots(connection, chains, name)
        note_looked(connection, SNAPSHOTS + name)
    log.warning("snapshotter %s: what it has is recorded, %d snapshots", name, len(ours))


def look_through_content(backing: Backing) -> None:
    """Record what the content store has, unless that was done; raises what asking it raises."""
    if CONTENT not in backing.unseen:
        return
    with backing.locks.hold(("unseen", CONTENT), timeout=PATIENCE):
        if CONTENT in backing.unseen:
            _take_over_content(backing, backing.content)
            backing.unseen.discard(CONTENT)


def _take_over_content(backing: Backing, content: ContentStore) -> None:
    with backing.database.read() as connection:
        known = {d for (d,) in connection.execute("SELECT DISTINCT digest FROM blobs")}
    sizes = {info.digest: info.size for info in content.walk()}
    documents = documents_of(content)
    with backing.database.write() as connection:
        blobs = Blobs(connection, content, documents, sizes)
        # what came since the look began has its record, and is no image that was lost
        blobs.forget_missing(known)
        for namespace in (namespaces(connection) or [DEFAULT]) if sizes else []:
            ensure_namespace(connection, namespace)
            blobs.name_images(namespace, blobs.record(namespace))
        note_looked(connection, CONTENT)
    log.warning("content store: what it has is recorded, %d blobs", len(sizes))
