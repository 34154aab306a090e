"""Descriptors to bytes: resumed where a connection broke, at the next host where one is stuck."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from kontti.errors import (
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    NotFound,
    OutOfRange,
    Unavailable,
)
from kontti.registry.hosts import Capability
from kontti.registry.http import Request, Response, follow
from kontti.registry.parallel import Chunking, in_chunks
from kontti.registry.session import HostClient, described, rested
from kontti.registry.target import MANIFEST_TYPES, Target
from kontti.values import Descriptor, Digest

_FOREIGN = (
    "application/vnd.docker.image.rootfs.foreign.",
    "application/vnd.oci.image.layer.nondistributable.",
)
_RANGE = re.compile(r"bytes (\d{1,18})-")


@dataclass(frozen=True, slots=True)
class Pace:
    """When a download is given up on.

    A body is left when it brings fewer than ``least`` bytes in ``window`` seconds of waiting; a
    download when ``failures`` attempts in a row brought fewer, or after ``reopens`` in all.
    """

    least: int = 4096
    window: float = 60.0
    failures: int = 3
    reopens: int = 100


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches blobs of one repository."""

    target: Target
    pace: Pace
    chunking: Chunking = field(default_factory=Chunking)
    served: dict[Digest, list[HostClient]] = field(default_factory=dict)

    def fetch(self, descriptor: Descriptor, offset: int = 0) -> Generator[bytes, None, None]:
        """The blob's bytes from ``offset`` on, exactly as many as the descriptor says.

        Raises NotFound, Unavailable, FailedPrecondition where the body is of another length. The
        digest is the reader's to check.
        """

        def make(start: int, end: int) -> _Download:
            sources = self._sources(descriptor)
            return _Download(descriptor, (start, end), self.pace, sources, grows=start == offset)

        if self.chunking.splits(descriptor.size - offset):
            return in_chunks(make, offset, descriptor.size, self.chunking)
        return make(offset, descriptor.size).run()

    def several(self) -> bool:
        """Whether more than one host may be asked."""
        return len(self.target.clients(Capability.PULL)) > 1

    def distrust(self, descriptor: Descriptor) -> bool:
        """Ask others first after a host gave wrong bytes; whether there are others."""
        served = self.served.pop(descriptor.digest, [])
        for client in served:
            client.rest()
        ids = {id(client) for client in served}
        return any(id(client) not in ids for client in self.target.clients(Capability.PULL))

    def _sources(self, descriptor: Descriptor) -> list[_Source]:
        clients = self.target.clients(Capability.PULL)
        foreign = descriptor.urls if descriptor.media_type.startswith(_FOREIGN) else ()
        kinds = ["blobs"]
        if descriptor.media_type in MANIFEST_TYPES:
            kinds.insert(0, "manifests")
        served = self.served.setdefault(descriptor.digest, [])
        found = [_Source(self.target, clients[0], descriptor, served, url=url) for url in foreign]
        for client in rested(clients):
            found += [_Source(self.target, client, descriptor, served, kind=kind) for kind in kinds]
        return found


@dataclass(frozen=True, slots=True)
class _Source:
    target: Target
    client: HostClient
    descriptor: Descriptor
    served: list[HostClient]
    kind: str = "blobs"
    url: str = ""

    def open(self, offset: int, end: int) -> Response:
        headers = {"Accept": f"{self.descriptor.media_type}, */*"}
        whole = end >= self.descriptor.size
        if offset or not whole:
            headers["Range"] = f"bytes={offset}-" + ("" if whole else str(end - 1))
        if self.url:
            return self._foreign(Request("GET", self.url, headers))
        path = f"{self.kind}/{self.descriptor.digest}"
        call = self.target.call(self.client, "GET", path, headers)
        response = self.client.checked(call, (200, 206))
        self.served.append(self.client)
        return response

    def _foreign(self, request: Request) -> Response:
        if not request.url.startswith(("https://", "http://")):
            raise NotFound(f"unsupported URL {request.url[:200]!r}")
        response = follow(self.client.transport, request)
        if response.status in (200, 206):
            return response
        with response:
            raise described(request, response)


