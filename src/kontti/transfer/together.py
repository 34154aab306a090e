"""Layers of one image unpacked at the same time, each before its parents are there.

Every layer has a thread: it waits for the blob, extracts it to a snapshot of no parent, and is
done. In the caller's thread they are then settled over their parents and committed, in order. A
layer that must be extracted over its parents is, when its turn comes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from kontti.diff.base import Ahead, AheadApplier, Incoming, Root
from kontti.diff.lowers import NeedsParents
from kontti.snapshots.base import REBASE
from kontti.transfer.incoming import Blobs, Broken
from kontti.transfer.layer import Layer, LayerUnpacker, Prepared, check

MOST_THREADS = 16
PARENT_LABEL = "containerd.io/snapshot/parent-chain-id"
DIFF_ID_LABEL = "containerd.io/snapshot/diff-id"


def can_go_ahead(unpacker: LayerUnpacker) -> bool:
    """Whether layers need not wait for their parents, and may be unpacked at the same time."""
    return (
        unpacker.unpacks.count > 1
        and REBASE in unpacker.snapshots.capabilities
        and isinstance(unpacker.applier, AheadApplier)
    )


@dataclass(slots=True)
class _Begun:
    """How far a layer's thread came. ``flight`` is to be closed when all is done.

    ``prepared`` and ``ahead`` are None where nothing was made ahead.
    """

    flight: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    prepared: Prepared | None = None
    ahead: Ahead | None = None


class Together:
    """Unpacks the layers of one image that are missing."""

    def __init__(self, unpacker: LayerUnpacker, blobs: Blobs) -> None:
        assert isinstance(unpacker.applier, AheadApplier)
        self._unpacker, self._applier = unpacker, unpacker.applier
        self._blobs = blobs
        self._stop = threading.Event()

    def unpack(self, layers: Sequence[Layer]) -> None:
        """Make all their snapshots; ``layers`` are in order, the first one's parent is there."""
        futures: list[Future[_Begun]] = []
        with self._pool(min(len(layers), MOST_THREADS), futures) as pool:
            futures += [pool.submit(self._begin, layer, layer is layers[0]) for layer in layers]
            root: Root | None = None
            for layer, future in zip(layers, futures, strict=True):
                begun = future.result()
                with begun.flight:
                    root = self._finish(layer, begun, root)

    @contextlib.contextmanager
    def _pool(
        self, threads: int, futures: Sequence[Future[_Begun]]
    ) -> Iterator[ThreadPoolExecutor]:
        """Threads; where the block fails they are stopped, and what they have made is removed."""
        with ThreadPoolExecutor(threads, "unpack") as pool:
            try:
                yield pool
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                for future in futures:
                    self._undo(future)
                raise

    def _undo(self, future: Future[_Begun]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        begun = future.result()
        with begun.flight:
            if begun.prepared is not None:
                self._unpacker.drop(begun.prepared.key)
                begun.prepared = None

    def _begin(self, layer: Layer, is_first: bool) -> _Begun:
        """Extract a layer, in a thread of its own."""
        stopped = self._stop.is_set
        begun = _Begun()
        try:
            begun.flight.enter_context(self._unpacker.flight(layer, stopped))
            if is_first and layer.parent:
                self._unpacker.ensure(layer, self._blobs, stopped)
            elif not self._unpacker.exists(layer):
                with self._unpacker.reading(layer, self._blobs, stopped) as incoming:
                    self._extract(layer, begun, incoming)
        except BaseException:
            begun.flight.close()
            raise
        return begun

    def _extract(self, layer: Layer, begun: _Begun, incoming: Incoming | None) -> None:
        unpacker = self._unpacker
        # a remote snapshotter is asked for what it has with the parent given, when its turn comes
        hints = {PARENT_LABEL: layer.parent, DIFF_ID_LABEL: str(layer.diff_id)}
        prepared = unpacker.prepare(layer, "", {**unpacker.labels(layer), **hints})
        if prepared is None:
            return
        with unpacker.dropping(layer, prepared.key):
            unpacker.reporter.blob("extracting", layer.descriptor)
            begun.ahead = self._apply(layer, prepared, incoming)
        if begun.ahead is None:
            unpacker.drop(prepared.key)
        else:
            begun.prepared = prepared

    def _apply(self, layer: Layer, prepared: Prepared, incoming: Incoming | None) -> Ahead | None:
        """None for a layer that is to be extracted over its parents."""
        sync, stopped = self._unpacker.options.sync_fs, self._stop.is_set
        args = (layer.descriptor, prepared.mounts, sync, stopped)
        try:
            if incoming is None:
                ahead = self._applier.apply_ahead(*args)
            else:
                with self._unpacker.arriving(layer, self._blobs, stopped):
                    ahead = self._applier.apply_ahead(*args, incoming)
                    check(layer, ahead.applied)
        except (NeedsParents, Broken):
            return None
        self._unpacker.verified(layer, ahead.applied)
        return ahead

    def _finish(self, layer: Layer, begun: _Begun, root: Root | None) -> Root | None:
        """Commit a layer; ``root`` is how its parent's root looks, where that is known."""
        prepared, begun.prepared = begun.prepared, None
        if prepared is None or begun.ahead is None:
            self._unpacker.ensure(layer, self._blobs)
            return None
        try:
            with self._unpacker.dropping(layer, prepared.key):
                root = self._settle(layer, prepared, begun.ahead, root)
                labels = self._unpacker.labels(layer)
                self._unpacker.commit(layer, prepared.key, labels, layer.parent or None)
        except NeedsParents:
            self._unpacker.ensure(layer, self._blobs)
            return None
        self._unpacker.reporter.blob("extracted", layer.descriptor, layer.descriptor.size)
        return root

    def _settle(
        self, layer: Layer, prepared: Prepared, ahead: Ahead, root: Root | None
    ) -> Root | None:
        """Gives how the settled tree's root looks."""
        if not layer.parent:
            if ahead.whiteouts or ahead.opaques:
                # with no parents these mean nothing, and must not be seen
                raise NeedsParents(b"")
            return ahead.root
        implied = [path for path in ahead.implied if path or ahead.root != root]
        if not (implied or ahead.described or ahead.whiteouts or ahead.opaques):
            return ahead.root
        over = self._unpacker.prepare(layer, layer.parent)
        if over is None:
            raise NeedsParents(b"")
        try:
            return self._applier.settle(ahead, prepared.mounts, over.mounts)
        finally:
            self._unpacker.drop(over.key)
