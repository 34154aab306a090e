"""What a worker is asked, and how it answers: plain data, light to import, the same on both ends.

A request is one line of JSON on the worker's standard input, followed by the blob where the worker
cannot open it. An answer is frames on its standard output: four bytes of length and that many of
data; after a frame of length 0 comes the result as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypedDict, cast

MAX_REQUEST = 1 << 22
FRAME = 4
END = bytes(FRAME)


class MountJob(TypedDict):
    """A mount, as kontti.values.Mount."""

    type: str
    source: str
    options: list[str]
    target: str


class TreeJob(TypedDict):
    """A tree: ``kind`` plain or upper at ``root``, or mounted there from ``mounts``.

    Where ``image`` is not "" the tree goes to that file, and ``root`` is only what it begins with.
    """

    kind: str
    root: str
    lowers: list[str]
    opaque_xattr: str
    image: str
    mounts: list[MountJob]


class ApplyJob(TypedDict):
    """Extract the blob at ``blob`` (or, None, what follows on standard input: ``size`` bytes).

    ``limit`` and ``entries`` say how many bytes and entries it may have at most, 0 for no limit.
    ``ahead`` of the tree's parents: what hangs on them is told in the result, for a SettleJob.
    A blob that ``grows`` is being written: a byte on standard input tells of more, ``size`` bytes
    come. ``algorithm`` "" leaves its digest to who writes it.
    """

    task: str
    blob: str | None
    grows: bool
    size: int
    algorithm: str
    compression: str
    limit: int
    entries: int
    tree: TreeJob
    ahead: bool
    sync: bool


class Notes(TypedDict):
    """What of a layer hangs on its parents: directories it only implies, "" being the root, ones it
    describes after what is in them, whiteouts that may hide nothing, directories to be marked
    opaque."""

    implied: list[str]
    described: list[str]
    whiteouts: list[str]
    opaques: list[str]


class SettleJob(TypedDict):
    """Bring ``tree``, which was extracted ahead, in line with its lowers."""

    task: str
    tree: TreeJob
    notes: Notes


class CompareJob(TypedDict):
    """Write the difference as a compressed tar in frames."""

    task: str
    lower: TreeJob | None
    upper: TreeJob
    compression: str
    latest: int | None


class Result(TypedDict, total=False):
    """How a task ended: ``error`` is a gRPC code. ``needs_files`` where an image cannot hold it."""

    error: int
    message: str
    needs_parents: bool
    needs_files: bool
    digest: str
    read: int
    diff_id: str
    size: int
    notes: Notes
    root: list[int]


class Request(TypedDict):
    """Any job; ``task`` tells which."""

    task: str


def encode(job: ApplyJob | SettleJob | CompareJob) -> bytes:
    """A job as a line."""
    return json.dumps(job).encode() + b"\n"


def frame(data: bytes) -> bytes:
    """Data as one frame."""
    return len(data).to_bytes(FRAME, "big") + data


def decode_result(data: bytes) -> Result | None:
    """The result, or None where the worker did not live to give one."""
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return cast("Result", found) if isinstance(found, dict) else None


def read_request(read: Callable[[int], bytes]) -> tuple[Request, bytes]:
    """The request, and what was read behind it; raises EOFError where nobody asks."""
    data = b""
    while b"\n" not in data:
        more = read(1 << 16)
        if not more or len(data) > MAX_REQUEST:
            raise EOFError
        data += more
    line, _, rest = data.partition(b"\n")
    return cast("Request", json.loads(line)), rest
