"""Where a shim listens: ``unix:///path``, or ``vsock://cid:port`` for one in a virtual machine."""

from __future__ import annotations

import asyncio
import socket

from kontti.errors import DeadlineExceeded, InvalidArgument, Unavailable
from kontti.runtime import unix

UNIX, VSOCK = "unix://", "vsock://"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def dial(address: str, timeout: float) -> Streams:
    """Connect.

    Raises Unavailable where nobody listens, DeadlineExceeded after ``timeout`` seconds,
    InvalidArgument for an address of another kind.
    """
    try:
        async with asyncio.timeout(timeout):
            if address.startswith(VSOCK):
                return await _dial_vsock(parse_vsock(address))
            return await unix.connect(address.removeprefix(UNIX))
    except TimeoutError:
        where = address.removeprefix(UNIX)
        raise DeadlineExceeded(f"shim at {where} did not accept in {timeout:.0f} s") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"shim at {address.removeprefix(UNIX)}: {error}") from None


async def _dial_vsock(peer: tuple[int, int]) -> Streams:
    client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        client.setblocking(False)
        # vsock addresses are numbers: there is nothing to resolve, and so nothing to block on
        await asyncio.get_running_loop().sock_connect(client, peer)
        return await asyncio.open_connection(sock=client)
    except BaseException:
        client.close()
        raise


def parse_vsock(address: str) -> tuple[int, int]:
    """Context id and port; raises InvalidArgument."""
    cid, _, port = address.removeprefix(VSOCK).partition(":")
    numbers = [int(text) for text in (cid, port) if text.isascii() and text.isdigit()]
    if len(numbers) != 2 or max(numbers) >= 1 << 32:
        raise InvalidArgument(f"vsock address {address!r:.100}")
    return numbers[0], numbers[1]


def supported(address: str) -> bool:
    """Whether it is an address that ``dial`` takes."""
    return address.startswith((UNIX, VSOCK))