def skipped(response: Response, offset: int) -> int:
    """How many of the body's bytes come before ``offset``; raises OutOfRange for another range."""
    if response.status != 206:
        return offset
    found = _RANGE.match(response.headers.get("content-range", ""))
    start = int(found.group(1)) if found else -1
    if not 0 <= start <= offset:
        raise OutOfRange(f"{response.url}: answered with another range than {offset}-")
    return offset - start


class _Download:
    """A span of a blob, from whichever source has it."""

    def __init__(
        self,
        descriptor: Descriptor,
        span: tuple[int, int],
        pace: Pace,
        sources: list[_Source],
        *,
        grows: bool,
    ) -> None:
        self._descriptor, self._pace, self._grows = descriptor, pace, grows
        self._offset, self.end = span
        self._sources, self._failures, self._opened = sources, 0, False
        self.ranged = False

    def run(self) -> Generator[bytes, None, None]:
        for _ in range(self._pace.reopens):
            if self._offset >= self.end:
                return
            before = self._offset
            try:
                yield from self._body()
            except Error as error:
                self._failed(error, self._offset - before)
        raise Unavailable(f"{self._descriptor.digest}: connection lost too often")

    def _failed(self, error: Error, got: int) -> None:
        """Go on with another source; raises ``error`` where there is none left to try."""
        source = self._sources.pop(0)
        if isinstance(error, FailedPrecondition):
            raise error
        self._failures = 0 if got >= self._pace.least else self._failures + 1
        if isinstance(error, Unavailable | DeadlineExceeded):
            self._sources.append(source)
        if not self._sources or self._failures >= self._pace.failures * len(self._sources):
            raise error
        if isinstance(error, DeadlineExceeded):
            source.client.rest()
        self._back_off(source.client)

    def _back_off(self, client: HostClient) -> None:
        """Wait once all sources have failed, longer every time."""
        round_, rest = divmod(self._failures, len(self._sources))
        if round_ and not rest:
            pauses = list(client.retries.pauses())
            client.sleep(pauses[min(round_, len(pauses)) - 1] if pauses else client.retries.pause)

    def _body(self) -> Generator[bytes, None, None]:
        with self._sources[0].open(self._offset, self.end) as response:
            skip = skipped(response, self._offset)
            self._learn(response)
            for chunk in paced(response.chunks(), self._pace, response.url):
                data = chunk[skip:]
                skip -= len(chunk) - len(data)
                if data:
                    yield self._advance(data)
                if self._offset == self.end < self._descriptor.size:
                    return
            if self._offset < self.end:
                raise self._ended(response)

    def _learn(self, response: Response) -> None:
        """Who knows no ranges sends the whole blob: a first span is then all of it."""
        if not self._opened:
            self.ranged, self._opened = response.status == 206, True
            if self._grows and not self.ranged:
                self.end = self._descriptor.size

    def _ended(self, response: Response) -> Error:
        """A body that ended where its own length says is what the registry has."""
        if "content-length" in response.headers and response.status != 206:
            size = self._descriptor.size
            return FailedPrecondition(
                f"{self._descriptor.digest}: body is shorter than {size} bytes"
            )
        return Unavailable(f"{self._descriptor.digest}: unexpected EOF")

    def _advance(self, data: bytes) -> bytes:
        size, wanted = self._descriptor.size, self.end - self._offset
        if self.end < size:
            data = data[:wanted]
        self._offset += len(data)
        if self._offset > size:
            raise FailedPrecondition(f"{self._descriptor.digest}: body is longer than {size} bytes")
        return data


def paced(chunks: Iterator[bytes], pace: Pace, url: str) -> Iterator[bytes]:
    """``chunks``; raises DeadlineExceeded when they come too slowly. Only waiting counts."""
    waited, got = 0.0, 0
    while True:
        start = time.monotonic()
        chunk = next(chunks, b"")
        waited += time.monotonic() - start
        if not chunk:
            return
        got += len(chunk)
        yield chunk
        if waited > pace.window:
            if got < pace.least:
                raise DeadlineExceeded(f"{url}: {got} bytes in {waited:.0f} seconds")
            waited, got = 0.0, 0
