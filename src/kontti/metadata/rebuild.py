"""A database made again where it is gone: of its copy, and of what the backends have.

Start-up waits for no other process: what proxies have is recorded before they are first used, and
is nobody's garbage until then.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from kontti.content.base import Store as ContentStore
from kontti.errors import Error
from kontti.linux import fs
from kontti.metadata.backing import ensure_namespace
from kontti.metadata.database import Database
from kontti.metadata.leases import CONTENT, SNAPSHOTS
from kontti.metadata.takeover import (
    Blobs,
    documents_of,
    namespaces,
    note_looked,
    record_snapshots,
)
from kontti.namespaces import DEFAULT
from kontti.snapshots.base import Snapshotter

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Here:
    """The backends that are in this process, and whether there are ``others``; no content store
    stands for one of the others."""

    content: ContentStore | None
    snapshotters: Mapping[str, Snapshotter]
    others: bool = False


def ensure(path: str, here: Here) -> None:
    """Have a database at ``path``: a new one, whole or not at all, is made of what there is."""
    if os.path.exists(path):
        return
    lost = is_lost(path, here)
    make(path, here, lost=lost)
    if lost:
        log.warning("%s was gone, and is made again of what is on the disk", path)


def is_lost(path: str, here: Here) -> bool:
    """Whether there is something that a database at ``path`` should know of."""
    if here.others and os.path.exists(f"{path}.backup"):
        return True
    if here.content is not None and _has_something(here.content):
        return True
    return any(map(_has_something, here.snapshotters.values()))


def _has_something(backend: ContentStore | Snapshotter) -> bool:
    """Whether a backend holds anything; one that does not answer is no reason not to start."""
    try:
        return next(iter(backend.walk()), None) is not None
    except Error as error:
        log.warning("what a backend holds cannot be told: %s", error)
        return False


def make(path: str, here: Here, *, lost: bool) -> None:
    """Make the database at ``path``, where it is ``lost`` of its copy and the backends."""
    draft = f"{path}.rebuilt"
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(draft + suffix):
            os.unlink(draft + suffix)
    if lost and os.path.exists(f"{path}.backup"):
        shutil.copyfile(f"{path}.backup", draft)
    database = Database(draft)
    try:
        with database.write() as connection:
            if lost:
                fill(connection, here)
            note(connection, here)
    finally:
        database.close()
    os.rename(draft, path)
    fs.fsync_dir(os.path.dirname(path))


def note(connection: sqlite3.Connection, here: Here) -> None:
    """The backends here are all that was looked through."""
    connection.execute("DELETE FROM looked")
    for name in here.snapshotters:
        note_looked(connection, SNAPSHOTS + name)
    if here.content is not None:
        note_looked(connection, CONTENT)


def fill(connection: sqlite3.Connection, here: Here) -> None:
    """Add what the backends have, and forget what they do not."""
    for name, snapshotter in here.snapshotters.items():
        record_snapshots(connection, name, {info.name: info for info in snapshotter.walk()})
        connection.execute("DELETE FROM commits WHERE snapshotter = ?", (name,))
    if here.content is None:
        return
    documents = documents_of(here.content)
    sizes = {info.digest: info.size for info in here.content.walk()}
    blobs = Blobs(connection, here.content, documents, sizes)
    blobs.forget_missing()
    for namespace in namespaces(connection) or [DEFAULT]:
        ensure_namespace(connection, namespace)
        blobs.record(namespace)
        blobs.forget_images(namespace)
        blobs.name_images(namespace, documents)
    connection.execute("DELETE FROM ingests")
