"""Connecting where many do."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from kontti.runtime import unix
from tests.support.shims import short_folder


def full(path: Path) -> tuple[socket.socket, list[socket.socket]]:
    """A listener that has no place for another, and those who wait to be accepted."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(0)
    waiting = []
    while True:
        peer = socket.socket(socket.AF_UNIX)
        peer.setblocking(False)
        try:
            peer.connect(str(path))
        except BlockingIOError:
            peer.close()
            return listener, waiting
        waiting.append(peer)


def test_a_place_in_a_full_queue_is_waited_for() -> None:
    async def scene(path: Path) -> None:
        listener, waiting = full(path)
        connecting = asyncio.create_task(unix.connect(str(path)))
        await asyncio.sleep(0.05)
        assert not connecting.done()
        accepted = [listener.accept()[0] for _ in waiting]
        _, writer = await connecting
        writer.write(b"hello")
        last, _ = listener.accept()
        assert await asyncio.to_thread(last.recv, 5) == b"hello"
        writer.close()
        for each in (listener, last, *waiting, *accepted):
            each.close()

    with short_folder() as folder:
        asyncio.run(scene(folder / "s"))


def test_who_gives_up_leaves_nothing_open() -> None:
    async def scene(path: Path) -> None:
        listener, waiting = full(path)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await unix.connect(str(path))
        for each in (listener, *waiting):
            each.close()

    with short_folder() as folder:
        asyncio.run(scene(folder / "s"))
