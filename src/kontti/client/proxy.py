"""Plugins that another process is: its services, at a socket that may come and go.

Nothing is dialled before it is needed, and again after it was lost, so that a daemon starts without
its proxies and outlives them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from kontti.client.base import M
from kontti.client.client import FOREVER, HINT, LATE, Client, Duplex
from kontti.client.content import RemoteContent
from kontti.client.stores import RemoteApplier, RemoteSnapshotter
from kontti.errors import DeadlineExceeded, NotFound, Unavailable, Unimplemented
from kontti.namespaces import DEFAULT, Scope
from kontti.snapshots.base import Info
from kontti.wire.protobuf import Message

CONNECT_SECONDS = 5.0
CALL_SECONDS = 120.0
"""The deadline of one call: a snapshotter may fetch before it answers."""
LIST_SECONDS = 30.0
"""That of a list of snapshots, which needs nothing from elsewhere."""


class Redialling:
    """The calls of a client, on a connection that is made anew when it was lost."""

    def __init__(
        self, address: str, namespace: str = DEFAULT, stream_seconds: float = CALL_SECONDS
    ) -> None:
        self._address = address
        self._namespace = namespace
        self._stream_seconds = stream_seconds
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
        seconds = CALL_SECONDS if timeout is None else timeout
        with self._named():
            client = self._connected()
            return client.unary(method, request, response, timeout=seconds, namespace=namespace)

    def stream(
        self, method: str, request: Message, response: type[M], *, timeout: float = FOREVER
    ) -> Iterator[M]:
        """As Client.stream."""
        seconds = min(timeout, self._stream_seconds)
        with self._named():
            yield from self._connected().stream(method, request, response, timeout=seconds)

    def duplex(self, method: str) -> Duplex:
        """As Client.duplex."""
        return self._connected().duplex(method)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Has errors of the connection say that it is not the daemon's own."""
        try:
            yield
        except DeadlineExceeded as error:
            if not error.message.startswith(LATE):
                raise
            late = f'proxy plugin at "{self._address}" did not answer in time'
            raise DeadlineExceeded(late) from error

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
            return Client(self._address, namespace=self._namespace, connect_timeout=CONNECT_SECONDS)
        except Unavailable as error:
            raise Unavailable(f"proxy plugin: {error.message.replace(HINT, '')}") from error

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


class ProxySnapshotter(RemoteSnapshotter):
    """The Snapshots service at ``address``, asked for the snapshotter ``name``."""

    def __init__(self, address: str, name: str) -> None:
        self._redialling = Redialling(address, stream_seconds=LIST_SECONDS)
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
    """The Content service at ``address``."""

    def __init__(self, address: str) -> None:
        self._redialling = Redialling(address)
        super().__init__(self._redialling)

    def close(self) -> None:
        """Hang up."""
        self._redialling.close()


class ProxyDiffer(RemoteApplier):
    """The Diff service at ``address``, for one namespace."""

    def __init__(self, address: str, scope: Scope) -> None:
        self._redialling = Redialling(address, scope.namespace)
        super().__init__(self._redialling)

    def close(self) -> None:
        """Hang up."""
        self._redialling.close()
