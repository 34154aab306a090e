"""Debian's docker-registry on loopback, and a push of built images by plain HTTP."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.images import Image

BINARY = "/usr/bin/docker-registry"
START_SECONDS = 20.0


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(base: Path, extra: str = "", http: str = "") -> Iterator[str]:
    """A registry with its data under ``base``; gives ``127.0.0.1:port``.

    ``extra`` is YAML at the top level, ``http`` in its http table.
    """
    port = free_port()
    (base / "config.yml").write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {base / 'data'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'{http}}}\n{extra}"
    )
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(
            [BINARY, "serve", str(base / "config.yml")], stdout=log, stderr=log
        )
    try:
        _wait(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def push(address: str, repository: str, tag: str, image: Image) -> None:
    """Put ``image`` there by the distribution API."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        for digest, data in image.blobs.items():
            if digest != image.digest:
                _push_blob(connection, repository, digest, data)
        headers = {"Content-Type": str(image.manifest["mediaType"])}
        path = f"/v2/{repository}/manifests/{tag}"
        connection.request("PUT", path, image.blobs[image.digest], headers)
        _expect(connection, 201)
    finally:
        connection.close()


def _push_blob(
    connection: http.client.HTTPConnection, repository: str, digest: str, data: bytes
) -> None:
    connection.request("POST", f"/v2/{repository}/blobs/uploads/")
    location = _expect(connection, 202)
    url = f"{location}{'&' if '?' in location else '?'}digest={digest}"
    headers = {"Content-Type": "application/octet-stream"}
    connection.request("PUT", url.partition("/v2/")[1] + url.partition("/v2/")[2], data, headers)
    _expect(connection, 201)


def _expect(connection: http.client.HTTPConnection, status: int) -> str:
    response = connection.getresponse()
    body = response.read()
    if response.status != status:
        raise RuntimeError(f"registry answered {response.status}: {body[:300]!r}")
    return response.getheader("Location", "")
