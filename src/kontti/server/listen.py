"""The gRPC listener on a unix socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping

from kontti.errors import FailedPrecondition, InvalidArgument
from kontti.server.connection import Connection, Service
from kontti.services.rpc import Method
from kontti.wire.grpc_server import MAX_MESSAGE

STOP_SECONDS = 2.0
BACKLOG = 4096  # Go's clients do not try again where the queue is full
MAX_PATH = 107  # sun_path holds 108 bytes, the last one zero


def prepare_socket(address: str) -> None:
    """Make the socket's directory; take away a socket that nobody listens on any more.

    Raises FailedPrecondition where somebody does, InvalidArgument for a path that is too long.
    """
    if len(os.fsencode(address)) > MAX_PATH:
        raise InvalidArgument(f"socket path {address!r} is longer than {MAX_PATH} bytes")
    os.makedirs(os.path.dirname(address), mode=0o711, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(address)
            return
        except (TimeoutError, BlockingIOError):
            pass  # somebody listens, and is busy
    raise FailedPrecondition(f"{address} is in use by another daemon")


class GrpcListener:
    """A gRPC server on ``address``, owned by uid and gid, mode 0660."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        max_receive: int = MAX_MESSAGE,
        max_send: int = MAX_MESSAGE,
    ) -> None:
        self._service = Service(methods, max_receive, max_send)
        self._server: asyncio.Server | None = None
        self._address = ""

    async def start(self, address: str, uid: int, gid: int) -> None:
        """Bind and serve."""
        prepare_socket(address)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(address)
            self._address = address
            # nobody can connect before listen(2), so there is no moment with other rights
            os.chmod(address, 0o660)
            os.chown(address, uid, gid)
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(
                lambda: Connection(self._service), sock=listener, backlog=BACKLOG
            )
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        """Refuse new calls, give those under way a moment, and take the socket away."""
        if self._server is not None:
            self._server.close()
        connections = self._service.connections
        for connection in list(connections):
            connection.go_away()
        await self._calls_end()
        for connection in list(connections):
            connection.hang_up()
        await self._calls_end()
        if self._address and os.path.exists(self._address):
            os.unlink(self._address)

    async def _calls_end(self) -> None:
        """Wait a moment for the calls under way."""
        if self._service.tasks:
            await asyncio.wait(list(self._service.tasks), timeout=STOP_SECONDS)
