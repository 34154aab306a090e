"""A remote snapshotter at a socket: it has an image's layers by itself, when it is told which."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from kontti.client.convert import mounts_to_wire
from kontti.errors import AlreadyExists, Error, NotFound
from kontti.snapshots.base import TARGET_LABEL, Info, Kind
from kontti.snapshots.native import NativeSnapshotter
from kontti.values import Mount
from kontti.wire.messages.google import Empty, Timestamp
from kontti.wire.messages.services.snapshots.v1 import snapshots as wire
from kontti.wire.protobuf import Message

SERVICE = "containerd.services.snapshots.v1.Snapshots"
STATUS = {status.value[0]: status for status in grpc.StatusCode}
REFERENCE, LAYER = "containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/cri.layer-digest"
MARK = {"containerd.io/snapshot/remote": "remote snapshot"}
BILLION = 10**9


class RemoteSnapshots:
    """Snapshots under ``root``; ``layers`` are uncompressed tars by their packed ones' digests.

    ``asked`` are the labels of every Prepare. Before its first snapshot it says, as stargz does,
    that it has no bucket.
    """

    def __init__(self, root: Path, layers: Mapping[str, bytes]) -> None:
        self.store = NativeSnapshotter(str(root))
        self.layers = dict(layers)
        self.asked: list[Mapping[str, str]] = []
        self._is_new = True
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """What it has."""
        return [info.name for info in self.store.walk()]

    def prepare(self, request: wire.PrepareSnapshotRequest) -> wire.PrepareSnapshotResponse:
        labels = dict(request.labels)
        with self._lock:
            self._is_new = False
            self.asked.append(labels)
            mounts = self.store.prepare(request.key, request.parent, labels)
            if TARGET_LABEL in labels and labels.get(LAYER) in self.layers and labels[REFERENCE]:
                self._fill(request.key, labels, mounts[0])
        return wire.PrepareSnapshotResponse(mounts=mounts_to_wire(mounts))

    def _fill(self, key: str, labels: Mapping[str, str], mount: Mount) -> None:
        target = labels[TARGET_LABEL]
        extract(self.layers[labels[LAYER]], Path(mount.source))
        with contextlib.suppress(AlreadyExists):
            self.store.commit(target, key, {**labels, **MARK})
        raise AlreadyExists(f'target snapshot "{target}"')

    def view(self, request: wire.ViewSnapshotRequest) -> wire.ViewSnapshotResponse:
        mounts = self.store.view(request.key, request.parent, dict(request.labels))
        return wire.ViewSnapshotResponse(mounts=mounts_to_wire(mounts))

    def mounts(self, request: wire.MountsRequest) -> wire.MountsResponse:
        return wire.MountsResponse(mounts=mounts_to_wire(self.store.mounts(request.key)))

    def commit(self, request: wire.CommitSnapshotRequest) -> Empty:
        self.store.commit(request.name, request.key, dict(request.labels), request.parent or None)
        return Empty()

    def remove(self, request: wire.RemoveSnapshotRequest) -> Empty:
        self.store.remove(request.key)
        return Empty()

    def stat(self, request: wire.StatSnapshotRequest) -> wire.StatSnapshotResponse:
        return wire.StatSnapshotResponse(info=told(self.store.stat(request.key)))

    def usage(self, request: wire.UsageRequest) -> wire.UsageResponse:
        usage = self.store.usage(request.key)
        return wire.UsageResponse(size=usage.size, inodes=usage.inodes)

    def cleanup(self, _: wire.CleanupRequest) -> Empty:
        self._check()
        return Empty()

    def walk(self, request: wire.ListSnapshotsRequest) -> Iterator[wire.ListSnapshotsResponse]:
        self._check()
        yield wire.ListSnapshotsResponse(
            info=[told(info) for info in self.store.walk(list(request.filters))]
        )

    def _check(self) -> None:
        if self._is_new:
            raise NotFound("bucket does not exist")


def told(info: Info) -> wire.Info:
    """An Info as a message."""
    created, updated = (
        Timestamp(seconds=ns // BILLION, nanos=ns % BILLION)
        for ns in (info.created_at, info.updated_at)
    )
    return wire.Info(
        name=info.name,
        parent=info.parent,
        kind=int(Kind(info.kind)),
        labels=info.labels,
        created_at=created,
        updated_at=updated,
    )


def extract(tar: bytes, root: Path) -> None:
    """Apply a layer that is our own."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for entry in archive:
            folder, name = os.path.split(entry.name)
            if name.startswith(".wh."):
                (root / folder / name.removeprefix(".wh.")).unlink()
            else:
                archive.extract(entry, root, filter="fully_trusted")


METHODS: tuple[tuple[str, type[Message], Callable[[RemoteSnapshots, Any], Message]], ...] = (
    ("Prepare", wire.PrepareSnapshotRequest, RemoteSnapshots.prepare),
    ("View", wire.ViewSnapshotRequest, RemoteSnapshots.view),
    ("Mounts", wire.MountsRequest, RemoteSnapshots.mounts),
    ("Commit", wire.CommitSnapshotRequest, RemoteSnapshots.commit),
    ("Remove", wire.RemoveSnapshotRequest, RemoteSnapshots.remove),
    ("Stat", wire.StatSnapshotRequest, RemoteSnapshots.stat),
    ("Usage", wire.UsageRequest, RemoteSnapshots.usage),
    ("Cleanup", wire.CleanupRequest, RemoteSnapshots.cleanup),
)


@contextlib.contextmanager
def serving(snapshots: RemoteSnapshots, address: str) -> Iterator[None]:
    """It listens at ``address`` until the block ends."""
    handlers = {name: _unary(snapshots, *row) for name, *row in METHODS}
    handlers["List"] = _listing(snapshots)
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"unix:{address}")
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait(10)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)


def _unary(
    snapshots: RemoteSnapshots,
    request: type[Message],
    answer: Callable[[RemoteSnapshots, Any], Message],
) -> Any:
    def do(data: bytes, context: Any) -> bytes:
        with aborting(context):
            return answer(snapshots, request.decode(data)).encode()

    return grpc.unary_unary_rpc_method_handler(do)


def _listing(snapshots: RemoteSnapshots) -> Any:
    def do(data: bytes, context: Any) -> Iterator[bytes]:
        with aborting(context):
            for page in snapshots.walk(wire.ListSnapshotsRequest.decode(data)):
                yield page.encode()

    return grpc.unary_stream_rpc_method_handler(do)


@contextlib.contextmanager
def aborting(context: Any) -> Iterator[None]:
    """Errors are answered as what they are."""
    try:
        yield
    except Error as error:
        context.abort(STATUS[error.code], error.message)
