"""Names to descriptors, by the distribution API (OCI distribution spec)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kontti.errors import (
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from kontti.registry.fetcher import Fetcher, Pace
from kontti.registry.hosts import Capability
from kontti.registry.http import ConnectionLost, DialFailed, Response
from kontti.registry.parallel import Chunking
from kontti.registry.reference import Reference
from kontti.registry.session import Call, HostClient, Session, rested
from kontti.registry.target import MANIFEST_TYPES, Target
from kontti.values import Descriptor, Digest

MAX_MANIFEST = 8 << 20
_ACCEPT = ", ".join((*MANIFEST_TYPES, "*/*"))
# some registries do not know HEAD
_NO_HEAD = frozenset((400, 405, 501))
_T = TypeVar("_T")


class Resolver:
    """Finds what a name stands for, and gives what fetches it."""

    def __init__(self, session: Session, pace: Pace | None = None) -> None:
        self._session, self._pace = session, pace or Pace()

    def resolve(self, reference: Reference) -> tuple[str, Descriptor]:
        """The name and the descriptor it stands for now.

        Raises NotFound, InvalidArgument without a tag or digest, or the last host's failure.
        """
        try:
            return str(reference), self._descriptor(reference)
        except Error as error:
            raise _wrapped(reference, error) from error

    def blob(self, reference: Reference) -> Descriptor:
        """The blob of the reference's digest, which is no manifest; raises as ``resolve``."""
        try:
            return self._descriptor(reference, ("blobs",))
        except Error as error:
            raise _wrapped(reference, error) from error

    def _descriptor(
        self, reference: Reference, kinds: Sequence[str] = ("manifests", "blobs")
    ) -> Descriptor:
        if not reference.object or not reference.path:
            raise InvalidArgument("object required")
        target = Target(self._session, reference)
        clients = target.clients(Capability.RESOLVE)
        return first(clients, lambda client: _Question(target, client, kinds).answer())

    def fetcher(self, reference: Reference, chunking: Chunking | None = None) -> Fetcher:
        """What fetches the blobs of ``reference``'s repository."""
        return Fetcher(Target(self._session, reference), self._pace, chunking or Chunking())


def _wrapped(reference: Reference, error: Error) -> Error:
    reason = f"{reference}: not found" if isinstance(error, NotFound) else error.message
    return type(error)(f'failed to resolve reference "{reference}": {reason}')


def first(clients: Sequence[HostClient], ask: Callable[[HostClient], _T]) -> _T:
    """The first answer; raises the last host's failure, which is the registry's own.

    Where no connection could be made to that one, all are asked again after a pause.
    """
    own = clients[-1]
    for pause in own.retries.pauses():
        try:
            return _first(clients, ask)
        except DialFailed:
            own.sleep(pause)
    return _first(clients, ask)


def _first(clients: Sequence[HostClient], ask: Callable[[HostClient], _T]) -> _T:
    failures = {}
    for client in rested(clients):
        try:
            return ask(client)
        except Error as error:
            failures[id(client)] = error
    raise failures[id(clients[-1])]


@dataclass(frozen=True, slots=True)
class _Question:
    target: Target
    client: HostClient
    kinds: Sequence[str]

    def answer(self) -> Descriptor:
        reference = self.target.reference
        wanted = reference.digest
        failure: Error = NotFound(str(reference))
        # a tag stands for a manifest
        for kind in self.kinds if wanted else self.kinds[:1]:
            try:
                found = self._head(f"{kind}/{wanted or reference.tag}")
            except Unavailable as error:
                if isinstance(error, DialFailed | ConnectionLost):
                    raise
                # docker-registry 2 answers 500 for a blob that is no manifest
                failure = error
                continue
            if found is not None:
                return _checked(reference, found)
        raise failure

    def _head(self, path: str) -> Descriptor | None:
        call = self._call("HEAD", path)
        with self.client.checked(call, (200, 404, *_NO_HEAD)) as response:
            if response.status == 404:
                return None
            self._check_way(response)
            found = described_by(response, self.target.reference.digest)
        return found or self._get(path)

    def _get(self, path: str) -> Descriptor | None:
        with self.client.checked(self._call("GET", path), (200, 404)) as response:
            if response.status == 404:
                return None
            self._check_way(response)
            body = response.read(MAX_MANIFEST)
            claimed = self.target.reference.digest or _digest(response)
            digest = digest_of(body, claimed.algorithm if claimed else "sha256")
            if claimed and claimed != digest:
                raise FailedPrecondition(f"unexpected digest {digest}, expected {claimed}")
            return Descriptor(_media_type(response), digest, len(body))

    def _check_way(self, response: Response) -> None:
        """What a tag stands for is nobody's to say on a wire that anyone can write on."""
        secure = self.client.host.scheme == "https"
        if secure and not self.target.reference.digest and response.url.startswith("http:"):
            raise FailedPrecondition(f"{self.client.host.url}: redirected to plain HTTP")

    def _call(self, method: str, path: str) -> Call:
        return self.target.call(self.client, method, path, {"Accept": _ACCEPT})


def digest_of(body: bytes, algorithm: str) -> Digest:
    """The digest of ``body``."""
    return Digest(f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}")


def described_by(response: Response, wanted: Digest | None) -> Descriptor | None:
    """The descriptor in an answer's headers, if they say enough."""
    if response.status != 200:
        return None
    said, length = _digest(response), response.headers.get("content-length", "")
    digest = wanted or said
    if digest is None or not length.isdecimal() or len(length) > 18:
        return None
    if said is not None and said.algorithm == digest.algorithm and said != digest:
        raise FailedPrecondition(f"unexpected digest {said}, expected {digest}")
    return Descriptor(_media_type(response), digest, int(length))


def _digest(response: Response) -> Digest | None:
    text = response.headers.get("docker-content-digest", "")
    return Digest.parse(text) if text else None


def _media_type(response: Response) -> str:
    kind = response.headers.get("content-type", "").partition(";")[0].strip()
    return kind or "application/octet-stream"


def _checked(reference: Reference, found: Descriptor) -> Descriptor:
    if found.media_type in MANIFEST_TYPES and found.size > MAX_MANIFEST:
        raise ResourceExhausted(f"rejecting {found.size} byte manifest for {reference}")
    return found
