"""One layer to one snapshot, made once or not at all."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from kontti.content.base import Store
from kontti.diff.base import Applier, Incoming, IncomingApplier
from kontti.errors import AlreadyExists, Error, FailedPrecondition, NotFound, Unavailable
from kontti.snapshots.base import INHERITED_PREFIX, TARGET_LABEL, Snapshotter
from kontti.transfer.base import Unpacking
from kontti.transfer.flights import Flights, IsStopped, Unpacks, never
from kontti.transfer.incoming import ALL_THERE, Blobs, Broken
from kontti.transfer.labels import UNCOMPRESSED, add_labels
from kontti.transfer.progress import Reporter, waiting
from kontti.values import EMPTY, Descriptor, Digest, Mount, Resource

ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to apply: its blob, its tree's digest uncompressed, the chain that ends with it.

    ``hints`` are labels that tell a remote snapshotter where it is.
    """

    descriptor: Descriptor
    diff_id: Digest
    chain_id: Digest
    parent: str
    hints: Mapping[str, str] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An active snapshot that a layer is to be extracted to."""

    key: str
    mounts: Sequence[Mount]


@dataclass(frozen=True, slots=True)
class LayerUnpacker:
    """Unpacks into one snapshotter of one namespace."""

    content: Store
    snapshots: Snapshotter
    applier: Applier
    options: Unpacking
    reporter: Reporter
    flights: Flights
    namespace: str
    keep: Callable[[Resource], None]
    """Has the transfer's lease keep what is there already."""
    unpacks: Unpacks = field(default_factory=Unpacks)

    def flight(self, layer: Layer, is_stopped: IsStopped = never) -> AbstractContextManager[None]:
        """Held while a layer is unpacked: another transfer of it waits."""
        key = (self.namespace, self.options.snapshotter, layer.chain_id)
        return self.flights.hold(key, waiting(self.reporter, layer.descriptor, is_stopped))

    def exists(self, layer: Layer) -> bool:
        """Whether the layer's snapshot is there; from then on the transfer's lease keeps it."""
        try:
            self.snapshots.stat(layer.chain_id)
            self.keep(Resource(layer.chain_id, f"snapshots/{self.options.snapshotter}"))
            # a collection may have had it in between
            self.snapshots.stat(layer.chain_id)
        except NotFound:
            return False
        return True

    def ensure(self, layer: Layer, blobs: Blobs = ALL_THERE, is_stopped: IsStopped = never) -> None:
        """Make the layer's snapshot be there; its parent is, and its blob comes.

        ``blobs`` is not asked where the snapshotter has the layer already.
        """
        try:
            self._ensure(layer, blobs, is_stopped)
        except Broken:
            # what came was not the blob, or no layer: the whole blob tells which
            blobs.fetched(layer.descriptor, is_stopped)
            self._ensure(layer, ALL_THERE, is_stopped)

    def _ensure(self, layer: Layer, blobs: Blobs, is_stopped: IsStopped) -> None:
        labels = self.labels(layer)
        prepared = None if self.exists(layer) else self.prepare(layer, layer.parent, labels)
        if prepared is None:
            return
        with (
            self.undoing(prepared.key),
            self.reading(layer, blobs, is_stopped) as incoming,
            self.naming(layer),
        ):
            self.reporter.blob("extracting", layer.descriptor)
            self._apply(layer, prepared.mounts, incoming, blobs, is_stopped)
            self.commit(layer, prepared.key, labels)
        self.reporter.blob("extracted", layer.descriptor, layer.descriptor.size)

    @contextlib.contextmanager
    def reading(
        self, layer: Layer, blobs: Blobs, is_stopped: IsStopped
    ) -> Iterator[Incoming | None]:
        """A layer's turn to be unpacked: of its blob on the way, or, None, when it is there."""
        with contextlib.ExitStack() as stack:
            incoming = stack.enter_context(blobs.incoming(layer.descriptor, is_stopped))
            can_follow = incoming is not None and isinstance(self.applier, IncomingApplier)
            if can_follow and stack.enter_context(self.unpacks.following()):
                yield incoming
                return
            blobs.fetched(layer.descriptor, is_stopped)
            waits = waiting(self.reporter, layer.descriptor, is_stopped)
            stack.enter_context(self.unpacks.hold(waits))
            yield None

    def labels(self, layer: Layer) -> Mapping[str, str]:
        """What the layer's snapshot is labelled with."""
        hints = layer.descriptor.annotations.items()
        inherited = {k: v for k, v in hints if k.startswith(INHERITED_PREFIX)}
        return {**inherited, **layer.hints, **self.options.labels, TARGET_LABEL: layer.chain_id}

    def prepare(
        self, layer: Layer, parent: str, labels: Mapping[str, str] = EMPTY
    ) -> Prepared | None:
        """A snapshot to extract to; None where a remote snapshotter has the layer's already."""
        for _ in range(ATTEMPTS):
            nanoseconds = time.time_ns() % 1_000_000_000
            key = f"extract-{nanoseconds}-{secrets.token_hex(3)} {layer.chain_id}"
            try:
                return Prepared(key, self.snapshots.prepare(key, parent, labels))
            except AlreadyExists:
                # a remote snapshotter has the target now, or the key is taken
                if self.exists(layer):
                    return None
        raise Unavailable(f"unable to prepare a snapshot for {layer.chain_id}")

    @contextlib.contextmanager
    def dropping(self, layer: Layer, key: str) -> Iterator[None]:
        """Removes snapshot ``key`` where the block fails; errors name the layer."""
        with self.undoing(key), self.naming(layer):
            yield

    @contextlib.contextmanager
    def undoing(self, key: str) -> Iterator[None]:
        """Removes snapshot ``key`` where the block fails."""
        try:
            yield
        except BaseException:
            self.drop(key)
            raise

    @contextlib.contextmanager
    def naming(self, layer: Layer) -> Iterator[None]:
        """Errors of the block name the layer."""
        try:
            yield
        except Error as error:
            message = f"failed to extract layer {layer.diff_id}: {error.message}"
            raise type(error)(message) from error

    def drop(self, key: str) -> None:
        """The caller must hear of the first failure: what cannot be removed now is collected."""
        with contextlib.suppress(Error):
            self.snapshots.remove(key)

    def _apply(
        self,
        layer: Layer,
        mounts: Sequence[Mount],
        incoming: Incoming | None,
        blobs: Blobs,
        is_stopped: IsStopped,
    ) -> None:
        sync = self.options.sync_fs
        if incoming is None or not isinstance(self.applier, IncomingApplier):
            applied = self.applier.apply(layer.descriptor, mounts, sync)
        else:
            with self.arriving(layer, blobs, is_stopped):
                applied = self.applier.apply_incoming(layer.descriptor, mounts, incoming, sync)
                check(layer, applied)
        self.verified(layer, applied)

    @contextlib.contextmanager
    def arriving(self, layer: Layer, blobs: Blobs, is_stopped: IsStopped) -> Iterator[None]:
        """A block that reads what comes in, and waits for the rest; errors become Broken."""
        try:
            yield
            blobs.fetched(layer.descriptor, is_stopped)
        except Error as error:
            raise Broken from error

    def verified(self, layer: Layer, applied: Descriptor) -> None:
        """Record what the layer was uncompressed; raises FailedPrecondition for another."""
        check(layer, applied)
        add_labels(self.content, layer.descriptor.digest, {UNCOMPRESSED: layer.diff_id})

    def commit(
        self, layer: Layer, key: str, labels: Mapping[str, str], parent: str | None = None
    ) -> None:
        """Make snapshot ``key`` the layer's; ``parent`` where it was prepared without one."""
        try:
            self.snapshots.commit(layer.chain_id, key, labels, parent)
        except AlreadyExists:
            # another process was quicker
            self.drop(key)


def check(layer: Layer, applied: Descriptor) -> None:
    """Raises FailedPrecondition where what was applied is not the layer that the config names."""
    if applied.digest != layer.diff_id:
        raise FailedPrecondition(f'wrong diff id calculated on extraction "{applied.digest}"')
