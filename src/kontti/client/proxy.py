"""Plugins that another process is: its services, at a socket that may come and go.

Nothing is dialled before it is needed, and again after it was lost, so that a daemon starts without
its proxies and outlives them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

from kontti.client.base import M
from kontti.client.client import FOREVER, HINT, Client, Duplex
from kontti.client.content import SERVICE as CONTENT
from kontti.client.content import RemoteContent
from kontti.client.stores import SNAPSHOTS, RemoteApplier, RemoteSnapshotter
from kontti.errors import NotFound, Unavailable, Unimplemented
from kontti.namespaces import DEFAULT, Scope
from kontti.snapshots.base import Info
from kontti.wire.protobuf import Message

CONNECT_SECONDS = 5.0
CALL_SECONDS = 120.0
"""The deadline of one call: a snapshotter may fetch before it answers."""
QUICK_SECONDS = 30.0
"""That of one for what is known at once."""
LONG_SECONDS = 600.0
"""That of one that may go through all the files of a snapshot, or convert them."""
QUICK = frozenset(
    (
        *(SNAPSHOTS + name for name in ("Stat", "Update", "List")),
        *(CONTENT + name for name in ("Info", "Update", "Status", "ListStatuses", "Abort")),
    )
)
LONG = frozenset(SNAPSHOTS + name for name in ("Commit", "Remove", "Usage", "Cleanup"))


def seconds_of(method: str) -> float:
    """The deadline of a call that names none."""
    if method in QUICK:
        return QUICK_SECONDS
    return LONG_SECONDS if method in LONG else CALL_SECONDS


class Redialling:
    """The calls of a client, on a connection that is made anew when it was lost.

    ``name`` is the plugin's, for what is said of it.
    """

    def __init__(self, address: str, name: str, namespace: str = DEFAULT) -> None:
        self._address = address
        self._name = name
        self._namespace = namespace
        self._client: Client | None = None
        self._lock = threading.Lock()

    def unary(
        self,
        method: str,
        request: Message,
        response: type[M],
        *,
        timeout: float | None = None,
        namespace: str | None = None,
    ) -> M:
        """As Client.unary; raises Unavailable where nobody listens."""
        seconds = seconds_of(method) if timeout is None else timeout
        client = self._connected()
        return client.unary(method, request, response, timeout=seconds, namespace=namespace)

    def stream(
        self, method: str, request: Message, response: type[M], *, timeout: float = FOREVER
    ) -> Iterator[M]:
        """As Client.stream."""
        seconds = min(timeout, seconds_of(method))
        return self._connected().stream(method, request, response, timeout=seconds)

    def duplex(self, method: str) -> Duplex:
        """As Client.duplex."""
        return self._connected().duplex(method)

    def _connected(self) -> Client:
        with self._lock:
            if self._client is not None and self._client.lost:
                self._client.close()
                self._client = None
            if self._client is None:
                self._client = self._dial()
            return self._client

    def _dial(self) -> Client:
        try:
            return Client(
                self._address,
                namespace=self._namespace,
                connect_timeout=CONNECT_SECONDS,
                late=f'proxy plugin {self._name} at "{self._address}" did not answer in time',
            )
        except Unavailable as error:
            said = error.message.replace(HINT, "")
            raise Unavailable(f"proxy plugin {self._name}: {said}") from error

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


class ProxySnapshotter(RemoteSnapshotter):
    """The Snapshots service at ``address``, asked for the snapshotter ``name``."""

    def __init__(self, address: str, name: str) -> None:
        self._redialling = Redialling(address, name)
        super().__init__(self._redialling, name)

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Those that match."""
        # one that never had any may say that its bucket is not there
        with suppress(NotFound):
            yield from super().walk(filters)

    def cleanup(self) -> None:
        """Have it free what is removed, if that is not done at once there."""
        with suppress(Unimplemented, NotFound):
            super().cleanup()

    def close(self) -> None:
        """Hang up."""
        self._redialling.close()


class ProxyContent(RemoteContent):
    """The Content service at ``address``, of the plugin ``name``."""

    def __init__(self, address: str, name: str) -> None:
        self._redialling = Redialling(address, name)
        super().__init__(self._redialling)

    def close(self) -> None:
        """Hang up."""
        self._redialling.close()


class ProxyDiffer(RemoteApplier):
    """The Diff service at ``address``, of the plugin ``name`` and for one namespace."""

    def __init__(self, address: str, name: str, scope: Scope) -> None:
        self._redialling = Redialling(address, name, scope.namespace)
        super().__init__(self._redialling)

    def close(self) -> None:
        """Hang up."""
        self._redialling.close()
