"""A root that containerd made, read: nothing in it is written, and nobody may be writing it.

io.containerd.metadata.v1.bolt/meta.db            names: images, containers, blobs, snapshots
io.containerd.content.v1.content/blobs/           the blobs
io.containerd.snapshotter.v1.overlayfs/           metadata.db, snapshots/<number>/fs
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kontti.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from kontti.metadata.base import Container, Image
from kontti.values import AnyValue, Descriptor, Digest
from kontti.wire.bolt import Bucket, Database
from kontti.wire.messages.google import Any
from kontti.wire.primitives import take_varint

METADATA = "io.containerd.metadata.v1.bolt/meta.db"
BLOBS = "io.containerd.content.v1.content/blobs"
OVERLAY = "io.containerd.snapshotter.v1.overlayfs"
VERSION = "v1"
ACTIVE = 2
"""A snapshot's kind, as the snapshotter's database has it."""


@dataclass(frozen=True, slots=True)
class SourceBlob:
    """A blob's name, its labels and its file."""

    digest: Digest
    labels: Mapping[str, str]
    path: str


@dataclass(frozen=True, slots=True)
class SourceSnapshot:
    """An overlayfs snapshot: its parent's key, "" for none, and the directory of its own files."""

    key: str
    parent: str
    labels: Mapping[str, str]
    directory: str
    active: bool


@dataclass(frozen=True, slots=True)
class SourceNamespace:
    """What one namespace holds; snapshots by key."""

    name: str
    labels: Mapping[str, str]
    images: tuple[Image, ...]
    containers: tuple[Container, ...]
    blobs: tuple[SourceBlob, ...]
    snapshots: Mapping[str, SourceSnapshot]


def read(root: str) -> tuple[SourceNamespace, ...]:
    """Everything in ``root``.

    Raises NotFound where there is no such root, FailedPrecondition while a containerd has it open,
    InvalidArgument and DataLoss for a database that is none or is damaged.
    """
    folder = os.path.join(root, OVERLAY)
    with opened(os.path.join(root, METADATA)) as metadata, _snapshotter(folder) as backend:
        namespaces = metadata.root.bucket(VERSION)
        if namespaces is None:
            return ()
        return tuple(
            _namespace(name, bucket, root, backend) for name, bucket in namespaces.buckets()
        )


@contextlib.contextmanager
def opened(path: str) -> Iterator[Database]:
    """A database, held against writers; nothing of it may be used after the block."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{path}: containerd's database") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(f"{path} is in use: stop that containerd first") from None
        if not os.fstat(fd).st_size:
            raise InvalidArgument(f"{path}: not a database")
        mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        yield Database(memoryview(mapping))
    finally:
        # a mapping keeps a descriptor of its own, and with it the lock
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


@contextlib.contextmanager
def _snapshotter(folder: str) -> Iterator[Mapping[str, SourceSnapshot]]:
    """The snapshotter's own records by its own names; none where it was never used."""
    path = os.path.join(folder, "metadata.db")
    if not os.path.exists(path):
        yield {}
        return
    with opened(path) as database:
        records = database.root.bucket(VERSION, "snapshots")
        found = {} if records is None else dict(_backend_records(records, folder))
        yield found


def _backend_records(records: Bucket, folder: str) -> Iterator[tuple[str, SourceSnapshot]]:
    for name, record in records.buckets():
        number = _number(record.value("id"))
        directory = os.path.join(folder, "snapshots", str(number), "fs")
        kind = record.value("kind")[:1]
        yield name, SourceSnapshot(name, "", {}, directory, kind == bytes((ACTIVE,)))


def _number(value: bytes) -> int:
    return take_varint(value, 0, len(value))[0] if value else 0


def _namespace(
    name: str, bucket: Bucket, root: str, backend: Mapping[str, SourceSnapshot]
) -> SourceNamespace:
    return SourceNamespace(
        name,
        _labels(bucket),
        tuple(_image(key, found) for key, found in _in(bucket, "images")),
        tuple(_container(key, found) for key, found in _in(bucket, "containers")),
        tuple(_blob(key, found, root) for key, found in _in(bucket, "content", "blob")),
        dict(_snapshots(bucket, backend)),
    )


def _in(bucket: Bucket, *path: str) -> Iterator[tuple[str, Bucket]]:
    found = bucket.bucket(*path)
    return iter(()) if found is None else found.buckets()


def _labels(bucket: Bucket) -> Mapping[str, str]:
    return _texts(bucket, "labels")


def _texts(bucket: Bucket, name: str) -> Mapping[str, str]:
    found = bucket.bucket(name)
    return {} if found is None else {key: _text(value) for key, value in found.values()}


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DataLoss(f"containerd's database: {value[:40]!r} is no text") from None


def _image(name: str, bucket: Bucket) -> Image:
    target = bucket.bucket("target")
    if target is None:
        raise DataLoss(f"containerd's database: image {name!r:.80} has no target")
    size, _ = take_varint(target.value("size"), 0, len(target.value("size")))
    descriptor = Descriptor(
        _text(target.value("mediatype")),
        Digest.parse(_text(target.value("digest"))),
        # Go's signed varints: the lowest bit is the sign
        size >> 1,
        annotations=_texts(bucket, "annotations"),
    )
    return Image(name, descriptor, labels=_labels(bucket))


def _container(id: str, bucket: Bucket) -> Container:
    runtime = bucket.bucket("runtime")
    extensions = bucket.bucket("extensions")
    return Container(
        id=id,
        labels=_labels(bucket),
        image=_text(bucket.value("image")),
        runtime=_text(runtime.value("name")) if runtime else "",
        runtime_options=_any(runtime.value("options")) if runtime else None,
        spec=_any(bucket.value("spec")),
        snapshotter=_text(bucket.value("snapshotter")),
        snapshot_key=_text(bucket.value("snapshotKey")),
        extensions={
            key: packed
            for key, value in (extensions.values() if extensions else ())
            if (packed := _any(value)) is not None
        },
        sandbox=_text(bucket.value("sandboxid")),
    )


def _any(value: bytes) -> AnyValue | None:
    if not value:
        return None
    packed = Any.decode(value)
    return AnyValue(packed.type_url, packed.value)


def _blob(name: str, bucket: Bucket, root: str) -> SourceBlob:
    digest = Digest.parse(name)
    path = os.path.join(root, BLOBS, digest.algorithm, digest.encoded)
    return SourceBlob(digest, _labels(bucket), path)


def _snapshots(
    bucket: Bucket, backend: Mapping[str, SourceSnapshot]
) -> Iterator[tuple[str, SourceSnapshot]]:
    """The overlayfs snapshots of a namespace that the snapshotter has too."""
    for key, record in _in(bucket, "snapshots", "overlayfs"):
        held = backend.get(_text(record.value("name")))
        if held is not None:
            parent = _text(record.value("parent"))
            yield key, SourceSnapshot(key, parent, _labels(record), held.directory, held.active)
