"""A shim, as a binary of its own, that does one thing wrong: for real daemons to meet.

``install`` makes the binary. What it does wrong is read from ``mode`` beside it, at each call:
lines ``METHOD HOW``, with HOW a key of ``WRONG``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kontti.errors import Error, NotFound
from kontti.wire.messages.google import Empty, Timestamp
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.protobuf import Message
from kontti.wire.ttrpc import (
    HEADER,
    RESPONSE,
    Decoder,
    Response,
    encode_frame,
    encode_response,
    error_response,
)

CREATED, RUNNING, STOPPED = 1, 2, 3
FLOOD_SECONDS = 60.0


def install(folder: Path) -> Path:
    """The binary, its sockets and modes below ``folder``; its path is a runtime's name."""
    folder.mkdir()
    binary = folder / "containerd-shim-bad-v1"
    paths = [p for p in sys.path if p]
    binary.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {paths!r}\n"
        f"from tests.support.badshim import main\nmain({str(folder)!r})\n"
    )
    binary.chmod(0o755)
    return binary


class Connection:
    """One daemon's. Answers are sent from several threads."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self._lock = threading.Lock()

    def send(self, data: bytes) -> None:
        with self._lock:
            self.peer.sendall(data)


def garbage(connection: Connection, _stream: int, _answer: bytes) -> None:
    connection.send(b"\xff" * 1000)


def wrong(connection: Connection, stream: int, _answer: bytes) -> None:
    connection.send(encode_response(stream, Response(payload=b"\xff\xff\xff")))


def unreadable(connection: Connection, stream: int, _answer: bytes) -> None:
    connection.send(encode_frame(stream, RESPONSE, b"\xff\xff\xff"))


def silent(_connection: Connection, _stream: int, _answer: bytes) -> None:
    return


def cut(connection: Connection, _stream: int, answer: bytes) -> None:
    connection.send(answer[: len(answer) // 2 + 1])
    connection.peer.shutdown(socket.SHUT_RDWR)


def endless(connection: Connection, stream: int, _answer: bytes) -> None:
    """A frame that is announced with two gigabytes, and begins."""
    connection.send(HEADER.pack(2**31, stream, RESPONSE, 0))
    flood_with(connection, bytes(64 << 10))


def flood(connection: Connection, _stream: int, answer: bytes) -> None:
    """Answers to what nobody asked."""
    flood_with(connection, encode_response(2**31 - 1, Response(payload=b"x" * 100)) * 100)


def flood_with(connection: Connection, data: bytes) -> None:
    deadline = time.monotonic() + FLOOD_SECONDS
    while time.monotonic() < deadline:
        connection.send(data)


def twice(connection: Connection, _stream: int, answer: bytes) -> None:
    connection.send(answer * 3)


def die(_connection: Connection, _stream: int, _answer: bytes) -> None:
    os._exit(3)


def stop(_connection: Connection, _stream: int, _answer: bytes) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


WRONG: dict[str, Callable[[Connection, int, bytes], None]] = {
    "garbage": garbage,
    "wrong": wrong,
    "unreadable": unreadable,
    "silent": silent,
    "cut": cut,
    "endless": endless,
    "flood": flood,
    "twice": twice,
    "die": die,
    "stop": stop,
}


class Shim:
    """Serves one container, a ``sleep`` of the host."""

    def __init__(self, folder: Path, listener: socket.socket) -> None:
        self._folder = folder
        self._listener = listener
        self._process: subprocess.Popen[bytes] | None = None
        self._id = ""
        self._started = False

    def serve(self) -> None:
        while True:
            peer, _ = self._listener.accept()
            threading.Thread(target=self._connection, args=(Connection(peer),), daemon=True).start()

    def _connection(self, connection: Connection) -> None:
        decoder = Decoder()
        while data := connection.peer.recv(65536):
            for frame in decoder.feed(data):
                threading.Thread(
                    target=self._call, args=(connection, frame.stream, frame.request()), daemon=True
                ).start()

    def _call(self, connection: Connection, stream: int, request: object) -> None:
        method = str(request.method)  # type: ignore[attr-defined]
        try:
            found = getattr(self, f"do_{method.lower()}")(request.payload)  # type: ignore[attr-defined]
            response = Response(payload=found.encode())
        except Error as error:
            response = error_response(error)
        answer = encode_response(stream, response)
        how = self._modes().get(method)
        try:
            if how is None:
                connection.send(answer)
            else:
                WRONG[how](connection, stream, answer)
        except OSError:
            return
        if method == "Shutdown" and how is None:
            os._exit(0)

    def _modes(self) -> dict[str, str]:
        try:
            lines = (self._folder / "mode").read_text().splitlines()
        except FileNotFoundError:
            return {}
        return dict(line.split() for line in lines)  # type: ignore[misc]

    def _pid(self) -> int:
        if self._process is None:
            raise NotFound(f"container {self._id}")
        return self._process.pid

    def do_create(self, payload: bytes) -> Message:
        self._id = api.CreateTaskRequest.decode(payload).id
        self._process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        return api.CreateTaskResponse(pid=self._process.pid)

    def do_start(self, _payload: bytes) -> Message:
        self._started = True
        return api.StartResponse(pid=self._pid())

    def do_state(self, payload: bytes) -> Message:
        pid, process = self._pid(), self._process
        ended = process is not None and process.poll() is not None
        status = STOPPED if ended else RUNNING if self._started else CREATED
        id = api.StateRequest.decode(payload).id
        return api.StateResponse(id=id, pid=pid, status=status, exit_status=137 if ended else 0)

    def do_kill(self, _payload: bytes) -> Message:
        os.kill(self._pid(), signal.SIGKILL)
        return Empty()

    def do_wait(self, _payload: bytes) -> Message:
        self._pid()
        if self._process is not None:
            self._process.wait()
        return api.WaitResponse(exit_status=137, exited_at=_now())

    def do_delete(self, _payload: bytes) -> Message:
        pid = self._pid()
        self._end()
        self._process = None
        return api.DeleteResponse(pid=pid, exit_status=137, exited_at=_now())

    def do_shutdown(self, _payload: bytes) -> Message:
        return Empty()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _now() -> Timestamp:
    return Timestamp(seconds=int(time.time()))


def main(folder: str) -> None:
    """The command line of a shim: ``start`` and ``delete``."""
    base, action, id = Path(folder), sys.argv[-1], sys.argv[sys.argv.index("-id") + 1]
    pids = base / f"{id}.pid"
    if action == "delete":
        for pid in pids.read_text().split() if pids.exists() else ():
            _kill_group(int(pid))
        pids.unlink(missing_ok=True)
        sys.stdout.buffer.write(api.DeleteResponse(exit_status=137, exited_at=_now()).encode())
        return
    path = base / f"{id}.sock"
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    if os.fork() == 0:
        os.setsid()
        for fd in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
        pids.write_text(str(os.getpid()))
        Shim(base, listener).serve()
    sys.stdout.write(f"unix://{path}")


def _kill_group(pid: int) -> None:
    """A shim and the process it keeps."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    for each in (pid, *map(int, children)):
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue
