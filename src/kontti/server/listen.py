"""The gRPC listener on a unix socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable

import grpc
import grpc.aio

from kontti.errors import FailedPrecondition, InvalidArgument

STOP_SECONDS = 2.0
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
        handlers: Iterable[grpc.GenericRpcHandler],
        *,
        max_receive: int = 16 << 20,
        max_send: int = 16 << 20,
    ) -> None:
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", max_receive),
                ("grpc.max_send_message_length", max_send),
                # a client that pings to see whether we live is not an attacker
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                ("grpc.so_reuseport", 0),
            )
        )
        self._server.add_generic_rpc_handlers(tuple(handlers))
        self._address = ""

    async def start(self, address: str, uid: int, gid: int) -> None:
        """Bind and serve."""
        prepare_socket(address)
        before = os.umask(0o117)
        try:
            self._server.add_insecure_port(f"unix:{address}")
        finally:
            os.umask(before)
        os.chown(address, uid, gid)
        self._address = address
        await self._server.start()

    async def stop(self) -> None:
        """Refuse new calls, give those under way a moment, and take the socket away."""
        await self._server.stop(STOP_SECONDS)
        await asyncio.sleep(0)
        if self._address and os.path.exists(self._address):
            os.unlink(self._address)
