"""Records as they are shown."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.wire.log_record import Record


class Shown:
    """What a process wrote, byte for byte, or with its time before each line."""

    def __init__(self, *, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._amid: set[bytes] = set()

    def text(self, record: Record) -> bytes:
        """What to print of a record."""
        amid = record.stream in self._amid
        if record.whole:
            self._amid.discard(record.stream)
        else:
            self._amid.add(record.stream)
        return record.data if amid or not self._timestamps else record.stamp + b" " + record.data
