"""Connecting to unix sockets with asyncio."""

from __future__ import annotations

import asyncio
import socket

RETRY_SECONDS = 0.005


async def connect(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, however long whoever listens has no place for another; the caller bounds that.

    Raises OSError, ValueError.
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        peer.setblocking(False)
        # asyncio takes EAGAIN for "under way"; of a unix socket it means that the queue is full,
        # and that nothing was begun (connect(2), ERRORS)
        while not _connected(peer, path):  # noqa: ASYNC110 the kernel tells nobody
            await asyncio.sleep(RETRY_SECONDS)
        return await asyncio.open_unix_connection(sock=peer)
    except BaseException:
        peer.close()
        raise


def _connected(peer: socket.socket, path: str) -> bool:
    try:
        peer.connect(path)
    except BlockingIOError:
        return False
    return True
