"""A web server on loopback that does what a test tells it, however wrong."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> Mapping[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


@dataclass(frozen=True)
class Answer:
    """What to answer. ``length`` is the Content-Length to claim, None for the body's own.

    ``rest`` is asked for more of the body once ``body`` has been sent.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None
    rest: Callable[[], bytes] = bytes


Behaviour = Callable[[Asked], Answer]


class Web:
    """A running server: its address, and everything it was asked."""

    def __init__(self, behaviour: Behaviour, port: int = 0) -> None:
        self.behaviour = behaviour
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 10

            def handle(self) -> None:
                # a client may hang up at any time
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    super().handle()

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                headers = {k.lower(): v for k, v in self.headers.items()}
                asked = Asked(self.command, self.path, headers, self.rfile.read(length))
                with web.lock:
                    web.asked.append(asked)
                self.say(web.behaviour(asked))

            def say(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for key, value in answer.headers.items():
                    self.send_header(key, value)
                length = len(answer.body) if answer.length is None else answer.length
                if length >= 0:
                    self.send_header("Content-Length", str(length))
                if length != len(answer.body):
                    self.close_connection = True
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)
                    self.wfile.write(answer.rest())

            def log_message(self, format: str, *args: object) -> None:
                pass

        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def paths(self) -> list[str]:
        """Methods and paths, in order."""
        return [f"{a.method} {a.path}" for a in self.asked]


@contextlib.contextmanager
def serving(behaviour: Behaviour, port: int = 0) -> Iterator[Web]:
    """Run a server until the block ends."""
    web = Web(behaviour, port)
    thread = threading.Thread(target=web.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        web.server.shutdown()
        thread.join(10)
        web.server.server_close()


@dataclass
class Repository:
    """A registry that has ``blobs`` (by digest) and ``tags``, for any repository."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    media_types: dict[str, str] = field(default_factory=dict)

    def __call__(self, asked: Asked) -> Answer:
        """Serve /v2/<name>/manifests|blobs/<tag or digest>, with ranges."""
        name = asked.path.rpartition("/")[2]
        digest = self.tags.get(name, name)
        data = self.blobs.get(digest)
        if data is None:
            return Answer(404)
        headers = {"Docker-Content-Digest": digest}
        headers["Content-Type"] = self.media_types.get(digest, "application/octet-stream")
        start, _, last = asked.headers.get("range", "").removeprefix("bytes=").partition("-")
        if not start:
            return Answer(200, headers, data)
        end = int(last) + 1 if last else len(data)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return Answer(206, headers, data[int(start) : end])
