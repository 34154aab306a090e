"""What a container wrote, record by record: the last lines, from a time on, or as it comes.

Any number of readers may be at it, with no word to who writes: see ``shim.log_files``.
"""

from __future__ import annotations

import time

from kontti.logs.segments import Parser, Segment, damaged
from kontti.logs.tail import Starts, starts_of
from kontti.shim import log_files
from kontti.wire.log_record import STDERR, STREAMS, Record, stamp_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POLL_SECONDS = 0.1
QUIET_SECONDS = 1.0
"""Without a word from a writer whose process has ended: then it has written all."""
UNKNOWN = -1
"""How many bytes are lost with a file."""
# the kernel's clock for files is a little late
_CLOCK_SLACK = 10**9


class Query:
    """What is wanted: ``tail`` lines at most of ``streams``, no older than ``since``, no younger
    than ``until`` (stamps of records; b"" for any).

    ``ended`` says of a writer that it has no more to write, though it may stay: a logger does, as
    long as the shim that started it keeps the task.
    """

    __slots__ = ("ended", "follow", "since", "streams", "tail", "until")

    def __init__(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: bytes = b"",
        until: bytes = b"",
        streams: tuple[bytes, ...] = STREAMS,
        ended: Callable[[], bool] = lambda: False,
    ) -> None:
        self.ended = ended
        self.follow = follow
        self.tail = tail
        self.since = since
        self.until = until
        self.streams = streams

    def wants(self, record: Record) -> bool:
        """Whether a record is asked for."""
        return (
            record.stream in self.streams
            and record.stamp >= self.since
            and not (self.until and record.stamp > self.until)
        )


def read(folder: str, query: Query) -> Iterator[Record]:
    """The records of a log in the order they were written. Raises DataLoss, OSError.

    With ``follow`` it goes on until nobody writes any more, or ``until`` has passed.
    """
    starts = Starts({})
    if query.tail is not None:
        starts = starts_of(folder, query.tail, query.wants)
    walk = _Walk(folder, query)
    for number, offset, record in walk.records(starts.first):
        if query.wants(record) and starts.reached(record.stream, number, offset):
            yield record


class _Walk:
    """From file to file. A follower sees who writes go before it looks for the last time."""

    def __init__(self, folder: str, query: Query) -> None:
        self._folder = folder
        self._query = query
        # without follow: up to where it is now, or a busy log would never end
        self._last = max(log_files.numbers(folder), default=0)
        self._quiet_since = 0.0

    def records(self, first: int) -> Iterator[tuple[int, int, Record]]:
        """Every record with its file's number and its offset there."""
        number = self._next(first - 1)
        expected = number
        while number is not None:
            segment = Segment.open(self._folder, number)
            if segment is not None:
                with segment:
                    if expected is not None and number != expected:
                        yield number, 0, _removed(number - expected)
                    if not self._too_old(segment, number):
                        yield from self._segment(segment, number)
                expected = number + 1
            number = self._next(number)

    def _next(self, number: int) -> int | None:
        """The file after ``number`` that is there, None for none."""
        later = [n for n in log_files.numbers(self._folder) if n > number]
        if not self._query.follow:
            later = [n for n in later if n <= self._last]
        return later[0] if later else None

    def _too_old(self, segment: Segment, number: int) -> bool:
        late = stamp_of(segment.modified + _CLOCK_SLACK) < self._query.since
        return late and self._next(number) is not None

    def _segment(self, segment: Segment, number: int) -> Iterator[tuple[int, int, Record]]:
        parser = Parser()
        final = False
        while True:
            data = segment.read()
            for offset, _, record in parser.feed(data):
                yield number, offset, record
            if data:
                self._quiet_since = 0.0
                continue
            if final or not self._query.follow:
                break
            final = self._is_final(number)
            if not final:
                time.sleep(POLL_SECONDS)
        if parser.rest and self._next(number) is not None:
            yield number, parser.offset, damaged(parser.rest)

    def _is_final(self, number: int) -> bool:
        """Whether nothing more comes to a file than what there is to read now."""
        query = self._query
        if query.until and stamp_of(time.time_ns()) > query.until:
            return True
        # in this order: a file is finished when the next one is there, or its writer gone
        written = log_files.written_to(self._folder)
        return self._next(number) is not None or not written or self._is_quiet()

    def _is_quiet(self) -> bool:
        """Whether the process has ended, and nothing has come for a while since."""
        now = time.monotonic()
        if not self._query.ended():
            return False
        self._quiet_since = self._quiet_since or now
        return now - self._quiet_since > QUIET_SECONDS


def _removed(files: int) -> Record:
    text = b"%d files of the log were removed before they were read\n" % files
    return Record(stamp_of(time.time_ns()), STDERR, text, UNKNOWN)
