"""Where the last lines of a log begin, stream by stream: their records may lie between others'."""

from __future__ import annotations

from collections import deque

from kontti.logs.segments import Parser, Segment
from kontti.shim import log_files
from kontti.wire.log_record import STREAMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kontti.wire.log_record import Record

Position = tuple[int, int]
"""A file's number and an offset in it."""
Line = tuple[bytes, Position]
"""A stream, and where the line ends."""


class Starts:
    """From which position on each stream is wanted; from the log's beginning where it has none."""

    def __init__(self, by_stream: Mapping[bytes, Position]) -> None:
        self._by_stream = by_stream

    @property
    def first(self) -> int:
        """The number of the first file that is wanted, 0 for all."""
        return min((number for number, _ in self._by_stream.values()), default=0)

    def reached(self, stream: bytes, number: int, offset: int) -> bool:
        """Whether a record of ``stream`` at a position is wanted."""
        return (number, offset) >= self._by_stream.get(stream, (0, 0))


def starts_of(folder: str, count: int, wants: Callable[[Record], bool]) -> Starts:
    """Where the last ``count`` lines begin of those that ``wants`` takes, in any stream.

    A line that has no end yet counts as one.
    """
    before: dict[bytes, Position] = {}  # where the last line ends that is too old
    kept: set[bytes] = set()
    now: Position = (0, 0)
    for number in reversed(log_files.numbers(folder)):
        scan = _Scan(folder, number, wants)
        lines, older = _newest(scan, count, unfinished=now == (0, 0))
        now = max(now, scan.end)
        before = {**older, **before}
        kept |= {stream for stream, _ in lines}
        count -= len(lines)
        if not count and kept <= before.keys():
            break
    return Starts({s: before.get(s, (0, 0)) if s in kept else now for s in STREAMS})


def _newest(
    scan: _Scan, count: int, *, unfinished: bool
) -> tuple[deque[Line], dict[bytes, Position]]:
    """A file's last ``count`` lines, and where the last of the others end."""
    lines: deque[Line] = deque()
    older: dict[bytes, Position] = {}

    def take(line: Line) -> None:
        lines.append(line)
        if len(lines) > count:
            stream, end = lines.popleft()
            older[stream] = end

    for line in scan.lines():
        take(line)
    if unfinished:
        for stream in scan.unfinished:
            take((stream, scan.end))
    return lines, older


class _Scan:
    """Goes through one file; ``end`` and the streams that are amid a line are known after it."""

    def __init__(self, folder: str, number: int, wants: Callable[[Record], bool]) -> None:
        self._folder = folder
        self._number = number
        self._wants = wants
        self.end: Position = (number, 0)
        self.unfinished: list[bytes] = []

    def lines(self) -> Iterator[Line]:
        segment = Segment.open(self._folder, self._number)
        if segment is None:
            return
        parser = Parser()
        amid = dict.fromkeys(STREAMS, False)
        with segment:
            while data := segment.read():
                for offset, size, record in parser.feed(data):
                    if not self._wants(record):
                        continue
                    amid[record.stream] = not record.whole
                    if record.whole:
                        yield record.stream, (self._number, offset + size)
        self.end = (self._number, parser.offset)
        self.unfinished = [stream for stream, open_line in amid.items() if open_line]
