"""Bringing over what a containerd root holds: blobs by hard link, layers unpacked anew.

Every blob is hashed before it is taken, and layers are unpacked from the blobs, so nothing is run
that was not checked. A container's own files are copied: it will go on writing them. What is there
already stays; what cannot be had is told of and does not keep the rest away.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from kontti.content.base import Store
from kontti.errors import AlreadyExists, DataLoss, Error, FailedPrecondition, NotFound
from kontti.images.ingest import ingest
from kontti.linux.fs import copy_tree
from kontti.metadata.base import Container, Image, Namespace
from kontti.metadata.content import NamespacedContent
from kontti.metadata.store import MetadataStore
from kontti.migrate.source import SourceBlob, SourceNamespace, SourceSnapshot
from kontti.namespaces import Scope
from kontti.snapshots.base import Snapshotter
from kontti.transfer.base import Selection, Unpacking
from kontti.transfer.lease import leased
from kontti.transfer.parts import Parts, unpack
from kontti.values import Digest

SNAPSHOTTER = "overlayfs"
MAX_PARENTS = 512
CHUNK = 1 << 20


class Adopter(Protocol):
    """A content store that can take a file over as a blob."""

    def adopt(self, path: str, digest: Digest) -> int: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one thing: ``kind`` image, container, blob or namespace; "" for no problem."""

    namespace: str
    kind: str
    name: str
    problem: str = ""
    present: bool = False


Tell = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class Migration:
    """Brings namespaces over into ``metadata``; ``copy`` copies blobs instead of linking them."""

    metadata: MetadataStore
    adopter: Adopter
    parts: Parts
    copy: bool = False
    mounted: frozenset[str] = field(default_factory=frozenset)
    """Upper directories that overlay mounts use now: of containers that run."""

    def run(self, namespaces: tuple[SourceNamespace, ...], tell: Tell) -> None:
        """Bring all of them over, telling what became of each thing."""
        for namespace in namespaces:
            self._namespace(namespace, tell)

    def _namespace(self, source: SourceNamespace, tell: Tell) -> None:
        with suppress(AlreadyExists):
            self.metadata.namespaces.create(Namespace(source.name, source.labels))
        with leased(self.metadata, Scope.of(source.name)) as scope:
            content = self.metadata.content(scope)
            for blob in source.blobs:
                self._attempt(source, "blob", blob.digest, tell, self._blob, content, blob)
            for image in source.images:
                self._attempt(source, "image", image.name, tell, self._image, scope, image, source)
            for container in source.containers:
                args = (scope, container, source.snapshots)
                self._attempt(source, "container", container.id, tell, self._container, *args)

    @staticmethod
    def _attempt(
        source: SourceNamespace,
        kind: str,
        name: str,
        tell: Tell,
        function: Callable[..., None],
        *args: object,
    ) -> None:
        outcome = Outcome(source.name, kind, name)
        try:
            function(*args)
        except AlreadyExists:
            outcome = replace(outcome, present=True)
        except Error as error:
            outcome = replace(outcome, problem=error.message)
        except OSError as error:
            outcome = replace(outcome, problem=f"{error.filename}: {error.strerror}")
        tell(outcome)

    def _blob(self, content: NamespacedContent, blob: SourceBlob) -> None:
        if self.copy:
            ref = f"migrate-{blob.digest}"
            with suppress(NotFound):
                content.info(blob.digest)
                raise AlreadyExists(f"content {blob.digest}")
            size = os.stat(blob.path).st_size
            ingest(content, ref, _chunks(blob.path), size, blob.digest)
        else:
            content.adopt(blob.digest, lambda: self.adopter.adopt(blob.path, blob.digest))
        _label(content, blob)

    def _image(self, scope: Scope, image: Image, source: SourceNamespace) -> None:
        """Record an image; unpack it where the source has it unpacked."""
        content = self.metadata.content(scope)
        content.info(image.target.digest)
        made = False
        with suppress(AlreadyExists):
            self.metadata.images(scope).create(image)
            made = True
        if source.snapshots:
            unpack(self.parts, scope, image.target, Unpacking(SNAPSHOTTER), Selection())
        if not made:
            raise AlreadyExists(f'image "{image.name}"')

    def _container(
        self, scope: Scope, container: Container, snapshots: Mapping[str, SourceSnapshot]
    ) -> None:
        """Record a stopped container, with a copy of its files."""
        containers = self.metadata.containers(scope)
        with suppress(NotFound):
            containers.get(container.id)
            raise AlreadyExists(f'container "{container.id}"')
        if container.snapshot_key and container.snapshotter != SNAPSHOTTER:
            raise FailedPrecondition(f"its files are kept by {container.snapshotter}")
        if not container.snapshot_key:
            containers.create(container)
            return
        store = self.metadata.snapshots(scope, SNAPSHOTTER)
        self._snapshot(store, container.snapshot_key, snapshots)
        try:
            containers.create(container)
        except BaseException:
            store.remove(container.snapshot_key)
            raise

    def _snapshot(
        self, store: Snapshotter, key: str, snapshots: Mapping[str, SourceSnapshot]
    ) -> None:
        """A snapshot with those below it that are not there yet, from the lowest."""
        wanted = list(_missing(store, key, snapshots))
        for snapshot in wanted:
            if snapshot.directory in self.mounted:
                raise FailedPrecondition("it is running: stop it first")
        for snapshot in reversed(wanted):
            _copy(store, snapshot)


def _missing(
    store: Snapshotter, key: str, snapshots: Mapping[str, SourceSnapshot]
) -> Iterator[SourceSnapshot]:
    """``key``'s snapshot and its parents up to the first that is there."""
    for _ in range(MAX_PARENTS):
        if not key or _exists(store, key):
            return
        if key not in snapshots:
            raise NotFound(f"snapshot {key}")
        yield snapshots[key]
        key = snapshots[key].parent
    raise DataLoss(f"snapshot {key} has too many parents")


def _exists(store: Snapshotter, key: str) -> bool:
    try:
        store.stat(key)
    except NotFound:
        return False
    return True


def _copy(store: Snapshotter, snapshot: SourceSnapshot) -> None:
    """Copy one snapshot's own files; a failure leaves nothing."""
    key = snapshot.key if snapshot.active else f"migrate-{snapshot.key}"
    mounts = store.prepare(key, snapshot.parent, snapshot.labels if snapshot.active else {})
    try:
        copy_tree(snapshot.directory, _upper(mounts[0].source, mounts[0].options))
        if not snapshot.active:
            store.commit(snapshot.key, key, snapshot.labels)
    except BaseException:
        with suppress(NotFound):
            store.remove(key)
        raise


def _upper(source: str, options: tuple[str, ...]) -> str:
    """The directory that a snapshot's own files are in, by its mount."""
    prefix = "upperdir="
    return next((o.removeprefix(prefix) for o in options if o.startswith(prefix)), source)


def _label(content: Store, blob: SourceBlob) -> None:
    """The labels that the blob has there, besides those it has here."""
    info = content.info(blob.digest)
    if {**blob.labels, **info.labels} != dict(info.labels):
        paths = [f"labels.{key}" for key in blob.labels]
        content.update(replace(info, labels={**info.labels, **blob.labels}), paths)


def _chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            yield data
