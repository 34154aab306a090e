"""The table of tasks: who sees what, when."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import AlreadyExists, NotFound, Unavailable
from kontti.runtime.bundle import Bundle
from kontti.tasks import convert
from kontti.tasks.table import TRANSITIONS, Phase, TaskTable

BUNDLE = Bundle("ns", "one", "/nowhere", "/nowhere")


def test_one_that_is_being_created_is_not_there_yet_and_its_name_is_taken() -> None:
    async def main() -> None:
        table = TaskTable()
        task = table.claim(BUNDLE, Phase.CREATING)
        assert table.visible("ns") == []
        with pytest.raises(NotFound, match="task one not found: not found"):
            await table.ready("ns", "one", 1)
        with pytest.raises(AlreadyExists, match="task one: already exists"):
            table.claim(BUNDLE, Phase.CREATING)
        table.go(task, Phase.GONE)
        table.claim(BUNDLE, Phase.CREATING)

    asyncio.run(main())


def test_callers_wait_for_one_that_is_loading_and_not_for_ever() -> None:
    async def main() -> None:
        table = TaskTable()
        task = table.claim(BUNDLE, Phase.LOADING)
        assert [found.bundle.id for found in table.visible("ns")] == ["one"]
        assert table.visible("other") == []
        with pytest.raises(Unavailable):
            await table.ready("ns", "one", 0.01)
        waiting = asyncio.create_task(table.ready("ns", "one", 10))
        await asyncio.sleep(0)
        table.go(task, Phase.ENDING)
        table.go(task, Phase.GONE)
        with pytest.raises(NotFound):
            await waiting

    asyncio.run(main())


@given(st.lists(st.sampled_from(list(Phase)), max_size=6))
def test_phases_follow_the_table_and_nothing_comes_back(way: list[Phase]) -> None:
    async def main() -> None:
        table = TaskTable()
        task = table.claim(BUNDLE, Phase.LOADING)
        for phase in way:
            before = task.phase
            if phase in TRANSITIONS[before]:
                table.go(task, phase)
            else:
                with pytest.raises(ValueError, match="goes from"):
                    table.go(task, phase)
                assert task.phase is before
            assert (task in list(table)) == (task.phase is not Phase.GONE)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("spec", "group"),
    [
        (b"{}", ""),
        (b'{"annotations": {"io.containerd.runc.v2.group": "pod"}}', "pod"),
        (b'{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}', "pod"),
        (b'{"process": {"args": ["io.containerd.runc.v2.group"]}}', ""),
        (b'{"annotations": "io.containerd.runc.v2.group"}', ""),
        (b'{"annotations": ["io.containerd.runc.v2.group"]}', ""),
        (b"io.containerd.runc.v2.group", ""),
        (b'["io.containerd.runc.v2.group"]', ""),
        (b"\xff io.containerd.runc.v2.group", ""),
    ],
)
def test_the_group_is_read_from_any_spec(spec: bytes, group: str) -> None:
    assert convert.group(spec) == group
