"""Has the disk write what is extracted while more of it is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from threading import Thread

from kontti.linux import libc

EVERY = 48 << 20


class Flusher:
    """Syncs each ``EVERY`` bytes that pass, in a thread: the data of the file ``fd`` or, without
    one, the file system of the current directory.

    The sync that makes a layer durable comes later and has less to wait for. It would not see an
    error that came to light here, so ``finish`` raises it.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._thread: Thread | None = None
        self._error: OSError | None = None
        self._fd = fd
        self._opened = -1

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, as they are."""
        passed = 0
        for chunk in chunks:
            yield chunk
            passed += len(chunk)
            if passed >= EVERY:
                passed = 0
                self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            if self._fd is None:
                self._opened = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._thread = Thread(target=self._run, daemon=True)
            self._thread.start()
        if self._wanted.empty():
            self._wanted.put(True)

    def _run(self) -> None:
        try:
            while self._wanted.get():
                if self._fd is None:
                    libc.syncfs(self._opened)
                else:
                    os.fdatasync(self._fd)
        except OSError as error:
            self._error = error

    def finish(self) -> None:
        """Wait for a sync that has begun; raises OSError where one failed."""
        if self._thread is None:
            return
        self._wanted.put(False)
        self._thread.join()
        if self._fd is None:
            os.close(self._opened)
        if self._error is not None:
            raise self._error
