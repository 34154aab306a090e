"""HTTP/2 frames for tests that play the peer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame (RFC 9113, 4.1)."""

    kind: int
    flags: int
    stream: int
    body: bytes

    def encode(self) -> bytes:
        """What goes on the wire."""
        head = len(self.body).to_bytes(3, "big") + bytes([self.kind, self.flags])
        return head + self.stream.to_bytes(4, "big") + self.body


def frames(data: bytes) -> list[Frame]:
    """The frames in ``data``, which must hold whole ones only."""
    found = []
    while data:
        end = 9 + int.from_bytes(data[:3], "big")
        assert len(data) >= end
        found.append(Frame(data[3], data[4], int.from_bytes(data[5:9], "big"), data[9:end]))
        data = data[end:]
    return found
