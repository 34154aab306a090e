"""Whether a process has ended, seen without the daemon that could tell."""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class Watched:
    """A process by its pid, 0 for one that has ended."""

    def __init__(self, pid: int) -> None:
        self._fd = -1
        if pid > 0:
            try:
                self._fd = os.pidfd_open(pid)
            except ProcessLookupError:
                pass  # it has ended meanwhile

    def ended(self) -> bool:
        """Whether it is over."""
        if self._fd < 0:
            return True
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Look no more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
