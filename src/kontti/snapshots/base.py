"""What a snapshotter is: a store of file systems that are made from one another.

A committed snapshot is immutable and can be a parent. ``prepare`` makes an active snapshot over a
parent (or none), ``mounts`` says how to mount it, the caller mounts and writes, ``commit`` makes it
a committed snapshot under a new name. ``view`` is a read-only active one. One name space holds
names of committed and keys of active ones. A snapshot with children cannot be removed.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kontti.errors import InvalidArgument
from kontti.values import EMPTY, Mount

INHERITED_PREFIX = "containerd.io/snapshot/"
TARGET_LABEL = "containerd.io/snapshot.ref"
REBASE = "rebase"
"""The capability of a snapshotter that can put a snapshot over its parent when it is committed."""
MAX_SIZE_LABEL = "containerd.io/snapshot/max-size"
"""The bytes that an active snapshot may take, in decimal."""


class Kind(enum.IntEnum):
    """As in the Snapshots service."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot. ``parent`` is "" for none."""

    kind: Kind
    name: str
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    created_at: int = 0
    updated_at: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot itself takes, without its parents."""

    size: int = 0
    inodes: int = 0


def max_size(labels: Mapping[str, str]) -> int:
    """What ``labels`` let an active snapshot take, 0 for no limit; raises InvalidArgument."""
    text = labels.get(MAX_SIZE_LABEL, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 1 << 63):
        raise InvalidArgument(f"label {MAX_SIZE_LABEL}={text!r:.80} is no number of bytes")
    return int(text)


class Snapshotter(Protocol):
    """Raises NotFound for unknown keys, AlreadyExists for taken ones, else FailedPrecondition."""

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it can do that not all can, by containerd's names."""
        ...

    def stat(self, key: str) -> Info: ...
    def update(self, info: Info, paths: Sequence[str] = ()) -> Info: ...
    def usage(self, key: str) -> Usage: ...
    def mounts(self, key: str) -> list[Mount]: ...
    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY
    ) -> list[Mount]: ...
    def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] = EMPTY
    ) -> list[Mount]: ...
    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        """``parent`` given: the snapshot, prepared over none, is put over that one (rebase)."""
        ...

    def remove(self, key: str) -> None: ...
    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]: ...
    def cleanup(self) -> None:
        """Free what removed snapshots and interrupted operations left on disk."""
        ...

    def close(self) -> None: ...
