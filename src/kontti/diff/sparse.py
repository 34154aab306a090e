"""Maps of sparse files in tar archives: which parts are stored (GNU tar manual, Sparse Formats).

The old GNU header, and pax records in the versions 0.0, 0.1 and 1.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from kontti.diff.pax import SPARSE_MAP, decimal, invalid, number, shown

BLOCK = 512
MAX_MAP = 1 << 20
MAX_SIZE = (1 << 63) - 1
# of a part in an old GNU header: twelve digits of offset, twelve of length
_PART = 24
_FIRST = slice(386, 386 + 4 * _PART)
_MORE = slice(0, 21 * _PART)
_FIRST_GOES_ON, _MORE_GOES_ON = 482, 504
_REAL_SIZE = slice(483, 495)
_GNU, _MAGIC_AT = b"ustar  \0", 257

Take = Callable[[], bytes]
"""The next block of the archive."""


class Sparse:
    """A file of ``size`` bytes of which ``parts``, offsets and lengths in order, are stored."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: Sequence[tuple[int, int]], size: int) -> None:
        self.parts = parts
        self.size = size

    def check(self, stored: int, name: bytes) -> None:
        """Raises InvalidArgument where parts overlap, pass the end, or are not what is stored."""
        end = 0
        for offset, length in self.parts:
            if offset < end or length < 0:
                raise invalid(f"sparse map of {shown(name)}")
            end = offset + length
        if not end <= self.size <= MAX_SIZE or sum(part[1] for part in self.parts) != stored:
            raise invalid(f"sparse map of {shown(name)}")


def old_map(header: bytes, take: Take) -> Sparse:
    """The map in an old GNU header and the blocks that follow it."""
    if not header.startswith(_GNU, _MAGIC_AT):
        raise invalid("sparse file in an archive that is not GNU tar's")
    parts = list(_old_parts(header[_FIRST]))
    goes_on, blocks = header[_FIRST_GOES_ON], 0
    while goes_on:
        blocks += 1
        if blocks * BLOCK > MAX_MAP:
            raise invalid("sparse map is too long")
        block = take()
        parts += _old_parts(block[_MORE])
        goes_on = block[_MORE_GOES_ON]
    return Sparse(parts, number(header[_REAL_SIZE]))


def _old_parts(field: bytes) -> Iterator[tuple[int, int]]:
    for start in range(0, len(field), _PART):
        offset, length = field[start : start + 12], field[start + 12 : start + _PART]
        if length[:1] == b"\0":
            return
        yield number(offset), number(length)


def pax_map(records: Mapping[bytes, bytes], take: Take) -> tuple[Sparse, int]:
    """The map that pax records tell of, and how many bytes before the data it takes."""
    size = records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size", b""))
    if records.get(b"GNU.sparse.major", b"0") == b"0":
        return Sparse(
            _pairs(records.get(SPARSE_MAP, b"").strip(b",").split(b",")), decimal(size)
        ), 0
    numbers = _Numbers(take)
    count = numbers.next()
    if count > MAX_MAP // 4:
        raise invalid("sparse map is too long")
    parts = [(numbers.next(), numbers.next()) for _ in range(count)]
    return Sparse(parts, decimal(size)), numbers.taken


def _pairs(numbers: Sequence[bytes]) -> list[tuple[int, int]]:
    if numbers == [b""]:
        return []
    if len(numbers) % 2:
        raise invalid("sparse map")
    values = [decimal(text) for text in numbers]
    return list(zip(values[::2], values[1::2], strict=True))


class _Numbers:
    """Decimal numbers, a line each, out of whole blocks."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._held = b""
        self.taken = 0

    def next(self) -> int:
        while b"\n" not in self._held:
            self.taken += BLOCK
            if self.taken > MAX_MAP or len(self._held) > BLOCK:
                raise invalid("sparse map is too long")
            self._held += self._take()
        line, _, self._held = self._held.partition(b"\n")
        return decimal(line)
