"""The log driver: records what a process writes, within limits, and waits for nobody.

Nothing is kept in memory between two writes. Where the disk is full, bytes are dropped and
counted, and the record that says so stands where they would: the process goes on.
"""

from __future__ import annotations

import os
import select
import sys
import time

from kontti.linux import process
from kontti.shim import log_files
from kontti.shim.loop import complain
from kontti.wire.log_record import STREAMS, encode, encode_lost, stamp_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.wire.log_uri import Limits

READ_SIZE = 16 << 10
"""What is read of a stream at once, and so the longest record: that of kubelet's own format."""
PATIENCE = 1.0
PACKER_SECONDS = 30.0
_PACK = "import sys; sys.path[:0] = {path!r}; from kontti.shim.log_pack import main; main()"


class LogWriter:
    """Appends to the log in ``folder``, which it makes and holds; raises Error, OSError.

    One that wrote to it before is given ``patience`` seconds to end.
    """

    def __init__(self, folder: str, limits: Limits, patience: float = PATIENCE) -> None:
        self.folder = folder
        self._limits = limits
        self._lost = dict.fromkeys(STREAMS, 0)
        self._why = ""
        self._packer = Packer(folder)
        os.makedirs(os.path.dirname(folder), log_files.PARENT_MODE, exist_ok=True)
        if not os.path.isdir(folder):
            os.mkdir(folder, log_files.FOLDER_MODE)
        self._lock = log_files.lock(folder, patience)
        try:
            self._number, self._fd, self._size = log_files.open_last(folder)
        except BaseException:
            os.close(self._lock)
            raise

    def write(self, stream: bytes, data: bytes) -> None:
        """Record ``data``; never raises OSError."""
        if self._fd < 0:
            return
        try:
            self._append(stream, data)
        except OSError as error:
            self._drop(stream, len(data), error)

    def _append(self, stream: bytes, data: bytes) -> None:
        stamp = stamp_of(time.time_ns())
        lost = self._lost[stream]
        said = encode_lost(stamp, stream, lost, self._why) if lost else b""
        records = said + encode(stamp, stream, data)
        if len(records) > self._limits.max_size and len(data) > 1:
            # short lines: their records are much longer than they are
            half = len(data) // 2
            self.write(stream, data[:half])
            self.write(stream, data[half:])
            return
        if self._size and self._size + len(records) > self._limits.max_size:
            self._rotate()
        self._write_all(records)
        self._lost[stream] -= lost

    def _write_all(self, records: bytes) -> None:
        """All of it or nothing; raises OSError."""
        left = memoryview(records)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            os.ftruncate(self._fd, min(self._size, os.fstat(self._fd).st_size))
            raise
        self._size += len(records)

    def _rotate(self) -> None:
        # the oldest goes first: on a full disk that is what makes room
        for number in log_files.found(self.folder):
            if number <= self._number - self._limits.max_file + 1 and number != self._number:
                log_files.remove(self.folder, number)
        fd = log_files.open_new(self.folder, self._number + 1)
        old, self._fd, self._size = self._fd, fd, 0
        self._number += 1
        os.close(old)
        if self._limits.max_file == 1:
            log_files.remove(self.folder, self._number - 1)
        elif self._limits.compress:
            self._packer.start()

    def _drop(self, stream: bytes, count: int, error: OSError) -> None:
        if not any(self._lost.values()):
            complain(f"log {self.folder}: output is lost: {error}")
        self._lost[stream] += count
        self._why = error.strerror or str(error)

    def close(self, *, wait: bool = False) -> None:
        """Say what is lost, and let go; ``wait`` for the compressor where nobody else does."""
        if self._fd < 0:
            return
        for stream in STREAMS:
            if self._lost[stream]:
                self.write(stream, b"")
        if any(self._lost.values()):
            complain(f"log {self.folder}: {sum(self._lost.values())} bytes are lost at its end")
        os.close(self._fd)
        os.close(self._lock)
        self._fd = self._lock = -1
        self._packer.close(wait=wait)


class Packer:
    """Compresses rotated files in a process of its own, one at a time and at low priority.

    Each rotation starts one where none runs: one that fails is tried again then, and no sooner.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._pidfd = -1
        self._pid = 0

    def start(self) -> None:
        """Have it look for work; a failure is no concern of who writes."""
        if not self._ended():
            return
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        argv = [sys.executable, "-I", "-S", "-c", _PACK.format(path=[source]), self._folder]
        try:
            self._pid = process.spawn(argv, setsid=True)
            self._pidfd = os.pidfd_open(self._pid)
        except OSError as error:
            complain(f"log {self._folder}: cannot compress: {error}")

    def _ended(self, seconds: float = 0.0) -> bool:
        if self._pidfd < 0:
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if not poller.poll(seconds * 1000):
            return False
        try:
            os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            pass  # the shim's loop was first
        os.close(self._pidfd)
        self._pidfd = -1
        return True

    def close(self, *, wait: bool) -> None:
        """Forget it: it ends by itself."""
        if not self._ended(PACKER_SECONDS if wait else 0.0):
            os.close(self._pidfd)
            self._pidfd = -1
