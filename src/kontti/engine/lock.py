"""One root, one owner: a lock in the root directory that says who holds it."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import time
from types import TracebackType
from typing import Self

from kontti.errors import FailedPrecondition

NAME = "kontti.lock"
CONNECT_SECONDS = 5.0
_DAEMON = re.compile(r"the daemon at (?:unix://)?(/.+) \(pid (\d+)\)")
_UCRED = struct.Struct("3i")
HANDOVER_SECONDS = 2.0


class RootLock:
    """Holds ``root`` for this process, described by ``owner``, until closed.

    ``what`` it is called in errors.

    Raises FailedPrecondition, naming the holder, where another process has it. The kernel lets go
    of it when the process ends, however that happens.
    """

    def __init__(self, root: str, owner: str, what: str = "root") -> None:
        os.makedirs(root, mode=0o711, exist_ok=True)
        path = os.path.join(root, NAME)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not self._acquire(root):
            os.close(self._fd)
            holder = holder_of(root)
            raise FailedPrecondition(f"{what} {root} is in use by {holder or 'another'}")
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{owner} (pid {os.getpid()})\n".encode(), 0)

    def _acquire(self, root: str) -> bool:
        """A holder that was killed may have been starting a process: until that has come to its
        exec it holds what the dead one held."""
        end = time.monotonic() + HANDOVER_SECONDS
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if _is_alive(holder_of(root)) or time.monotonic() > end:
                    return False
                time.sleep(HANDOVER_SECONDS / 100)
            else:
                return True

    def close(self) -> None:
        """Let go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _is_alive(holder: str) -> bool:
    found = re.search(r"\(pid (\d+)\)$", holder)
    return found is None or os.path.exists(f"/proc/{found[1]}")


def holder_of(root: str) -> str:
    """Who holds ``root``, or held it last; "" where nobody ever did."""
    try:
        with open(os.path.join(root, NAME), errors="replace") as file:
            return file.read(1024).strip()
    except FileNotFoundError:
        return ""


def daemon_of(root: str) -> str:
    """The address of the daemon that holds ``root`` and listens, "" where there is none.

    What the lock says may be of one that is gone: it counts where the very process listens there.
    """
    found = _DAEMON.fullmatch(holder_of(root))
    if found is None:
        return ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(CONNECT_SECONDS)
        try:
            client.connect(found[1])
        except OSError:
            return ""
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return found[1] if _UCRED.unpack(peer)[0] == int(found[2]) else ""
