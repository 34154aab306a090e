"""Blobs and manifests to a registry (OCI distribution spec, push)."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlencode

from kontti.errors import PermissionDenied, Unauthenticated
from kontti.registry.hosts import Capability
from kontti.registry.reference import Reference
from kontti.registry.session import Call, Session
from kontti.registry.target import MANIFEST_TYPES, Target
from kontti.registry.upload import OpenBody, Upload, begun
from kontti.registry.upload import Session as UploadSession
from kontti.values import Descriptor


class Pusher:
    """Uploads to the repository of ``reference``, at the first host that takes pushes."""

    def __init__(self, session: Session, reference: Reference) -> None:
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
        """Upload the blob; False where it was there, or could be mounted from that repository.

        ``body`` opens the blob at an offset. A broken upload goes on where the registry has it.
        """
        if self.exists(descriptor):
            return False
        session = self._mount(descriptor, mount_from) if mount_from else self._begin()
        if session is None:
            return False
        Upload(self._client, self._target.scope, descriptor, body, self._begin).run(session)
        return True

    def push_manifest(self, descriptor: Descriptor, body: bytes, name: str = "") -> bool:
        """Put a manifest under ``name``, or its digest.

        Gives whether the registry says that it lists the manifest among its subject's referrers.
        """
        path = f"manifests/{name or descriptor.digest}"
        call = self._call("PUT", path, {"Content-Type": descriptor.media_type})
        with self._client.checked(replace(call, body=body), (200, 201, 202)) as response:
            return bool(response.headers.get("oci-subject"))

    def _call(self, method: str, path: str, headers: dict[str, str] | None = None) -> Call:
        return self._target.call(self._client, method, path, headers or {})

    def _begin(self) -> UploadSession:
        with self._client.checked(self._call("POST", "blobs/uploads/"), (202,)) as response:
            return begun(response)

    def _mount(self, descriptor: Descriptor, source: str) -> UploadSession | None:
        """Mount from another repository; where that cannot be, the session of an upload."""
        query = urlencode({"mount": descriptor.digest, "from": source})
        call = self._call("POST", f"blobs/uploads/?{query}")
        scopes = (*call.scopes, f"repository:{source}:pull")
        try:
            response = self._client.checked(replace(call, scopes=scopes), (201, 202))
        except (Unauthenticated, PermissionDenied):
            # we may not read there, or the token server does not know such a thing
            return self._begin()
        with response:
            return None if response.status == 201 else begun(response)
