"""What backends have and no record names, as records: of a database that was made anew.

Snapshots are in their snapshotters under names that tell namespace and key; which namespace had a
blob is not written anywhere, so each gets all. Images that no copy names get a name by digest.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Container, Iterator, Mapping

from kontti.content.base import Store as ContentStore
from kontti.errors import Error
from kontti.images.graph import child_labels
from kontti.images.identity import chain_id
from kontti.images.manifest import children, document_type, read_config, read_manifest
from kontti.images.media_types import kind_of
from kontti.metadata.backing import ensure_namespace, now
from kontti.metadata.database import dump, load
from kontti.metadata.images import dump_target
from kontti.snapshots.base import Info
from kontti.values import Descriptor, Digest

log = logging.getLogger(__name__)
MAX_DOCUMENT = 4 << 20
SNAPSHOT_REF = "containerd.io/gc.ref.snapshot."
ALL = "*"
Documents = Mapping[Digest, Descriptor]


def looked_through(connection: sqlite3.Connection) -> set[str]:
    """The backends whose things are recorded: ``content``, ``snapshots/<name>``."""
    return {backend for (backend,) in connection.execute("SELECT backend FROM looked")}


def note_looked(connection: sqlite3.Connection, backend: str) -> None:
    """What is in a backend is recorded: what is not is garbage from now on."""
    connection.execute("INSERT OR IGNORE INTO looked VALUES (?)", (backend,))


def namespaces(connection: sqlite3.Connection) -> list[str]:
    """Those that there are."""
    return [name for (name,) in connection.execute("SELECT name FROM namespaces").fetchall()]


def record_snapshots(
    connection: sqlite3.Connection, snapshotter: str, found: Mapping[str, Info]
) -> set[str]:
    """Rows for a snapshotter's snapshots, and none for others of it; the namespaces of new ones.

    Numbers in names that come are above all of these.
    """
    highest, made = 0, set()
    for backend, info in found.items():
        namespace, number, key = split(backend)
        if not key:
            continue
        highest = max(highest, number)
        ensure_namespace(connection, namespace)
        added = connection.execute(
            "INSERT OR IGNORE INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                namespace,
                snapshotter,
                key,
                backend,
                split(info.parent)[2],
                dump(info.labels),
                info.created_at,
                info.updated_at,
            ),
        )
        if added.rowcount:
            made.add(namespace)
    rows = connection.execute(
        "SELECT namespace, key, backend FROM snapshots WHERE snapshotter = ?", (snapshotter,)
    ).fetchall()
    gone = [(n, snapshotter, k) for n, k, backend in rows if backend not in found]
    statement = "DELETE FROM snapshots WHERE namespace = ? AND snapshotter = ? AND key = ?"
    connection.executemany(statement, gone)
    connection.execute("INSERT OR IGNORE INTO counters VALUES ('backend', 1)")
    connection.execute(
        "UPDATE counters SET next = MAX(next, ?) WHERE name = 'backend'", (highest + 1,)
    )
    return made


def refer_to_snapshots(
    connection: sqlite3.Connection, chains: Mapping[Digest, str], snapshotter: str
) -> None:
    """Have the configs of images that a snapshotter has unpacked keep its snapshots.

    ``chains`` are the layers' chain ids by the configs' digests.
    """
    label = SNAPSHOT_REF + snapshotter
    for digest, chain in chains.items():
        rows = connection.execute(
            "SELECT blobs.namespace, blobs.labels FROM blobs JOIN snapshots USING (namespace) "
            "WHERE digest = ? AND snapshotter = ? AND key = ?",
            (digest, snapshotter, chain),
        ).fetchall()
        for namespace, labels in rows:
            connection.execute(
                "UPDATE blobs SET labels = ? WHERE namespace = ? AND digest = ?",
                (dump({**load(labels), label: chain}), namespace, digest),
            )


def documents_of(content: ContentStore) -> dict[Digest, Descriptor]:
    """The manifests and indexes among the blobs."""
    found = {}
    for info in content.walk():
        if info.size > MAX_DOCUMENT:
            continue
        with content.reader(info.digest) as reader:
            media_type = document_type(reader.read_at(0, info.size))
        if media_type:
            found[info.digest] = Descriptor(media_type, info.digest, info.size)
    return found


def chains_of(content: ContentStore, documents: Documents) -> dict[Digest, str]:
    """The chain ids of images' layers by the digests of their configs."""
    found: dict[Digest, str] = {}
    for digest, descriptor in documents.items():
        if kind_of(descriptor.media_type) != "manifest":
            continue
        try:
            config = read_manifest(content, descriptor).config
            found[config.digest] = chain_id(read_config(content, config).diff_ids)
        except Error as error:
            log.warning("document %s is left as it is: %s", digest, error)
    return found


