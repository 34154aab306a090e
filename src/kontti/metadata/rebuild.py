"""A database made again where it is gone: of its copy, and of what the backends have.

Snapshots are in their snapshotters under names that tell namespace and key; which namespace had a
blob is not written anywhere, so each gets all. Images that no copy names get a name by digest.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping

from kontti.content.base import Store as ContentStore
from kontti.errors import Error
from kontti.images.graph import child_labels
from kontti.images.identity import chain_id
from kontti.images.manifest import children, document_type, read_config, read_manifest
from kontti.images.media_types import kind_of
from kontti.linux import fs
from kontti.metadata.backing import ensure_namespace, now
from kontti.metadata.database import Database, dump, load
from kontti.metadata.images import dump_target
from kontti.namespaces import DEFAULT
from kontti.snapshots.base import Info, Snapshotter
from kontti.values import Descriptor, Digest

log = logging.getLogger(__name__)
MAX_DOCUMENT = 4 << 20
SNAPSHOT_REF = "containerd.io/gc.ref.snapshot."
Backends = Mapping[str, Snapshotter]


def is_lost(path: str, content: ContentStore, snapshotters: Backends) -> bool:
    """Whether there is no database at ``path``, and yet something that one should know of."""
    if os.path.exists(path):
        return False
    return _has_something(content) or any(_has_something(s) for s in snapshotters.values())


def _has_something(backend: ContentStore | Snapshotter) -> bool:
    """Whether a backend holds anything; one that does not answer is no reason not to start."""
    try:
        return next(iter(backend.walk()), None) is not None
    except Error as error:
        log.warning("what a backend holds cannot be told: %s", error)
        return False


def rebuild(path: str, content: ContentStore, snapshotters: Backends) -> None:
    """Make the database at ``path``; whole or not at all."""
    draft = f"{path}.rebuilt"
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(draft + suffix):
            os.unlink(draft + suffix)
    if os.path.exists(f"{path}.backup"):
        shutil.copyfile(f"{path}.backup", draft)
    database = Database(draft)
    try:
        with database.write() as connection:
            _Rebuild(connection, content, snapshotters).run()
    finally:
        database.close()
    os.rename(draft, path)
    fs.fsync_dir(os.path.dirname(path))
    log.warning("%s was gone, and is made again of what is on the disk", path)


class _Rebuild:
    """Adds to a database what the backends have and it does not name."""

    def __init__(
        self, connection: sqlite3.Connection, content: ContentStore, snapshotters: Backends
    ) -> None:
        self._connection = connection
        self._content = content
        self._snapshotters = snapshotters

    def run(self) -> None:
        """All of it."""
        for name, snapshotter in self._snapshotters.items():
            self._snapshots(name, {info.name: info for info in snapshotter.walk()})
        self._forget_missing_blobs()
        namespaces = [n for (n,) in self._connection.execute("SELECT name FROM namespaces")]
        documents = dict(self._documents())
        for namespace in namespaces or [DEFAULT]:
            ensure_namespace(self._connection, namespace)
            self._blobs(namespace, documents)
            self._images(namespace, documents)
        for half_made in ("ingests", "commits"):
            self._connection.execute(f"DELETE FROM {half_made}")

    def _snapshots(self, snapshotter: str, found: Mapping[str, Info]) -> None:
        """Rows for a snapshotter's snapshots; numbers in names that come are above all of these."""
        highest = 0
        for backend, info in found.items():
            namespace, number, key = _split(backend)
            if not key:
                continue
            highest = max(highest, number)
            ensure_namespace(self._connection, namespace)
            self._connection.execute(
                "INSERT OR IGNORE INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    namespace,
                    snapshotter,
                    key,
                    backend,
                    _split(info.parent)[2],
                    dump(info.labels),
                    info.created_at,
                    info.updated_at,
                ),
            )
        rows = self._connection.execute(
            "SELECT namespace, key, backend FROM snapshots WHERE snapshotter = ?", (snapshotter,)
        ).fetchall()
        gone = [(n, snapshotter, k) for n, k, backend in rows if backend not in found]
        statement = "DELETE FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?"
        self._connection.executemany(statement, gone)
        self._connection.execute("INSERT OR IGNORE INTO counters VALUES ('backend', 1)")
        self._connection.execute(
            "UPDATE counters SET next = MAX(next, ?) WHERE name = 'backend'", (highest + 1,)
        )

    def _forget_missing_blobs(self) -> None:
        there = {info.digest for info in self._content.walk()}
        rows = self._connection.execute("SELECT DISTINCT digest FROM blobs").fetchall()
        gone = [(digest,) for (digest,) in rows if digest not in there]
        self._connection.executemany("DELETE FROM blobs WHERE digest = ?", gone)

    def _documents(self) -> Iterator[tuple[Digest, Descriptor]]:
        """The manifests and indexes among the blobs."""
        for info in self._content.walk():
            if info.size > MAX_DOCUMENT:
                continue
            with self._content.reader(info.digest) as reader:
                media_type = document_type(reader.read_at(0, info.size))
            if media_type:
                yield info.digest, Descriptor(media_type, info.digest, info.size)

    def _blobs(self, namespace: str, documents: Mapping[Digest, Descriptor]) -> None:
        """Every blob, with the labels that keep what it refers to."""
        stamp = now()
        labels = dict(self._references(namespace, documents))
        for info in self._content.walk():
            added = self._connection.execute(
                "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?, ?)",
                (namespace, info.digest, info.size, "{}", stamp, stamp),
            )
            if added.rowcount and info.digest in labels:
                self._connection.execute(
                    "UPDATE blobs SET labels = ? WHERE namespace = ? AND digest = ?",
                    (dump(labels[info.digest]), namespace, info.digest),
                )

    def _references(
        self, namespace: str, documents: Mapping[Digest, Descriptor]
    ) -> Iterator[tuple[Digest, Mapping[str, str]]]:
        for digest, descriptor in documents.items():
            try:
                yield digest, child_labels(children(self._content, descriptor))
                if kind_of(descriptor.media_type) == "manifest":
                    config = read_manifest(self._content, descriptor).config
                    yield config.digest, self._unpacked(namespace, config)
            except Error as error:
                log.warning("document %s is left as it is: %s", digest, error)

    def _unpacked(self, namespace: str, config: Descriptor) -> Mapping[str, str]:
        """What keeps the snapshots of an image that is unpacked."""
        chain = chain_id(read_config(self._content, config).diff_ids)
        rows = self._connection.execute(
            "SELECT snapshotter FROM snapshots WHERE namespace = ? AND key = ?", (namespace, chain)
        )
        return {SNAPSHOT_REF + name: chain for (name,) in rows}

    def _images(self, namespace: str, documents: Mapping[Digest, Descriptor]) -> None:
        """Names for what nothing refers to; those whose target is gone are forgotten."""
        known = self._connection.execute(
            "SELECT name, digest FROM images WHERE namespace = ?", (namespace,)
        ).fetchall()
        gone = [(namespace, name) for name, digest in known if digest not in documents]
        self._connection.executemany("DELETE FROM images WHERE namespace = ? AND name = ?", gone)
        named = {digest for _, digest in known}
        held: set[str] = set()
        for (labels,) in self._connection.execute(
            "SELECT labels FROM blobs WHERE namespace = ?", (namespace,)
        ):
            held |= set(load(labels).values())
        for digest, descriptor in documents.items():
            if digest not in held and digest not in named:
                self._add_image(namespace, descriptor)

    def _add_image(self, namespace: str, descriptor: Descriptor) -> None:
        stamp = now()
        self._connection.execute(
            "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                namespace,
                f"recovered@{descriptor.digest}",
                descriptor.digest,
                dump_target(descriptor),
                "{}",
                stamp,
                stamp,
            ),
        )


def _split(backend: str) -> tuple[str, int, str]:
    """Namespace, number and key of a name in a backend; an empty key for another's name."""
    namespace, _, rest = backend.partition("/")
    number, _, key = rest.partition("/")
    if not namespace or not number.isascii() or not number.isdigit():
        return "", 0, ""
    return namespace, int(number), key
