"""A repository at the hosts that serve it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from kontti.errors import NotFound
from kontti.registry.credentials import DOCKER_HOST
from kontti.registry.hosts import DOCKER_SERVER, Capability, Host
from kontti.registry.reference import Reference
from kontti.registry.session import Call, HostClient, Session
from kontti.values import EMPTY

MANIFEST_TYPES = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
)


@dataclass(frozen=True, slots=True)
class Target:
    """A reference, and the session in which its hosts are spoken to."""

    session: Session
    reference: Reference
    actions: str = "pull"

    def clients(self, capability: Capability) -> Sequence[HostClient]:
        """Clients of the hosts that may be asked for this; raises NotFound where there is none."""
        hosts = [h for h in self.session.hosts(self.reference.host) if capability in h.capabilities]
        if not hosts:
            raise NotFound(f"no {capability.value} hosts")
        return [self.session.client(host) for host in hosts]

    def call(
        self,
        client: HostClient,
        method: str,
        path: str,
        headers: Mapping[str, str] = EMPTY,
        query: Mapping[str, str] = EMPTY,
    ) -> Call:
        """A call for ``path`` under the repository."""
        fields = {**query, **self._namespace(client.host)}
        path = f"/{self.reference.path}/{path}" + (f"?{urlencode(fields)}" if fields else "")
        return Call(method, path, (self.scope,), headers, patient="push" in self.actions)

    @property
    def scope(self) -> str:
        """What a token must allow."""
        return f"repository:{self.reference.path}:{self.actions}"

    def _namespace(self, host: Host) -> Mapping[str, str]:
        """A mirror is told whose repository is meant."""
        registry = self.reference.host
        if host.host == registry or (registry == DOCKER_HOST and host.host == DOCKER_SERVER):
            return EMPTY
        return {"ns": registry}
