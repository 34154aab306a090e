"""Large blobs by several requests at once, in order, in bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from kontti.errors import Canceled

MAX_STREAMS = 32
WAIT_STEP = 0.2


class Slots:
    """How many downloads may run at once in a process; 0 for any number."""

    def __init__(self, limit: int = 0) -> None:
        self._limit, self._used, self._changed = limit, 0, threading.Condition()

    @contextmanager
    def hold(self, is_stopped: Callable[[], bool]) -> Iterator[None]:
        """Wait for a slot and have it; raises Canceled when stopped first."""
        # asked with no lock held: a caller's answer may take its time
        while not self._taken_soon():
            if is_stopped():
                raise Canceled("download")
        try:
            yield
        finally:
            self._give(1)

    @contextmanager
    def more(self, count: int) -> Iterator[int]:
        """Up to ``count`` more, as many as are free."""
        with self._changed:
            taken = self._take(count)
        try:
            yield taken
        finally:
            self._give(taken)

    def _taken_soon(self) -> bool:
        with self._changed:
            return bool(self._take(1) or (self._changed.wait(WAIT_STEP) and self._take(1)))

    def _take(self, count: int) -> int:
        taken = min(count, self._limit - self._used) if self._limit else count
        self._used += max(taken, 0)
        return max(taken, 0)

    def _give(self, count: int) -> None:
        with self._changed:
            self._used -= count
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Chunking:
    """``buffer``: how much a request asks for, 0 for all there is; ``streams``: requests at once.

    Up to ``buffer`` times ``streams`` bytes wait in memory.
    """

    buffer: int = 0
    streams: int = 1
    slots: Slots = field(default_factory=Slots)

    def splits(self, count: int) -> bool:
        """Whether so many bytes are fetched by more than one request."""
        return 0 < self.buffer < count and self.streams > 1


class Part(Protocol):
    """A download of a span of a blob."""

    ranged: bool
    end: int

    def run(self) -> Generator[bytes, None, None]:
        """The bytes. ``ranged`` tells after the first whether the server knows ranges."""
        ...


MakePart = Callable[[int, int], Part]


def in_chunks(
    make: MakePart, offset: int, size: int, chunking: Chunking
) -> Generator[bytes, None, None]:
    """The bytes from ``offset`` to ``size``, several spans at once where the server knows ranges.

    A first part that is given the whole blob has moved its end to it.
    """
    first = make(offset, offset + chunking.buffer)
    with closing(first.run()) as body, chunking.slots.more(_extra(chunking)) as extra:
        head = next(body, b"")
        if first.ranged and extra:
            spans = _spans(first.end, size, chunking.buffer)
            with _Ahead(make, spans, extra) as ahead:
                yield head
                yield from body
                yield from ahead.run()
            return
        yield head
        yield from body
    if first.end < size:
        yield from make(first.end, size).run()


def _extra(chunking: Chunking) -> int:
    return min(chunking.streams, MAX_STREAMS) - 1


def _spans(start: int, size: int, step: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + step, size)) for at in range(start, size, step))


class _Ahead:
    """Spans that are read before they are asked for."""

    def __init__(self, make: MakePart, spans: Iterator[tuple[int, int]], workers: int) -> None:
        self._make, self._spans, self._ended = make, spans, threading.Event()
        self._pool = ThreadPoolExecutor(workers, "chunk")
        self._pending: deque[Future[bytes]] = deque()
        for span in islice(spans, workers):
            self._pending.append(self._pool.submit(self._read, span))

    def _read(self, span: tuple[int, int]) -> bytes:
        parts = []
        with closing(self._make(*span).run()) as body:
            for data in body:
                if self._ended.is_set():
                    raise Canceled("download")
                parts.append(data)
        return b"".join(parts)

    def run(self) -> Generator[bytes, None, None]:
        """The spans' bytes, in order."""
        while self._pending:
            data = self._pending.popleft().result()
            for span in islice(self._spans, 1):
                self._pending.append(self._pool.submit(self._read, span))
            yield data

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