class Blobs:
    """Records for what the content store has, of which ``documents`` are manifests and indexes."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        content: ContentStore,
        documents: Documents,
        sizes: Mapping[Digest, int],
    ) -> None:
        self._connection = connection
        self._content = content
        self._documents = documents
        self._sizes = sizes
        self._chains = chains_of(content, documents)

    def forget_missing(self, known: Container[str] | None = None) -> None:
        """Forget blobs that are not there; only those of ``known``, where it is given."""
        rows = self._connection.execute("SELECT DISTINCT digest FROM blobs").fetchall()
        gone = [(d,) for (d,) in rows if d not in self._sizes and (known is None or d in known)]
        self._connection.executemany("DELETE FROM blobs WHERE digest = ?", gone)

    def record(self, namespace: str) -> set[Digest]:
        """Every blob, with the labels that keep what it refers to; those that had no record."""
        stamp, made = now(), set()
        labels = dict(self._references(namespace))
        for digest, size in self._sizes.items():
            added = self._connection.execute(
                "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?, ?)",
                (namespace, digest, size, dump(labels.get(digest, {})), stamp, stamp),
            )
            if added.rowcount:
                made.add(digest)
        return made

    def _references(self, namespace: str) -> Iterator[tuple[Digest, Mapping[str, str]]]:
        for digest, descriptor in self._documents.items():
            try:
                yield digest, child_labels(children(self._content, descriptor))
            except Error as error:
                log.warning("document %s is left as it is: %s", digest, error)
        for digest, chain in self._chains.items():
            rows = self._connection.execute(
                "SELECT snapshotter FROM snapshots WHERE namespace = ? AND key = ?",
                (namespace, chain),
            )
            yield digest, {SNAPSHOT_REF + name: chain for (name,) in rows}

    def forget_images(self, namespace: str) -> None:
        """Forget names whose target is gone."""
        rows = self._connection.execute(
            "SELECT name, digest FROM images WHERE namespace = ?", (namespace,)
        ).fetchall()
        gone = [(namespace, name) for name, digest in rows if digest not in self._documents]
        self._connection.executemany("DELETE FROM images WHERE namespace = ? AND name = ?", gone)

    def name_images(self, namespace: str, digests: Container[Digest]) -> None:
        """Names for those of ``digests`` that nothing refers to."""
        rows = self._connection.execute(
            "SELECT digest FROM images WHERE namespace = ?", (namespace,)
        )
        held = {digest for (digest,) in rows}
        for (labels,) in self._connection.execute(
            "SELECT labels FROM blobs WHERE namespace = ?", (namespace,)
        ):
            held |= set(load(labels).values())
        for digest, descriptor in self._documents.items():
            if digest in digests and digest not in held:
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


def split(backend: str) -> tuple[str, int, str]:
    """Namespace, number and key of a name in a backend; an empty key for another's name."""
    namespace, _, rest = backend.partition("/")
    number, _, key = rest.partition("/")
    if not namespace or not number.isascii() or not number.isdigit():
        return "", 0, ""
    return namespace, int(number), key
