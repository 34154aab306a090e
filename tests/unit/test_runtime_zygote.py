"""The zygote as the daemon keeps it, with the real one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kontti.errors import Error, NotFound
from kontti.runtime import zygote as subject
from kontti.runtime.bundle import Bundle, Bundles
from kontti.runtime.shim import Shim
from kontti.runtime.zygote import ShimSettings, Zygote
from tests.support.shims import short_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@asynccontextmanager
async def shim_of(zygote: Zygote, bundle: Bundle) -> AsyncIterator[Shim]:
    """A shim forked from it, connected to; shut down at the end."""
    bootstrap = zygote.bootstrap(bundle, "")
    pid = await zygote.shim(bundle, bootstrap)
    shim = await Shim.connect(bootstrap, bundle.namespace, own=True)
    try:
        yield shim
    finally:
        await shim.shutdown(bundle.id, 5)
        await shim.close()
        await gone(pid)


async def gone(pid: int) -> None:
    """Until a process has ended."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            assert (await asyncio.to_thread(select.select, [handle], [], [], 20))[0]
        finally:
            os.close(handle)


def play(folder: Path, scene: Callable[[Zygote, Bundle], Awaitable[None]]) -> None:
    async def main() -> None:
        settings = ShimSettings(str(folder / "s"), "")
        zygote = Zygote(settings, str(folder / "zygote.sock"))
        bundle = Bundles(str(folder / "r"), str(folder / "b")).create("ns", "one", b"{}")
        try:
            async with asyncio.timeout(60):
                await scene(zygote, bundle)
        finally:
            await asyncio.to_thread(zygote.close)
        assert not (folder / "zygote.sock").exists()

    asyncio.run(main())


def test_a_shim_answers_and_outlives_the_zygote(folder: Path) -> None:
    async def scene(zygote: Zygote, bundle: Bundle) -> None:
        async with shim_of(zygote, bundle) as shim:
            pid = zygote.pid
            await asyncio.to_thread(zygote.close)
            await gone(pid)
            with pytest.raises(NotFound):
                await shim.state("one", "", 5)
        assert list((folder / "s").iterdir()) == []

    play(folder, scene)


def test_one_that_dies_is_started_again(folder: Path) -> None:
    async def scene(zygote: Zygote, bundle: Bundle) -> None:
        await zygote.start()
        first = zygote.pid
        os.kill(first, signal.SIGKILL)
        await gone(first)
        async with shim_of(zygote, bundle):
            assert zygote.pid not in (0, first)

    play(folder, scene)


def test_one_that_lost_its_socket_is_replaced(folder: Path) -> None:
    async def scene(zygote: Zygote, bundle: Bundle) -> None:
        await zygote.start()
        first = zygote.pid
        (folder / "zygote.sock").unlink()
        async with shim_of(zygote, bundle):
            assert zygote.pid != first

    play(folder, scene)


def test_it_is_started_once_for_many(folder: Path) -> None:
    async def scene(zygote: Zygote, bundle: Bundle) -> None:
        await asyncio.gather(*(zygote.start() for _ in range(5)))
        first = zygote.pid
        async with shim_of(zygote, bundle):
            assert zygote.pid == first

    play(folder, scene)


def test_a_shim_that_cannot_be_is_an_error(folder: Path) -> None:
    async def scene(zygote: Zygote, bundle: Bundle) -> None:
        bundle.delete()
        with pytest.raises(Error, match="No such file"):
            await zygote.shim(bundle, zygote.bootstrap(bundle, ""))

    play(folder, scene)


def test_one_that_ends_at_once_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_ZYGOTE", "sys.exit(1)")

    async def scene(zygote: Zygote, _bundle: Bundle) -> None:
        with pytest.raises(Error, match="zygote did not start: unavailable"):
            await zygote.start()
        assert zygote.pid == 0

    play(folder, scene)


def test_addresses_tell_daemons_namespaces_and_groups_apart(folder: Path) -> None:
    def paths(address: str) -> set[str]:
        zygote = Zygote(ShimSettings("/run/s", address), str(folder / "z"))
        return {zygote.socket_path(ns, id) for ns in ("a", "b") for id in ("1", "../2")}

    found = paths("/run/one.sock") | paths("/run/two.sock")
    assert len(found) == 8
    assert all(os.path.dirname(path) == "/run/s" and len(path) < 108 for path in found)
