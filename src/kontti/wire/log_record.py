"""Container output as records of the Kubernetes CRI log format.

    2016-10-06T00:17:09.669794202Z stdout F a whole line
    2016-10-06T00:17:09.669794202Z stdout P a part that no newline ends
    2016-10-06T00:17:09.669794202Z stderr F:lost=4096 what is to be said of bytes that are missing

The newline of a whole line is not in its record but in its tag, so that every byte comes back as
it was. What follows a colon in a tag is for who knows it: kubelet and crictl look at the letter.
"""

from __future__ import annotations

import time

STDOUT, STDERR = b"stdout", b"stderr"
STREAMS = (STDOUT, STDERR)
FULL, PART = b"F", b"P"
STAMP_LENGTH = len("2016-10-06T00:17:09.669794202Z")
_LOST = b"F:lost="


class Record:
    """``data`` ends with the newline it had. ``lost`` bytes are missing where this stands.

    ``stamp`` is UTC and of one length: stamps compare as the times do.
    """

    __slots__ = ("data", "lost", "stamp", "stream")

    def __init__(self, stamp: bytes, stream: bytes, data: bytes, lost: int = 0) -> None:
        self.stamp = stamp
        self.stream = stream
        self.data = data
        self.lost = lost

    @property
    def whole(self) -> bool:
        """Whether a line ends with it."""
        return self.data.endswith(b"\n")


def stamp_of(ns: int) -> bytes:
    """A time since the epoch as records have it."""
    seconds, rest = divmod(ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % rest


def encode(stamp: bytes, stream: bytes, data: bytes) -> bytes:
    """The records of what was read of a stream at once."""
    lines, newline, rest = data.rpartition(b"\n")
    records = b""
    if newline:
        head = b"%b %b %b " % (stamp, stream, FULL)
        records = head + lines.replace(b"\n", b"\n" + head) + b"\n"
    if rest:
        records += b"%b %b %b %b\n" % (stamp, stream, PART, rest)
    return records


def encode_lost(stamp: bytes, stream: bytes, count: int, why: str) -> bytes:
    """A record that says that ``count`` bytes could not be kept."""
    text = why.replace("\n", " ").encode()
    return b"%b %b %b%d %d bytes of output were lost: %b\n" % (
        stamp, stream, _LOST, count, count, text,
    )  # fmt: skip


def decode(line: bytes) -> Record | None:
    """The record that a line (without its newline) is, or None where it is none."""
    parts = line.split(b" ", 3)
    if len(parts) != 4:
        return None
    stamp, stream, tag, data = parts
    if len(stamp) != STAMP_LENGTH or stream not in STREAMS or not stamp.endswith(b"Z"):
        return None
    if tag == FULL:
        return Record(stamp, stream, data + b"\n")
    if tag == PART:
        return Record(stamp, stream, data)
    count = tag[len(_LOST) :]
    if tag.startswith(_LOST) and count.isdigit() and len(count) < 20:
        return Record(stamp, stream, data + b"\n", int(count))
    return None
