"""The debug socket: HTTP with ``/debug/pprof`` and ``/debug/vars``, as far as Python has them.

It is served by threads of its own, so that it answers while the event loop is stuck.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingUnixStreamServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from kontti.server import profiles
from kontti.server.listen import prepare_socket

log = logging.getLogger(__name__)
MAX_SECONDS = 600.0
REQUEST_SECONDS = 10.0
TEXT, BINARY, JSON = "text/plain; charset=utf-8", "application/octet-stream", "application/json"
MISSING = ("allocs", "block", "heap", "mutex", "threadcreate", "trace")
INDEX = (
    "/debug/pprof/goroutine?debug=2  stacks of threads and tasks\n"
    "/debug/pprof/goroutine          threads by stack, as a profile\n"
    "/debug/pprof/profile?seconds=30 CPU profile\n"
    "/debug/vars                     command line and memory\n"
)
Answer = tuple[int, str, bytes]


class DebugServer:
    """Serves ``address``, owned by uid and gid, mode 0660."""

    def __init__(self, address: str, uid: int, gid: int) -> None:
        """Raises FailedPrecondition where another daemon has the socket, InvalidArgument."""
        self._address, self._stop = address, threading.Event()
        answers = Answers(asyncio.get_running_loop(), self._stop)
        handler = type("Handler", (_Handler,), {"answers": answers})
        prepare_socket(address)
        self._server = _Server(address, handler, bind_and_activate=False)
        try:
            self._server.server_bind()
            os.chmod(address, 0o660)
            os.chown(address, uid, gid)
            self._server.server_activate()
        except BaseException:
            self._server.server_close()
            raise
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="debug", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End what is under way, and take the socket away."""
        self._stop.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        os.unlink(self._address)


class Answers:
    """What each path gives."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        self._loop, self._stop = loop, stop
        self._profiling = threading.Lock()

    def of(self, target: str) -> Answer:
        """The answer to a GET of ``target``."""
        url = urlsplit(target)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        known: dict[str, Callable[[dict[str, str]], Answer]] = {
            "/debug/pprof": lambda _: (200, TEXT, INDEX.encode()),
            "/debug/pprof/goroutine": self._stacks,
            "/debug/pprof/profile": self._profile,
            "/debug/vars": lambda _: (200, JSON, json.dumps(variables()).encode()),
        }
        path = url.path.rstrip("/")
        if path.removeprefix("/debug/pprof/") in MISSING:
            return 501, TEXT, b"this daemon is in Python, which has no such profile\n"
        found = known.get(path)
        return found(query) if found else (404, TEXT, b"404 page not found\n")

    def _stacks(self, query: dict[str, str]) -> Answer:
        if query.get("debug", "0") in ("", "0"):
            return 200, BINARY, profiles.stacks_profile()
        return 200, TEXT, profiles.stacks_text(self._loop).encode()

    def _profile(self, query: dict[str, str]) -> Answer:
        try:
            seconds = float(query.get("seconds") or 30)
        except ValueError:
            return 400, TEXT, b"seconds is no number\n"
        if not 0 < seconds <= MAX_SECONDS:
            return 400, TEXT, f"seconds is not between 0 and {MAX_SECONDS:.0f}\n".encode()
        if not self._profiling.acquire(blocking=False):
            return 500, TEXT, b"Could not enable CPU profiling: cpu profiling already in use\n"
        try:
            return 200, BINARY, profiles.cpu_profile(seconds, self._stop)
        finally:
            self._profiling.release()


def variables() -> dict[str, object]:
    """The command line, and what /proc says of this process's memory, in bytes."""
    with open("/proc/self/status") as file:
        lines = [line.split() for line in file if line.startswith(("Vm", "Rss", "Threads"))]
    memory = {words[0].rstrip(":"): int(words[1]) for words in lines}
    count = memory.pop("Threads")
    return {
        "cmdline": sys.orig_argv,
        "memory": {name: kibibytes << 10 for name, kibibytes in memory.items()},
        "threads": count,
    }


class _Server(ThreadingUnixStreamServer):
    request_queue_size = 16
    daemon_threads = True
    # who profiles is answered late; the daemon's end does not wait for it
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    answers: ClassVar[Answers]
    timeout = REQUEST_SECONDS
    server_version, sys_version = "kontti", ""

    def do_GET(self) -> None:
        try:
            status, kind, body = self.answers.of(self.path)
        except Exception:
            log.exception("debug socket: %.200s", self.path)
            status, kind, body = 500, TEXT, b"see the daemon's log\n"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except (TimeoutError, OSError) as error:
            log.debug("debug connection ended: %s", error)

    def address_string(self) -> str:
        return "debug socket"

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)
