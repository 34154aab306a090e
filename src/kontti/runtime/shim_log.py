"""What a shim that is a binary of its own has to say: lines from the FIFO ``log`` in its bundle.

Such a shim opens the FIFO when it begins to serve, and ends where it is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat

from kontti.errors import Error
from kontti.runtime.bundle import Bundle

log = logging.getLogger(__name__)
READ_SIZE = 64 << 10
MAX_LINE = 4096


class ShimLog:
    """Copies a shim's lines to our log until it is closed."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._line = b""
        asyncio.get_running_loop().add_reader(fd, self._read)

    @classmethod
    async def open(cls, bundle: Bundle) -> ShimLog:
        """Listen to the shim of a bundle; raises Error."""
        try:
            fd = await asyncio.to_thread(_open_fifo, os.path.join(bundle.path, "log"))
        except OSError as error:
            raise Error(f"shim log of {bundle.id}: {error}") from None
        return cls(fd, f"{bundle.namespace}/{bundle.id}")

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("shim log of %s: %s", self._name, error)
            self.close()
            return
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > MAX_LINE:
            lines.append(self._line)
            self._line = b""
        for line in lines:
            text = line[:MAX_LINE].decode(errors="replace")
            log.info("shim of %s: %s", self._name, text)

    def close(self) -> None:
        """Listen no more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)


def _open_fifo(path: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    # both ways: the shim's end never sees a reader missing while we are there
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is no FIFO")
    return fd
