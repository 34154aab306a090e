"""Follows the frames of a zstd stream without decoding them (RFC 8878, section 3)."""

from __future__ import annotations

from collections.abc import Generator

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)
_DICTIONARY_BYTES = (0, 1, 2, 4)
_RLE = 1


class FrameTracker:
    """Fed a stream as it passes, knows whether it may end here: between two frames."""

    def __init__(self) -> None:
        self.complete = True
        self._held = b""
        self._skip = 0
        self._steps = _walk(self)
        self._wanted = next(self._steps)

    def feed(self, data: bytes) -> None:
        """Look at the next bytes. What is not zstd is left to the decoder to refuse."""
        position = 0
        while position < len(data):
            self.complete = False
            skipped = min(self._skip, len(data) - position)
            position += skipped
            self._skip -= skipped
            missing = self._wanted - len(self._held)
            taken = data[position : position + missing]
            position += len(taken)
            self._held += taken
            self._advance()

    def _advance(self) -> None:
        while not self._skip and len(self._held) == self._wanted:
            held, self._held = self._held, b""
            self._wanted = self._steps.send(held)

    def pass_over(self, count: int) -> None:
        """Take ``count`` bytes as read before the next step."""
        self._skip = count


def _walk(tracker: FrameTracker) -> Generator[int, bytes, None]:
    """Yields how many bytes it wants to see next."""
    while True:
        magic = int.from_bytes((yield 4), "little")
        if magic & 0xFFFFFFF0 == _SKIPPABLE:
            tracker.pass_over(int.from_bytes((yield 4), "little"))
            yield 0
        elif magic == _MAGIC:
            yield from _frame(tracker)
        tracker.complete = True


def _frame(tracker: FrameTracker) -> Generator[int, bytes, None]:
    descriptor = (yield 1)[0]
    single_segment = descriptor >> 5 & 1
    content = _CONTENT_SIZE_BYTES[descriptor >> 6] or single_segment
    yield (1 - single_segment) + _DICTIONARY_BYTES[descriptor & 3] + content
    last = 0
    while not last:
        header = int.from_bytes((yield 3), "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        tracker.pass_over(1 if kind == _RLE else size)
        yield 0
    if descriptor >> 2 & 1:
        yield 4
