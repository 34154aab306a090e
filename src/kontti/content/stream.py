"""A blob as a stream."""

from __future__ import annotations

from kontti.content.base import Reader

MOST = 1 << 20


class BlobStream:
    """Gives a blob from its first byte to its last."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._offset = 0

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes, and up to 1 MiB; none at the end."""
        data = self._reader.read_at(self._offset, min(count, MOST))
        self._offset += len(data)
        return data
