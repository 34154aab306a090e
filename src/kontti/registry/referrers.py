"""What refers to a manifest: the referrers API, and the tag that stands in for it (OCI 1.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import urljoin

from kontti.errors import ResourceExhausted
from kontti.registry.hosts import Capability
from kontti.registry.http import Response, same_origin
from kontti.registry.reference import Reference
from kontti.registry.resolver import MAX_MANIFEST, digest_of, first
from kontti.registry.session import Call, HostClient, Session
from kontti.registry.target import Target
from kontti.values import Descriptor, Digest

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MAX_PAGES = 50
# what registries without the API answer
_NO_API = frozenset((400, 404, 405, 501))
_NEXT = re.compile(r'<([^<>]{1,4096})>\s*;[^,]*\brel="?next"?')


@dataclass(frozen=True, slots=True)
class ReferrersApi:
    """Asks the hosts of a repository."""

    session: Session
    reference: Reference

    def pages(self, digest: Digest, artifact_type: str = "") -> list[bytes]:
        """The indexes that list what refers to ``digest``; none where nothing does.

        They may list more than ``artifact_type``: not every registry filters.
        """
        target = Target(self.session, self.reference)
        clients = target.clients(Capability.REFERRERS)
        return first(clients, lambda c: list(_Pages(target, c).of(digest, artifact_type)))

    def put(self, digest: Digest, index: bytes) -> None:
        """Make ``index`` what the tag in place of the API stands for."""
        target = Target(self.session, self.reference, "pull,push")
        client = target.clients(Capability.PUSH)[0]
        descriptor = Descriptor(INDEX_TYPE, digest_of(index, "sha256"), len(index))
        headers = {"Content-Type": descriptor.media_type}
        call = target.call(client, "PUT", f"manifests/{fallback_tag(digest)}", headers)
        client.checked(replace(call, body=index), (200, 201, 202)).close()


@dataclass(frozen=True, slots=True)
class _Pages:
    target: Target
    client: HostClient

    def of(self, digest: Digest, artifact_type: str) -> Iterator[bytes]:
        query = {"artifactType": artifact_type} if artifact_type else {}
        headers = {"Accept": INDEX_TYPE}
        call = self.target.call(self.client, "GET", f"referrers/{digest}", headers, query)
        for _ in range(MAX_PAGES):
            with self.client.checked(call, (200, *_NO_API)) as response:
                if response.status != 200 or not _is_index(response):
                    yield from self._by_tag(digest)
                    return
                yield response.read(MAX_MANIFEST)
                link = _next(response)
            if not link:
                return
            call = Call("GET", link, call.scopes, headers)
        raise ResourceExhausted(f"{digest}: more than {MAX_PAGES} pages of referrers")

    def _by_tag(self, digest: Digest) -> Iterator[bytes]:
        path = f"manifests/{fallback_tag(digest)}"
        call = self.target.call(self.client, "GET", path, {"Accept": INDEX_TYPE})
        with self.client.checked(call, (200, 404)) as response:
            if response.status == 200:
                yield response.read(MAX_MANIFEST)


def _is_index(response: Response) -> bool:
    return response.headers.get("content-type", "").partition(";")[0].strip() == INDEX_TYPE


def _next(response: Response) -> str:
    """The next page, if it is the same server's."""
    found = _NEXT.search(response.headers.get("link", ""))
    url = urljoin(response.url, found.group(1)) if found else ""
    return url if url and same_origin(url, response.url) else ""


def fallback_tag(digest: Digest) -> str:
    """The tag that stands in for the API: ``sha256-<hex>``, cut to a tag's length."""
    algorithm, _, hex_ = digest.partition(":")
    return f"{algorithm[:32]}-{hex_[:64]}"
