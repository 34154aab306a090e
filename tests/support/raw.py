"""A server on loopback that is a function of a connection: for peers that break HTTP itself."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

Talk = Callable[[socket.socket], None]


def read_head(connection: socket.socket) -> bytes:
    """A request up to its empty line; b"" where the peer hung up."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            return b""
        head += byte
    return head


@contextlib.contextmanager
def talking(talk: Talk) -> Iterator[tuple[str, list[int]]]:
    """Run a server; gives its address, and a list that grows by one for each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    made: list[int] = []
    open_connections: list[socket.socket] = []
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            talk(connection)

    def accept() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.settimeout(30)
                made.append(len(made))
                open_connections.append(connection)
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", made
    finally:
        ended.set()
        acceptor.join(10)
        listener.close()
        for connection in open_connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)


def drip(connection: socket.socket, data: bytes, ended: threading.Event, pause: float) -> None:
    """Send ``data`` over and over, byte by byte."""
    while True:
        for at in range(len(data)):
            if ended.wait(pause):
                return
            connection.sendall(data[at : at + 1])
