"""The database, drawn as a tree. Update the drawing with the statements.

meta.db (sqlite, WAL, synchronous=FULL; times are ns since the epoch; labels are JSON objects)
├── namespaces      name → labels
├── images          (namespace, name) → target descriptor, labels, created_at, updated_at
├── containers      (namespace, id) → spec, image, runtime, snapshot, labels, extensions, times
├── sandboxes       (namespace, id) → runtime, spec, labels, extensions, sandboxer, times
├── snapshots       (namespace, snapshotter, key) → name in the backend, parent key, labels, times
├── blobs           (namespace, digest) → size, labels, times
├── ingests         (namespace, ref) → ref in the backend, expected digest, expiry
├── leases          (namespace, id) → labels, created_at
├── lease_resources (namespace, lease, type, id)
├── commits         (snapshotter, name in the backend) → of which active one, to what; under way
├── looked          backends that were looked through since the database was made, "*" for all
└── counters        name → the next number for names in the backends
"""

from __future__ import annotations

V1 = """
CREATE TABLE namespaces (name TEXT PRIMARY KEY, labels TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE images (
    namespace TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, target TEXT NOT NULL,
    labels TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)) WITHOUT ROWID;
CREATE TABLE containers (
    namespace TEXT NOT NULL, id TEXT NOT NULL, image TEXT NOT NULL, runtime TEXT NOT NULL,
    runtime_options TEXT, spec TEXT, snapshotter TEXT NOT NULL, snapshot_key TEXT NOT NULL,
    labels TEXT NOT NULL, extensions TEXT NOT NULL, sandbox TEXT NOT NULL,
    spec_value BLOB, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, id));
CREATE TABLE snapshots (
    namespace TEXT NOT NULL, snapshotter TEXT NOT NULL, key TEXT NOT NULL, backend TEXT NOT NULL,
    parent TEXT NOT NULL, labels TEXT NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, snapshotter, key)) WITHOUT ROWID;
CREATE INDEX snapshot_children ON snapshots (namespace, snapshotter, parent);
CREATE INDEX snapshot_backends ON snapshots (snapshotter, backend);
CREATE TABLE blobs (
    namespace TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, labels TEXT NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, digest)) WITHOUT ROWID;
CREATE INDEX blob_owners ON blobs (digest);
CREATE TABLE ingests (
    namespace TEXT NOT NULL, ref TEXT NOT NULL, backend TEXT NOT NULL, expected TEXT NOT NULL,
    expires_at INTEGER NOT NULL, PRIMARY KEY (namespace, ref)) WITHOUT ROWID;
CREATE TABLE leases (
    namespace TEXT NOT NULL, id TEXT NOT NULL, labels TEXT NOT NULL, created_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, id)) WITHOUT ROWID;
CREATE TABLE lease_resources (
    namespace TEXT NOT NULL, lease TEXT NOT NULL, type TEXT NOT NULL, id TEXT NOT NULL,
    PRIMARY KEY (namespace, lease, type, id)) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
"""

V2 = """
CREATE TABLE sandboxes (
    namespace TEXT NOT NULL, id TEXT NOT NULL, runtime TEXT NOT NULL, runtime_options TEXT,
    spec TEXT, labels TEXT NOT NULL, extensions TEXT NOT NULL, sandboxer TEXT NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, id)) WITHOUT ROWID;
"""

V3 = """
CREATE TABLE commits (
    snapshotter TEXT NOT NULL, backend TEXT NOT NULL, namespace TEXT NOT NULL, key TEXT NOT NULL,
    consumed TEXT NOT NULL, name TEXT NOT NULL, parent TEXT NOT NULL, labels TEXT NOT NULL,
    lease TEXT NOT NULL, PRIMARY KEY (snapshotter, backend));
"""

V4 = """
CREATE TABLE looked (backend TEXT PRIMARY KEY) WITHOUT ROWID;
INSERT INTO looked VALUES ('*');
"""

MIGRATIONS: tuple[str, ...] = (V1, V2, V3, V4)
"""Statement n takes a database of version n to n+1; the version is PRAGMA user_version."""
