"""Hashes and compresses a layer in a thread, while the main thread reads what goes into it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from queue import SimpleQueue
from threading import Semaphore, Thread

from kontti.diff.compression import compressor

_DEPTH = 8


class Packer:
    """Gives ``emit`` what is put in, compressed, in order; from a thread of its own."""

    def __init__(self, emit: Callable[[bytes], object], compression: str) -> None:
        self._emit = emit
        self._compressor = compressor(compression)
        self._hash = hashlib.sha256()
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        # bounds what is read ahead of the compression
        self._room = Semaphore(_DEPTH)
        self._error: BaseException | None = None
        self._thread: Thread | None = None

    @property
    def diff_id(self) -> str:
        """Of all that was put in, once it is finished."""
        return f"sha256:{self._hash.hexdigest()}"

    def put(self, data: bytes) -> None:
        """Take some more; raises what went wrong in the thread."""
        if self._thread is None:
            self._thread = Thread(target=self._run, daemon=True)
            self._thread.start()
        self._room.acquire()
        if self._error is not None:
            self._room.release()
            raise self._error
        self._queue.put(data)

    def finish(self) -> None:
        """Return when all is emitted; raises what went wrong in the thread."""
        self.close()
        if self._error is not None:
            raise self._error
        self._emit_some(self._compressor.flush())

    def close(self) -> None:
        """Return when the thread has ended: after it nothing is emitted."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            while (data := self._queue.get()) is not None:
                self._hash.update(data)
                self._emit_some(self._compressor.compress(data))
                self._room.release()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that puts in
            self._error = error
            self._room.release()

    def _emit_some(self, data: bytes) -> None:
        if data:
            self._emit(data)
