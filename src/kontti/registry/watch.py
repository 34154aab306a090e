"""An end to waits that a socket's own timeout does not bound: a peer that drips byte by byte."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import client
from http.client import RemoteDisconnected
from io import BufferedReader
from typing import BinaryIO, cast
from weakref import WeakSet

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import TimeoutError as Slow
from urllib3.response import HTTPResponse

STEP = 0.5


class Line:
    """A connection's socket under a descriptor of its own, which TLS does not take away."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected.dup()

    def cut(self) -> None:
        """End the connection: whoever waits on it sees its end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()

    def __del__(self) -> None:
        # a response may outlive its connection's close
        self._socket.close()


class Watchdog:
    """Cuts the lines that are past their time, from one thread that is there when needed."""

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._watched: dict[object, tuple[float, Line]] = {}
        self._lines: WeakSet[Line] = WeakSet()
        self._thread: threading.Thread | None = None

    def line(self, connected: socket.socket) -> Line:
        """A line that can be watched; it ends with the watchdog."""
        made = Line(connected)
        with self._lock:
            self._lines.add(made)
        return made

    def cut_all(self) -> None:
        """End every connection there is."""
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            line.cut()

    def start(self, line: Line, seconds: float) -> object:
        """Watch ``line``; what this gives is for ``stop``."""
        key = object()
        with self._lock:
            self._watched[key] = (time.monotonic() + seconds, line)
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()
        return key

    def stop(self, key: object) -> bool:
        """Watch no longer; whether the line was cut."""
        return self._watched.pop(key, None) is None

    @contextmanager
    def limited(self, line: Line | None, seconds: float) -> Iterator[None]:
        """A block that waits on ``line`` for so long; its failure after that is Slow."""
        key = self.start(line, seconds) if line else None
        try:
            yield
        except Exception as error:
            if key is not None and key not in self._watched:
                raise Slow(f"no answer within {seconds:.0f} seconds") from error
            raise
        finally:
            self.stop(key)

    def _run(self) -> None:
        while not self._ended.wait(STEP):
            now = time.monotonic()
            with self._lock:
                late = [key for key, (until, _) in self._watched.copy().items() if until < now]
            for key in late:
                entry = self._watched.pop(key, None)
                if entry is not None:
                    entry[1].cut()

    def close(self) -> None:
        """End the thread, and give back the lines that errors still hold."""
        with self._lock:
            self._ended.set()
            lines = list(self._lines)
        if self._thread is not None:
            self._thread.join()
        for line in lines:
            line.close()


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds to a connection, to an answer's headers, and to those of an upload's answer."""

    connect: float
    answer: float
    upload: float


class _Lines:
    """What headers are read from: a line that ends without its newline was cut off."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readline(self, limit: int = -1) -> bytes:
        line = self._file.readline(limit)
        if not line.endswith(b"\n") and len(line) != limit:
            raise RemoteDisconnected("connection closed in the middle of headers")
        return line

    def close(self) -> None:
        self._file.close()


class _WholeHeaders(client.HTTPResponse):
    """The library takes the end of a connection for the end of the headers."""

    def begin(self) -> None:
        file, lines = self.fp, _Lines(self.fp)
        self.fp = cast("BufferedReader", lines)
        try:
            super().begin()
        finally:
            if cast("object", self.fp) is lines:
                self.fp = file


class _Watched:
    """A connection whose handshake and wait for an answer end."""

    response_class = _WholeHeaders
    line: Line | None = None
    watchdog: Watchdog
    limits: Limits
    _method: str | None
    _key: object = None

    def _new_conn(self) -> socket.socket:
        connected: socket.socket = super()._new_conn()  # type: ignore[misc]
        self.line = self.watchdog.line(connected)
        self._key = self.watchdog.start(self.line, self.limits.connect)
        return connected

    def connect(self) -> None:
        try:
            super().connect()  # type: ignore[misc]
        except Exception as error:
            if self._key is not None and self.watchdog.stop(self._key):
                raise Slow(f"no connection within {self.limits.connect:.0f} seconds") from error
            raise
        finally:
            self.watchdog.stop(self._key)

    def getresponse(self) -> HTTPResponse:
        uploads = self._method in ("PUT", "PATCH", "POST")
        seconds = self.limits.upload if uploads else self.limits.answer
        with self.watchdog.limited(self.line, seconds):
            answer: HTTPResponse = super().getresponse()  # type: ignore[misc]
            return answer


class _Plain(_Watched, HTTPConnection):  # type: ignore[misc]
    pass


class _Secure(_Watched, HTTPSConnection):  # type: ignore[misc]
    pass


PoolMaker = Callable[..., HTTPConnectionPool]


def pool_makers(watchdog: Watchdog, limits: Limits) -> dict[str, PoolMaker]:
    """By scheme, what makes urllib3's pools of watched connections."""

    def maker(made: type[HTTPConnectionPool], base: type[_Watched]) -> PoolMaker:
        connection = type(base.__name__, (base,), {"watchdog": watchdog, "limits": limits})

        def make(*args: object, **kwargs: object) -> HTTPConnectionPool:
            pool = made(*args, **kwargs)  # type: ignore[arg-type]
            pool.ConnectionCls = connection
            return pool

        return make

    return {
        "http": maker(HTTPConnectionPool, _Plain),
        "https": maker(HTTPSConnectionPool, _Secure),
    }
