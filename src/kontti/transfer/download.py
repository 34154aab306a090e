"""Blobs from a registry into the content store: resumed, verified, several at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from kontti.content.base import Store, Writer
from kontti.diff.base import Incoming
from kontti.errors import (
    AlreadyExists,
    Canceled,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    NotFound,
    Unavailable,
)
from kontti.registry.http import Sleep
from kontti.registry.parallel import Slots
from kontti.transfer.flights import STEP, Flights, IsStopped, never
from kontti.transfer.incoming import TELL_EVERY, Growing
from kontti.transfer.labels import add_labels
from kontti.transfer.progress import Meter, Reporter, ref_key, waiting
from kontti.values import EMPTY, Descriptor, Digest

HELD_SECONDS = 600.0
HELD_PAUSE = 0.2
RELEASE_SECONDS = 5.0


class Source(Protocol):
    """Gives the bytes of a blob (:class:`kontti.registry.fetcher.Fetcher`)."""

    def fetch(self, descriptor: Descriptor, offset: int = 0) -> Generator[bytes, None, None]:
        """The bytes from ``offset`` on; closing the generator ends the transfer."""
        ...

    def several(self) -> bool:
        """Whether more than one host may have it."""
        ...

    def distrust(self, descriptor: Descriptor) -> bool:
        """Ask others first after wrong bytes; whether there are others."""
        ...


@dataclass(frozen=True, slots=True)
class Sink:
    """Where blobs go, and what each is labelled with.

    ``unleased`` gives the same store without the lease of the transfer.
    """

    content: Store
    unleased: Callable[[], Store]
    reporter: Reporter
    flights: Flights
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    slots: Slots = field(default_factory=Slots)
    sleep: Sleep = time.sleep


class Stop:
    """Tells downloads that another one, or their user, failed, and how."""

    def __init__(self) -> None:
        self._event, self._reason = threading.Event(), BaseException()

    def set(self, reason: BaseException) -> None:
        """Stop them."""
        self._reason = reason
        self._event.set()

    def is_set(self) -> bool:
        """Whether they are to stop."""
        return self._event.is_set()

    def resumable(self, error: BaseException) -> bool:
        """Whether another attempt may go on from what ``error`` interrupted."""
        if isinstance(error, Canceled) and self.is_set():
            error = self._reason
        return isinstance(error, Unavailable | DeadlineExceeded | Canceled | KeyboardInterrupt)


def download(
    source: Source,
    sink: Sink,
    descriptor: Descriptor,
    stop: Stop,
    growing: Growing | None = None,
) -> None:
    """Make ``descriptor``'s blob be there; ``growing`` tells its readers how far it is.

    What a broken connection brought stays as an ingest and is resumed next time; bytes of another
    size or digest are thrown away. Raises FailedPrecondition for those, Canceled after ``stop``.
    """
    growing = growing or Growing()
    try:
        _download(source, sink, descriptor, stop, growing)
    except BaseException:
        growing.end(whole=False)
        raise
    growing.end(whole=True)


def _download(
    source: Source, sink: Sink, descriptor: Descriptor, stop: Stop, growing: Growing
) -> None:
    is_stopped = waiting(sink.reporter, descriptor, stop.is_set)
    with sink.flights.hold(descriptor.digest, is_stopped):
        writer = _open(sink, descriptor, stop)
        if writer is None:
            add_labels(sink.content, descriptor.digest, sink.labels)
            sink.reporter.blob("already exists", descriptor, descriptor.size)
            return
        try:
            with writer, sink.slots.hold(is_stopped):
                _Copy(source, sink, descriptor, stop, growing).run(writer)
        except BaseException as error:
            if not stop.resumable(error) or _is_empty(sink.content, ref_key(descriptor)):
                discard(sink.content, ref_key(descriptor))
            else:
                _outlive_lease(sink, descriptor)
            raise
        sink.reporter.blob("complete", descriptor, descriptor.size)


def _is_empty(content: Store, ref: str) -> bool:
    try:
        return content.status(ref).offset == 0
    except NotFound:
        return False


def _outlive_lease(sink: Sink, descriptor: Descriptor) -> None:
    """An ingest that is opened without a lease gets a time of its own to be resumed in."""
    with suppress(Error):
        store, waited = sink.unleased(), 0.0
        while True:
            try:
                store.writer(ref_key(descriptor), descriptor.size, descriptor.digest).close()
            except Unavailable as error:
                # a daemon hears a moment later that its writer is closed
                if " locked" not in error.message or waited >= RELEASE_SECONDS:
                    return
                sink.sleep(HELD_PAUSE)
                waited += HELD_PAUSE
            else:
                return


def discard(content: Store, ref: str) -> None:
    """Abort ingest ``ref`` if it is there."""
    try:
        content.abort(ref)
    except (NotFound, Unavailable):
        pass


def _open(sink: Sink, descriptor: Descriptor, stop: Stop) -> Writer | None:
    """The ingest, or None where the blob is there. Another process may hold it for a while."""
    waited = 0.0
    while True:
        try:
            return sink.content.writer(ref_key(descriptor), descriptor.size, descriptor.digest)
        except AlreadyExists:
            return None
        except FailedPrecondition:
            # left by a descriptor that claimed another size
            if waited:
                raise
            discard(sink.content, ref_key(descriptor))
            waited += HELD_PAUSE
        except Unavailable as error:
            # a daemon that has died is not waited for
            if " locked" not in error.message or waited >= HELD_SECONDS or stop.is_set():
                raise
            sink.reporter.blob("waiting", descriptor)
            sink.sleep(HELD_PAUSE)
            waited += HELD_PAUSE


@dataclass(frozen=True, slots=True)
class _Copy:
    source: Source
    sink: Sink
    descriptor: Descriptor
    stop: Stop
    growing: Growing

    def run(self, writer: Writer) -> None:
        offset = writer.status().offset
        if offset > self.descriptor.size:
            writer.truncate(0)
            offset = 0
        if writer.path is not None:
            self.growing.begin(writer.path, offset, self.descriptor.size)
        wrong = self._wrong(writer, offset)
        # what an earlier attempt left may have been the bad part, or a mirror be wrong
        if wrong and (self.source.distrust(self.descriptor) or offset):
            self.growing.end(whole=False)
            writer.truncate(0)
            wrong = self._wrong(writer, 0)
        if isinstance(wrong, Error):
            raise wrong
        self._commit(writer)

    def _wrong(self, writer: Writer, offset: int) -> Error | bool:
        """What is wrong with the blob that there is now."""
        try:
            self._fill(writer, offset)
        except FailedPrecondition as error:
            return error
        # a question for the daemon in another process, so only where it can help
        can_help = offset > 0 or self.source.several()
        return can_help and writer.digest() != self.descriptor.digest

    def _fill(self, writer: Writer, offset: int) -> None:
        meter = Meter(self.sink.reporter, "downloading", self.descriptor, offset)
        with closing(self.source.fetch(self.descriptor, offset)) as chunks:
            for chunk in chunks:
                if self.stop.is_set():
                    raise Canceled(f"{self.descriptor.digest}")
                writer.write(chunk)
                offset += len(chunk)
                self.growing.moved(offset)
                meter.add(len(chunk))

    def _commit(self, writer: Writer) -> None:
        try:
            writer.commit(self.descriptor.size, self.descriptor.digest, self.sink.labels)
        except AlreadyExists:
            add_labels(self.sink.content, self.descriptor.digest, self.sink.labels)


class Downloads:
    """Downloads under way, each blob once. Leaving the block stops what still runs."""

    def __init__(self, source: Source, sink: Sink, workers: int) -> None:
        self._source, self._sink = source, sink
        self._pool = ThreadPoolExecutor(max(1, workers), "download")
        self._stop = Stop()
        self._futures: dict[Digest, Future[None]] = {}
        self._growing: dict[Digest, Growing] = {}

    def start(self, descriptor: Descriptor) -> Future[None]:
        """Begin, or find it begun."""
        future = self._futures.get(descriptor.digest)
        if future is None:
            growing = self._growing[descriptor.digest] = Growing()
            future = self._pool.submit(
                download, self._source, self._sink, descriptor, self._stop, growing
            )
            self._futures[descriptor.digest] = future
        return future

    def tell_of(self, parent: Descriptor, children: Sequence[Descriptor]) -> None:
        """Have progress say what belongs to what."""
        self._sink.reporter.children(parent, children)

    def fetched(self, descriptor: Descriptor, is_stopped: IsStopped = never) -> None:
        """Return when the blob is there; raises what its download did, or the first that failed.

        Raises Canceled once ``is_stopped()``. It may be called from several threads.
        """
        future = self.start(descriptor)
        while not future.done():
            if is_stopped():
                raise Canceled(f"{descriptor.digest}")
            self._wait_any(STEP)
        future.result()

    def incoming(
        self, descriptor: Descriptor, is_stopped: IsStopped = never
    ) -> AbstractContextManager[Incoming | None]:
        """As transfer.incoming.Blobs; blobs that are quickly there are not given."""
        future = self.start(descriptor)
        if descriptor.size <= TELL_EVERY:
            return nullcontext()
        growing = self._growing[descriptor.digest]
        return growing.follow(lambda: is_stopped() or self._stop.is_set() or future.cancelled())

    def finish(self) -> None:
        """Return when every blob is there; raises the first failure."""
        while any(not f.done() for f in self._futures.values()):
            self._wait_any()
        self._raise_failed()

    def _wait_any(self, seconds: float | None = None) -> None:
        self._raise_failed()
        running = [f for f in self._futures.values() if not f.done()]
        wait(running, seconds, return_when=FIRST_COMPLETED)

    def _raise_failed(self) -> None:
        for future in self._futures.values():
            if future.done() and (error := future.exception()):
                raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stop.set(error or Canceled("transfer ended"))
        self._pool.shutdown(wait=True, cancel_futures=True)
