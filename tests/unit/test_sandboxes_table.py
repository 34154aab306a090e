"""The table of sandboxes: one of each name, phases in their order, and who waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import product

import pytest

from kontti.errors import AlreadyExists, NotFound, Unavailable
from kontti.runtime.bundle import Bundle
from kontti.sandboxes.base import Ended
from kontti.sandboxes.table import TRANSITIONS, Phase, SandboxTable

BUNDLE = Bundle("ns", "pod", "/state/pod", "/work/pod")


def run(work: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await work

    asyncio.run(bounded())


@pytest.mark.parametrize(("here", "there"), list(product(Phase, Phase)))
def test_no_phase_but_the_next(here: Phase, there: Phase) -> None:
    table = SandboxTable()
    entry = table.claim(BUNDLE, Phase.CREATING)
    entry.phase = here
    if there in TRANSITIONS[here]:
        table.go(entry, there)
        assert entry.phase is there
        assert list(table) == ([] if there is Phase.GONE else [entry])
    else:
        with pytest.raises(ValueError, match="sandbox pod goes from"):
            table.go(entry, there)
        assert entry.phase is here


def test_a_name_is_taken_until_its_sandbox_is_dead() -> None:
    table = SandboxTable()
    first = table.claim(BUNDLE, Phase.CREATING)
    for phase in (Phase.READY, Phase.ENDING, Phase.DEAD):
        with pytest.raises(AlreadyExists, match="sandbox pod already running: already exists"):
            table.claim(BUNDLE, Phase.CREATING)
        table.go(first, phase)
    second = table.claim(BUNDLE, Phase.CREATING)
    assert list(table) == [second]
    assert first.phase is Phase.GONE


def test_one_that_is_being_made_is_not_there() -> None:
    async def look() -> None:
        table = SandboxTable()
        with pytest.raises(NotFound):
            await table.find("ns", "pod", 0.01)
        entry = table.claim(BUNDLE, Phase.CREATING)
        with pytest.raises(NotFound):
            await table.find("ns", "pod", 0.01)
        table.go(entry, Phase.READY)
        assert await table.find("ns", "pod", 0.01) is entry
        with pytest.raises(NotFound):
            await table.find("other", "pod", 0.01)

    run(look())


def test_one_that_is_not_settled_is_waited_for() -> None:
    async def look() -> None:
        table = SandboxTable()
        entry = table.claim(BUNDLE, Phase.LOADING)
        with pytest.raises(Unavailable, match="shim of sandbox pod does not answer"):
            await table.find("ns", "pod", 0.01)
        waiting = asyncio.create_task(table.find("ns", "pod", 5))
        await asyncio.sleep(0)
        table.go(entry, Phase.READY)
        assert await waiting is entry
        table.go(entry, Phase.ENDING)
        ending = asyncio.create_task(table.find("ns", "pod", 5))
        await asyncio.sleep(0)
        assert table.dead("ns", "pod") is None
        entry.ended = Ended(137, 1)
        table.go(entry, Phase.DEAD)
        assert await ending is entry
        assert table.dead("ns", "pod") == Ended(137, 1)
        gone = asyncio.create_task(table.find("ns", "pod", 5))
        table.go(entry, Phase.GONE)
        with pytest.raises(NotFound):
            await gone

    run(look())
