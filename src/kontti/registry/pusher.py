"""Blobs and manifests to a registry (OCI distribution spec, push)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from urllib.parse import urlencode, urljoin, urlsplit

from kontti.errors import Error, NotFound
from kontti.registry.hosts import Capability
from kontti.registry.http import Request, Response, UploadBody
from kontti.registry.reference import Reference
from kontti.registry.session import Call, Session, described
from kontti.registry.target import MANIFEST_TYPES, Target
from kontti.values import Descriptor

OpenBody = Callable[[], AbstractContextManager[UploadBody]]
_MOVED = frozenset((307, 308))
_MAX_MOVES = 5


class Pusher:
    """Uploads to the repository of ``reference``, at the first host that takes pushes."""

    def __init__(self, session: Session, reference: Reference) -> None:
        self._reference = reference
        self._target = Target(session, reference, "pull,push")
        self._client = self._target.clients(Capability.PUSH)[0]

    def exists(self, descriptor: Descriptor) -> bool:
        """Whether the repository has it already."""
        kind = "manifests" if descriptor.media_type in MANIFEST_TYPES else "blobs"
        headers = {"Accept": f"{descriptor.media_type}, */*"}
        call = self._call("HEAD", f"{kind}/{descriptor.digest}", headers)
        with self._client.checked(call, (200, 404)) as response:
            return response.status == 200

    def push_blob(self, descriptor: Descriptor, body: OpenBody, mount_from: str = "") -> bool:
        """Upload the blob; False where it was there, or could be mounted from that repository."""
        if self.exists(descriptor):
            return False
        location = self._start(descriptor, mount_from)
        if location:
            self._upload(location, descriptor, body)
        return bool(location)

    def push_manifest(self, descriptor: Descriptor, body: bytes, name: str = "") -> None:
        """Put a manifest under ``name``, or its digest."""
        path = f"manifests/{name or descriptor.digest}"
        call = self._call("PUT", path, {"Content-Type": descriptor.media_type})
        call = Call(call.method, call.path, call.scopes, call.headers, body)
        self._client.checked(call, (200, 201, 202)).close()

    def _call(self, method: str, path: str, headers: dict[str, str] | None = None) -> Call:
        return self._target.call(self._client, method, path, headers or {})

    def _start(self, descriptor: Descriptor, mount_from: str) -> str:
        """Where to upload to; "" when the blob could be mounted."""
        path = "blobs/uploads/"
        if mount_from:
            path += "?" + urlencode({"mount": descriptor.digest, "from": mount_from})
        with self._client.checked(self._call("POST", path), (201, 202)) as response:
            if response.status == 201:
                return ""
            return upload_url(response, descriptor)

    def _upload(self, url: str, descriptor: Descriptor, body: OpenBody) -> None:
        for _ in range(_MAX_MOVES):
            request = self._put(url, descriptor)
            with body() as stream:
                sent = Request(request.method, request.url, request.headers, stream)
                response = self._client.transport.send(sent)
            with response:
                if response.status in (200, 201, 204):
                    return
                if response.status not in _MOVED or not response.headers.get("location"):
                    raise described(request, response)
                url = _absolute(response)
        raise Error(f"{url}: upload redirected too often")

    def _put(self, url: str, descriptor: Descriptor) -> Request:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(descriptor.size),
        }
        call = Call("PUT", url, (self._target.scope,), headers)
        return self._client.request(call)


def upload_url(response: Response, descriptor: Descriptor) -> str:
    """The upload's URL with the digest that ends it; raises NotFound without a Location."""
    url = _absolute(response)
    joint = "&" if urlsplit(url).query else "?"
    return f"{url}{joint}{urlencode({'digest': descriptor.digest})}"


def _absolute(response: Response) -> str:
    location = response.headers.get("location", "")
    if not location:
        raise NotFound(f"{response.url}: no upload location")
    url = urljoin(response.url, location)
    if not url.startswith(("https://", "http://")):
        raise Error(f"{response.url}: upload location of unsupported scheme")
    return url
