"""Stores in memory, as strict as the real ones where it matters to who uses them."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from kontti.content.base import Buffer, Status
from kontti.content.base import Info as ContentInfo
from kontti.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from kontti.metadata.base import Image, Lease
from kontti.namespaces import Scope
from kontti.snapshots.base import Info as SnapshotInfo
from kontti.snapshots.base import Kind, Usage
from kontti.values import EMPTY, Descriptor, Digest, Mount, Resource, merge_labels


def sha256(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


class MemoryReader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def path(self) -> str | None:
        return None

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def read_now(self, offset: int, length: int) -> bytes:
        return self.read_at(offset, length)

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class MemoryContent:
    """A content store; ``ingests`` and ``blobs`` are there to be looked at."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.infos: dict[Digest, ContentInfo] = {}
        self.ingests: dict[str, bytearray] = {}
        self.held: set[str] = set()
        self.lock = threading.RLock()

    def reader(self, digest: Digest) -> MemoryReader:
        self.info(digest)
        return MemoryReader(self.blobs[digest])

    def info(self, digest: Digest) -> ContentInfo:
        if digest not in self.infos:
            raise NotFound(f"content {digest}")
        return self.infos[digest]

    def labels(self, digest: str) -> Mapping[str, str]:
        return self.infos[Digest(digest)].labels

    def put(self, data: bytes, labels: Mapping[str, str] = EMPTY) -> Digest:
        digest = sha256(data)
        self.blobs[digest] = data
        self.infos[digest] = ContentInfo(digest, len(data), labels=dict(labels))
        return digest

    def update(self, info: ContentInfo, paths: Sequence[str] = ()) -> ContentInfo:
        with self.lock:
            old = self.info(info.digest)
            new = replace(old, labels=merge_labels(old.labels, info.labels, paths))
            self.infos[info.digest] = new
            return new

    def walk(self, filters: Sequence[str] = ()) -> Iterator[ContentInfo]:
        yield from list(self.infos.values())

    def delete(self, digest: Digest) -> None:
        self.info(digest)
        del self.infos[digest], self.blobs[digest]

    def status(self, ref: str) -> Status:
        if ref not in self.ingests:
            raise NotFound(f"ingest {ref}")
        return Status(ref, len(self.ingests[ref]), 0, "", 0, 0)

    def list_statuses(self, filters: Sequence[str] = ()) -> list[Status]:
        return [self.status(ref) for ref in self.ingests]

    def abort(self, ref: str) -> None:
        self.status(ref)
        if ref in self.held:
            raise Unavailable(f"ref {ref} locked")
        del self.ingests[ref]

    def writer(self, ref: str, total: int = 0, expected: str = "") -> MemoryWriter:
        with self.lock:
            if expected in self.infos:
                raise AlreadyExists(f"content {expected}")
            if not ref:
                raise InvalidArgument("ref must not be empty")
            if ref in self.held:
                raise Unavailable(f"ref {ref} locked")
            self.held.add(ref)
            return MemoryWriter(self, ref, self.ingests.setdefault(ref, bytearray()))


