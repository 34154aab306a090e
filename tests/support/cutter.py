"""A TCP forwarder on loopback that cuts connections which have carried enough, a few times."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.raw import talking


@dataclass
class Cutter:
    """``limit`` bytes in both directions together are let through, then it cuts, ``times``."""

    target: str
    limit: int
    times: int
    cuts: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, client: socket.socket) -> None:
        host, _, port = self.target.rpartition(":")
        with socket.create_connection((host, int(port)), 10) as server:
            carried = _Carried(self)
            back = threading.Thread(target=_pump, args=(server, client, carried))
            back.start()
            _pump(client, server, carried)
            back.join(30)

    def take_cut(self) -> bool:
        """Whether one more is to be made."""
        with self.lock:
            if self.cuts >= self.times:
                return False
            self.cuts += 1
            return True


@dataclass
class _Carried:
    cutter: Cutter
    count: int = 0

    def add(self, count: int) -> bool:
        """Whether the connection is to be cut now."""
        before, self.count = self.count, self.count + count
        return before <= self.cutter.limit < self.count and self.cutter.take_cut()


def _pump(source: socket.socket, target: socket.socket, carried: _Carried) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if carried.add(len(data)):
                source.shutdown(socket.SHUT_RDWR)
                break
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cutting(target: str, limit: int, times: int) -> Iterator[tuple[str, Cutter]]:
    """Forward to ``target`` until the block ends; gives the address and the cutter."""
    cutter = Cutter(target, limit, times)
    with talking(cutter) as (address, _):
        yield address, cutter
