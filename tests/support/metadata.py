"""A metadata store over real content, and a snapshotter of dictionaries that fails when told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kontti.content.local import LocalStore
from kontti.errors import AlreadyExists, Error, FailedPrecondition, NotFound
from kontti.events.base import Envelope
from kontti.events.exchange import LocalExchange
from kontti.filters import parse_all
from kontti.metadata.snapshots import adaptor
from kontti.metadata.store import MetadataStore
from kontti.snapshots.base import Info, Kind, Usage
from kontti.values import EMPTY, Mount, merge_labels


class MemorySnapshotter:
    """snapshots.base.Snapshotter without file systems. ``fail`` names operations that raise."""

    capabilities: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.infos: dict[str, Info] = {}
        self.fail: dict[str, Error] = {}
        self.cleanups = 0
        self._lock = threading.Lock()

    def _enter(self, operation: str) -> None:
        if operation in self.fail:
            raise self.fail[operation]

    def stat(self, key: str) -> Info:
        self._enter("stat")
        if key not in self.infos:
            raise NotFound(f"snapshot {key} does not exist")
        return self.infos[key]

    def update(self, info: Info, paths: Sequence[str] = ()) -> Info:
        with self._lock:
            old = self.stat(info.name)
            new = replace(old, labels=merge_labels(old.labels, info.labels, paths))
            self.infos[info.name] = new
            return new

    def usage(self, key: str) -> Usage:
        self.stat(key)
        return Usage(1, 1)

    def mounts(self, key: str) -> list[Mount]:
        return [Mount("bind", self.stat(key).name)]

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        return self._create(Info(Kind.ACTIVE, key, parent, labels))

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY) -> list[Mount]:
        return self._create(Info(Kind.VIEW, key, parent, labels))

    def _create(self, info: Info) -> list[Mount]:
        self._enter("prepare")
        with self._lock:
            if info.name in self.infos:
                raise AlreadyExists(f"snapshot {info.name}")
            if info.parent and self.stat(info.parent).kind is not Kind.COMMITTED:
                raise FailedPrecondition(f"parent {info.parent} is not committed")
            self.infos[info.name] = info
        return self.mounts(info.name)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        self._enter("commit")
        with self._lock:
            old = self.stat(key)
            if old.kind is not Kind.ACTIVE:
                raise FailedPrecondition(f"snapshot {key} is not active")
            above = old.parent if parent is None else parent
            self.infos[name] = Info(Kind.COMMITTED, name, above, labels)
            del self.infos[key]

    def remove(self, key: str) -> None:
        self._enter("remove")
        with self._lock:
            self.stat(key)
            if any(i.parent == key for i in self.infos.values()):
                raise FailedPrecondition(f"snapshot {key} has children")
            del self.infos[key]

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        self._enter("walk")
        wanted = parse_all(filters)
        return iter([i for i in self.infos.values() if wanted.match(adaptor(i))])

    def cleanup(self) -> None:
        self.cleanups += 1

    def close(self) -> None:
        pass


@dataclass
class Stores:
    """What a test has in its hands."""

    metadata: MetadataStore
    backend: LocalStore
    snapshotter: MemorySnapshotter
    events: list[Envelope] = field(default_factory=list)

    def topics(self) -> list[str]:
        """Of the events so far."""
        return [e.topic for e in self.events]


@contextlib.contextmanager
def open_stores(
    root: Path, *, policy: str = "shared", snapshotter: MemorySnapshotter | None = None
) -> Iterator[Stores]:
    """Stores under ``root``; opened again there, they have what they had."""
    exchange = LocalExchange()
    content = LocalStore(str(root / "io.containerd.content.v1.content"))
    snapshots = snapshotter or MemorySnapshotter()
    path = str(root / "io.containerd.metadata.v1.sqlite" / "meta.db")
    metadata = MetadataStore(path, content, {"memory": snapshots}, exchange, policy=policy)
    stores = Stores(metadata, content, snapshots)
    exchange.subscribe([], stores.events.append)
    try:
        yield stores
    finally:
        metadata.close()
