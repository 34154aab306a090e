"""Blobs that are read while they are still being downloaded."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from kontti.content.disk import disk_errors
from kontti.diff.base import Incoming
from kontti.transfer.flights import STEP, IsStopped, never
from kontti.values import Descriptor

TELL_EVERY = 1 << 20
"""Bytes: readers are not woken for less, but at the end."""


class Broken(Exception):
    """What was read of a blob is not it: its download failed, began anew or is not wanted."""


class Blobs(Protocol):
    """Blobs that are there, or will be."""

    def fetched(self, descriptor: Descriptor, is_stopped: IsStopped = never) -> None:
        """Returns when the blob is there; raises what its download did, or Canceled."""
        ...

    def incoming(
        self, descriptor: Descriptor, is_stopped: IsStopped = never
    ) -> AbstractContextManager[Incoming | None]:
        """The blob on its way, once that has begun; None where it is there, or cannot be read.

        Raises Canceled once ``is_stopped()``; what it gives raises Broken.
        """
        ...


class AllThere:
    """Blobs that are all in the store (Blobs)."""

    def fetched(self, descriptor: Descriptor, is_stopped: IsStopped = never) -> None:
        """Nothing to wait for."""

    def incoming(
        self, descriptor: Descriptor, is_stopped: IsStopped = never
    ) -> AbstractContextManager[Incoming | None]:
        """None."""
        return contextlib.nullcontext()


ALL_THERE = AllThere()


class Growing:
    """One download and who reads what it has brought: a file that is there for as long as any.

    The download's thread calls ``begin``, ``moved`` and ``end``, each reader's ``follow``.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._fd, self._users = -1, 0
        self._offset = self._told = self._size = 0
        self._has_begun = self._has_ended = self._is_whole = False

    def begin(self, path: str, offset: int, size: int) -> None:
        """There is a file: ``offset`` of its ``size`` bytes are right to begin with."""
        with self._changed:
            with disk_errors(f"open {path}"):
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._users, self._size = 1, size
            self._offset = self._told = offset
            self._has_begun = True
            self._changed.notify_all()

    def moved(self, offset: int) -> None:
        """So many bytes are there."""
        self._offset = offset
        if offset - self._told >= TELL_EVERY or offset == self._size:
            with self._changed:
                self._told = offset
                self._changed.notify_all()

    def end(self, *, whole: bool) -> None:
        """No more comes; unless it is the ``whole`` blob, what came is not to be used.

        The first end counts.
        """
        with self._changed:
            if self._has_ended:
                return
            has_file = self._has_begun
            self._has_begun = self._has_ended = True
            self._is_whole = whole
            self._changed.notify_all()
        if has_file:
            self._let_go()

    def is_broken(self) -> bool:
        """Whether what came is not to be used."""
        return self._has_ended and not self._is_whole

    def _let_go(self) -> None:
        with self._changed:
            self._users -= 1
            if not self._users:
                os.close(self._fd)

    @contextlib.contextmanager
    def follow(self, is_stopped: IsStopped) -> Iterator[Following | None]:
        """The file to be read, or None where the download is over; waits for its begin."""
        if not self._join(is_stopped):
            yield None
            return
        try:
            yield Following(self, is_stopped, f"/proc/{os.getpid()}/fd/{self._fd}")
        finally:
            self._let_go()

    def _join(self, is_stopped: IsStopped) -> bool:
        with self._changed:
            while not self._has_begun and not is_stopped():
                self._changed.wait(STEP)
            is_there = self._has_begun and not self._has_ended
            self._users += is_there
            return is_there

    def arrivals(self, is_stopped: IsStopped) -> Iterator[bytes]:
        """One byte whenever there is more, until all is."""
        seen = -1
        while seen < self._size:
            with self._changed:
                while self._told <= seen and not self._has_ended and not is_stopped():
                    self._changed.wait(STEP)
                if self._told <= seen or is_stopped() or self.is_broken():
                    raise Broken
                seen = self._told
            yield b"."


@dataclass(frozen=True, slots=True)
class Following:
    """diff.base.Incoming of a download."""

    growing: Growing
    is_stopped: IsStopped
    path: str
    """By this process's descriptor: the file is renamed once it is whole."""

    def is_broken(self) -> bool:
        """As diff.base.Incoming."""
        return self.growing.is_broken() or self.is_stopped()

    def arrivals(self) -> Iterator[bytes]:
        """As diff.base.Incoming; raises Broken."""
        return self.growing.arrivals(self.is_stopped)
