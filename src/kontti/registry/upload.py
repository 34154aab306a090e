"""A blob's upload: whole at first, from where it broke off after that, in chunks if need be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from urllib.parse import urlencode, urljoin, urlsplit

from kontti.errors import DeadlineExceeded, Error, NotFound, ResourceExhausted, Unavailable
from kontti.registry.http import Response, UploadBody, retry_after
from kontti.registry.retry import RETRIED
from kontti.registry.session import Call, HostClient, described
from kontti.values import Descriptor

# gives the blob from an offset on
OpenBody = Callable[[int], AbstractContextManager[UploadBody]]
# what registries behind object stores take at least, and proxies in front of them mostly
CHUNK = 8 << 20
MAX_CHUNK = 1 << 30
MAX_STEPS = 10_000
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,18})")
_MOVED = frozenset((307, 308))
_MAX_MOVES = 5
_TOO_LARGE = 413


class _Limited:
    """The next bytes of a body."""

    def __init__(self, body: UploadBody, count: int) -> None:
        self._body, self._left = body, count

    def read(self, size: int = -1, /) -> bytes:
        data = self._body.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


@dataclass(frozen=True, slots=True)
class Session:
    """An upload that a registry has begun, and how much of it is there."""

    url: str
    offset: int = 0


class Upload:
    """One upload of one blob. ``begin`` asks the registry for a new session."""

    def __init__(
        self,
        client: HostClient,
        scope: str,
        descriptor: Descriptor,
        body: OpenBody,
        begin: Callable[[], Session],
    ) -> None:
        self._client, self._scope = client, scope
        self._descriptor, self._open, self._begin = descriptor, body, begin
        self._chunk = self._failures = self._best = self._challenges = 0

    def run(self, session: Session) -> None:
        """Make the blob be there. Raises what the registry answered in the end.

        The upload is taken back then, as far as the registry lets us.
        """
        try:
            for _ in range(MAX_STEPS):
                try:
                    if session.offset == 0 and not self._chunk:
                        moved = self._put(session, whole=True)
                    elif session.offset < self._descriptor.size:
                        moved = self._patch(session)
                    else:
                        moved = self._put(session, whole=False)
                except (Unavailable, DeadlineExceeded) as error:
                    moved = self._recovered(session, error)
                if moved is None:
                    return
                session = moved
        except BaseException:
            self._cancel(session)
            raise
        self._cancel(session)
        raise Unavailable(f"{self._descriptor.digest}: upload does not end")

    def _put(self, session: Session, *, whole: bool) -> Session | None:
        """End the upload, with all of the blob or with what is there."""
        joint = "&" if urlsplit(session.url).query else "?"
        url = f"{session.url}{joint}{urlencode({'digest': self._descriptor.digest})}"
        count = self._descriptor.size if whole else 0
        with self._send("PUT", url, 0, count, {}) as response:
            if response.status in (200, 201, 204):
                return None
            return self._unwelcome("PUT", session, response)

    def _patch(self, session: Session) -> Session:
        """Add to the upload."""
        left = self._descriptor.size - session.offset
        count = min(self._chunk or left, left)
        span = {"Content-Range": f"{session.offset}-{session.offset + count - 1}"}
        with self._send("PATCH", session.url, session.offset, count, span) as response:
            if response.status not in (202, 204):
                return self._unwelcome("PATCH", session, response)
            url = session.url
            if response.headers.get("location"):
                url = absolute(response)
            moved = Session(url, received(response, session.offset + count))
            if not session.offset < moved.offset <= session.offset + count:
                raise Error(f"{session.url}: upload went from {session.offset} to {moved.offset}")
            self._advanced(moved.offset)
            return moved

    def _send(
        self, method: str, url: str, offset: int, count: int, headers: Mapping[str, str]
    ) -> Response:
        sent = {"Content-Type": "application/octet-stream", "Content-Length": str(count), **headers}
        for _ in range(_MAX_MOVES):
            request = self._client.request(Call(method, url, (self._scope,), sent))
            with self._open(offset) as stream:
                body = _Limited(stream, count)
                response = self._client.transport.send(replace(request, body=body))
            if response.status not in _MOVED or not response.headers.get("location"):
                return response
            with response:
                url = absolute(response)
        raise Error(f"{url}: upload redirected too often")

    def _unwelcome(self, method: str, session: Session, response: Response) -> Session:
        """What to go on with after any other status; raises where there is nothing to be done."""
        call = Call(method, session.url, (self._scope,))
        if response.status == 401:
            self._challenges += 1
            self._client.challenged(call, response, self._challenges)
            return self._resumed(session)
        if response.status == _TOO_LARGE and not self._chunk:
            self._chunk = CHUNK
            return self._anew(session)
        error = described(self._client.request(call), response)
        if response.status in RETRIED or response.status == 416:
            return self._recovered(session, error, response)
        raise error

    def _advanced(self, offset: int) -> None:
        if offset > self._best:
            self._best, self._failures = offset, 0

    def _recovered(
        self, session: Session, error: Error, response: Response | None = None
    ) -> Session:
        """Where to go on after ``error``; raises it after too many without progress."""
        self._failures += 1
        pauses = list(self._client.retries.pauses())
        if self._failures > len(pauses):
            raise error
        pause: float | None = pauses[self._failures - 1]
        if response is not None:
            pause = retry_after(response, pauses[self._failures - 1], self._client.retries.longest)
        if pause is None:
            raise error
        self._client.sleep(pause)
        try:
            found = self._resumed(session)
        except (Unavailable, DeadlineExceeded, ResourceExhausted):
            # asked again after the next attempt
            return session
        self._advanced(found.offset)
        return found

    def _resumed(self, session: Session) -> Session:
        """The upload as the registry has it, or a new one."""
        return self._asked(session) or self._anew(session)

    def _anew(self, session: Session) -> Session:
        self._cancel(session)
        return self._begin()

    def _asked(self, session: Session) -> Session | None:
        """The upload as the registry has it; None where it has none of it."""
        call = Call("GET", session.url, (self._scope,))
        with self._client.call(call) as response:
            if response.status not in (200, 202, 204):
                return None
            url = session.url
            if response.headers.get("location"):
                url = absolute(response)
            offset = received(response, 0)
        return Session(url, offset) if 0 < offset <= self._descriptor.size else None

    def _cancel(self, session: Session) -> None:
        with suppress(Error):
            request = self._client.request(Call("DELETE", session.url, (self._scope,)))
            self._client.transport.send(request).close()


def begun(response: Response) -> Session:
    """The session that an answer to POST began; raises NotFound where it names none."""
    return Session(absolute(response))


def received(response: Response, default: int) -> int:
    """How many bytes a registry says it has, from the start on.

    The range is inclusive, so nothing and one byte are both ``0-0``, which is read as nothing.
    """
    found = _RANGE.fullmatch(response.headers.get("range", "").strip())
    if found is None:
        return default
    last = int(found.group(1))
    return last + 1 if last else 0


def absolute(response: Response) -> str:
    """The upload's URL in an answer; raises NotFound without a Location, Error for another kind."""
    location = response.headers.get("location", "")
    if not location:
        raise NotFound(f"{response.url}: no upload location")
    url = urljoin(response.url, location)
    if not url.startswith(("https://", "http://")):
        raise Error(f"{response.url}: upload location of unsupported scheme")
    return url