class MemoryWriter:
    def __init__(self, store: MemoryContent, ref: str, data: bytearray) -> None:
        self._store, self._ref, self._data = store, ref, data

    @property
    def path(self) -> None:
        return None

    def status(self) -> Status:
        return Status(self._ref, len(self._data), 0, "", 0, 0)

    def write(self, data: Buffer) -> int:
        self._data += data
        return len(data)

    def truncate(self, size: int) -> None:
        del self._data[size:]

    def digest(self) -> Digest:
        return sha256(bytes(self._data))

    def commit(
        self, size: int = 0, expected: str = "", labels: Mapping[str, str] = EMPTY
    ) -> Digest:
        data = bytes(self._data)
        if size and len(data) != size:
            raise FailedPrecondition(f"unexpected commit size {len(data)}, expected {size}")
        if expected and sha256(data) != expected:
            raise FailedPrecondition(
                f"unexpected commit digest {sha256(data)}, expected {expected}"
            )
        with self._store.lock:
            del self._store.ingests[self._ref]
            if sha256(data) in self._store.infos:
                raise AlreadyExists(f"content {sha256(data)}")
            return self._store.put(data, labels)

    def close(self) -> None:
        self._store.held.discard(self._ref)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class MemorySnapshots:
    """A snapshotter; what was applied to a snapshot is in ``trees``."""

    capabilities: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.infos: dict[str, SnapshotInfo] = {}
        self.trees: dict[str, list[bytes]] = {}

    def committed(self) -> list[str]:
        return [i.name for i in self.infos.values() if i.kind is Kind.COMMITTED]

    def stat(self, key: str) -> SnapshotInfo:
        if key not in self.infos:
            raise NotFound(f"snapshot {key} does not exist")
        return self.infos[key]

    def update(self, info: SnapshotInfo, paths: Sequence[str] = ()) -> SnapshotInfo:
        old = self.stat(info.name)
        self.infos[info.name] = replace(old, labels=merge_labels(old.labels, info.labels, paths))
        return self.infos[info.name]

    def usage(self, key: str) -> Usage:
        self.stat(key)
        return Usage()

    def mounts(self, key: str) -> list[Mount]:
        self.stat(key)
        return [Mount("memory", key)]

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        return self._make(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        return self._make(Kind.VIEW, key, parent, labels)

    def _make(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        if key in self.infos:
            raise AlreadyExists(f"snapshot {key}")
        if parent and self.stat(parent).kind is not Kind.COMMITTED:
            raise InvalidArgument(f"parent {parent} is not committed")
        self.infos[key] = SnapshotInfo(kind, key, parent, labels)
        self.trees[key] = list(self.trees.get(parent, ()))
        return self.mounts(key)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        active = self.stat(key)
        if name in self.infos:
            raise AlreadyExists(f"snapshot {name}")
        self.infos[name] = SnapshotInfo(Kind.COMMITTED, name, active.parent, labels)
        self.trees[name] = self.trees.pop(key)
        del self.infos[key]

    def remove(self, key: str) -> None:
        self.stat(key)
        del self.infos[key], self.trees[key]

    def walk(self, filters: Sequence[str] = ()) -> Iterator[SnapshotInfo]:
        yield from list(self.infos.values())

    def cleanup(self) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryImages:
    def __init__(self) -> None:
        self.records: dict[str, Image] = {}

    def get(self, name: str) -> Image:
        if name not in self.records:
            raise NotFound(f'image "{name}"')
        return self.records[name]

    def list(self, filters: Sequence[str] = ()) -> Sequence[Image]:
        return [*self.records.values()]

    def create(self, image: Image) -> Image:
        if image.name in self.records:
            raise AlreadyExists(f'image "{image.name}"')
        self.records[image.name] = image
        return image

    def update(self, image: Image, paths: Sequence[str] = ()) -> Image:
        self.get(image.name)
        self.records[image.name] = image
        return image

    def delete(self, name: str, target: Descriptor | None = None) -> None:
        self.get(name)
        del self.records[name]


class MemoryLeases:
    def __init__(self) -> None:
        self.records: dict[str, Lease] = {}
        self.made = 0

    def create(self, id: str, labels: Mapping[str, str] = EMPTY) -> Lease:
        if id in self.records:
            raise AlreadyExists(f'lease "{id}"')
        self.made += 1
        self.records[id] = Lease(id, 0, labels)
        return self.records[id]

    def delete(self, id: str) -> None:
        if id not in self.records:
            raise NotFound(f'lease "{id}"')
        del self.records[id]

    def list(self, filters: Sequence[str] = ()) -> Sequence[Lease]:
        return [*self.records.values()]

    def add_resource(self, id: str, resource: Resource) -> None: ...
    def delete_resource(self, id: str, resource: Resource) -> None: ...
    def list_resources(self, id: str) -> Sequence[Resource]:
        return []


@dataclass
class MemoryStores:
    """All of them, for one namespace; ``leased`` says with which leases content was asked for."""

    content_store: MemoryContent = field(default_factory=MemoryContent)
    snapshot_store: MemorySnapshots = field(default_factory=MemorySnapshots)
    image_store: MemoryImages = field(default_factory=MemoryImages)
    lease_store: MemoryLeases = field(default_factory=MemoryLeases)
    leased: list[str] = field(default_factory=list)

    def content(self, scope: Scope) -> MemoryContent:
        self.leased.append(scope.lease)
        return self.content_store

    def snapshots(self, scope: Scope, snapshotter: str) -> MemorySnapshots:
        return self.snapshot_store

    def images(self, scope: Scope) -> MemoryImages:
        return self.image_store

    def leases(self, scope: Scope) -> MemoryLeases:
        return self.lease_store


@dataclass
class MemoryApplier:
    """Applies a layer by keeping its uncompressed tar. ``fail`` names a layer to fail at."""

    stores: MemoryStores
    fail: str = ""
    applied: list[str] = field(default_factory=list)

    def apply(
        self, layer: Descriptor, mounts: Sequence[Mount], sync_fs: bool = False
    ) -> Descriptor:
        if layer.digest == self.fail:
            raise InvalidArgument("unexpected entry")
        with self.stores.content_store.reader(layer.digest) as reader:
            data = reader.read_at(0, reader.size)
        tar = gzip.decompress(data) if layer.media_type.endswith("gzip") else data
        self.stores.snapshot_store.trees[mounts[0].source].append(tar)
        self.applied.append(layer.digest)
        return Descriptor("application/vnd.oci.image.layer.v1.tar", sha256(tar), len(tar))
