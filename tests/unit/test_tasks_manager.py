"""The task manager over a shim that lives in the test: slow, silent, lying or dead when told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kontti.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from kontti.tasks.base import CreateOptions, Status
from tests.support.shims import SCOPE, World, container, install_binary, short_folder, world

NOTHING = CreateOptions()


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def play(
    folder: Path, scene: Callable[[World], Awaitable[None]], *ids: str, patience: float = 10.0
) -> None:
    """Run ``scene`` with a manager of containers ``ids``."""

    async def main() -> None:
        names = ids or ("one",)
        async with asyncio.timeout(60), world(folder, *names, patience=patience) as here:
            await scene(here)

    asyncio.run(main())


def test_a_task_from_create_to_delete(folder: Path) -> None:
    async def scene(here: World) -> None:
        tasks = here.tasks
        assert await tasks.create(SCOPE, "one", NOTHING) == 4242
        assert here.bundles() == ["one", "one"]
        assert await tasks.start(SCOPE, "one") == 4242
        (process,) = await tasks.list(SCOPE)
        assert (process.container_id, process.status) == ("one", Status.RUNNING)
        with pytest.raises(FailedPrecondition) as caught:
            await tasks.delete(SCOPE, "one")
        assert caught.value.message == (
            "task must be stopped before deletion: running: failed precondition"
        )
        waiting = asyncio.create_task(tasks.wait(SCOPE, "one"))
        await tasks.kill(SCOPE, "one", 9)
        assert (await waiting).status == 137
        ended = await tasks.delete(SCOPE, "one")
        assert (ended.id, ended.pid, ended.status) == ("one", 4242, 137)
        assert here.shim.shut_down.is_set()
        assert here.bundles() == []
        with pytest.raises(NotFound, match="task one not found: not found"):
            await tasks.get(SCOPE, "one")

    play(folder, scene)


def test_what_cannot_be_created(folder: Path) -> None:
    async def scene(here: World) -> None:
        here.records.by_id["empty"] = replace(container("empty"), spec=None)
        here.records.by_id["odd"] = container("odd", "nope")
        with pytest.raises(NotFound, match='container "x" in namespace "default": not found'):
            await here.tasks.create(SCOPE, "x", NOTHING)
        with pytest.raises(InvalidArgument, match="has no spec"):
            await here.tasks.create(SCOPE, "empty", NOTHING)
        with pytest.raises(Error, match="failed to start shim: failed to resolve runtime path: "):
            await here.tasks.create(SCOPE, "odd", NOTHING)
        await here.tasks.create(SCOPE, "one", NOTHING)
        with pytest.raises(AlreadyExists, match="task one: already exists"):
            await here.tasks.create(SCOPE, "one", NOTHING)
        assert here.bundles() == ["one", "one"]

    play(folder, scene)


def test_one_of_many_creations_of_one_name_wins(folder: Path) -> None:
    async def scene(here: World) -> None:
        calls = [here.tasks.create(SCOPE, "one", NOTHING) for _ in range(5)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(type(r).__name__ for r in results) == ["AlreadyExists"] * 4 + ["int"]

    play(folder, scene)


def test_a_failed_create_leaves_nothing_and_keeps_its_class(folder: Path) -> None:
    async def scene(here: World) -> None:
        here.shim.failing["Create"] = InvalidArgument("bad spec")
        with pytest.raises(
            InvalidArgument, match="failed to create shim task: bad spec: invalid argument"
        ):
            await here.tasks.create(SCOPE, "one", NOTHING)
        assert here.shim.shut_down.is_set()
        assert here.bundles() == []
        assert here.published.topics() == []
        del here.shim.failing["Create"]
        await here.tasks.create(SCOPE, "one", NOTHING)

    play(folder, scene)


def test_a_start_that_fails_leaves_nothing(folder: Path) -> None:
    async def scene(here: World) -> None:
        (here.folder / "start.out").write_text("out of luck")
        (here.folder / "start.code").write_text("1")
        text = "failed to start shim: start failed: out of luck: exit status 1"
        with pytest.raises(Error, match=text):
            await here.tasks.create(SCOPE, "one", NOTHING)
        assert here.bundles() == []

    play(folder, scene)


@pytest.mark.parametrize("printed", ["", "unix:///nowhere/at/all", "{}", "unix:///dev/null"])
def test_a_shim_that_cannot_be_reached_is_deleted_by_its_binary(folder: Path, printed: str) -> None:
    async def scene(here: World) -> None:
        (here.folder / "start.out").write_text(printed)
        with pytest.raises(Error, match="failed to start shim: "):
            await here.tasks.create(SCOPE, "one", NOTHING)
        assert here.bundles() == []
        if printed.startswith("unix://"):
            assert (here.folder / "delete.args").exists()

    play(folder, scene)


def test_garbage_from_create_takes_the_container_back(folder: Path) -> None:
    async def scene(here: World) -> None:
        here.shim.garbage.add("Create")
        with pytest.raises(Internal, match="failed to create shim task: "):
            await here.tasks.create(SCOPE, "one", NOTHING)
        assert here.shim.states == {}
        assert here.bundles() == []

    play(folder, scene)


def test_a_shim_that_dies_in_create_leaves_nothing(folder: Path) -> None:
    async def scene(here: World) -> None:
        here.shim.silent.add("Create")
        creating = asyncio.create_task(here.tasks.create(SCOPE, "one", NOTHING))
        await here.shim.called("Create")
        await here.shim.die()
        with pytest.raises(Unavailable, match="failed to create shim task: "):
            await creating
        assert here.bundles() == []
        # it never was a task, so nothing is said of its end
        assert here.published.topics() == []

    play(folder, scene)


def test_a_caller_who_goes_away_gets_no_task(folder: Path) -> None:
    async def scene(here: World) -> None:
        here.shim.held["Create"] = asyncio.Event()
        creating = asyncio.create_task(here.tasks.create(SCOPE, "one", NOTHING))
        await here.shim.called("Create")
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        here.shim.held["Create"].set()
        await here.shim.shut_down.wait()
        await here.empty()
        assert here.bundles() == []
        assert here.shim.states == {}
        await here.tasks.create(SCOPE, "one", NOTHING)

    play(folder, scene)


def test_a_caller_who_goes_away_during_delete_leaves_it_done(folder: Path) -> None:
    async def scene(here: World) -> None:
        here.shim.held["Delete"] = asyncio.Event()
        await here.tasks.create(SCOPE, "one", NOTHING)
        deleting = asyncio.create_task(here.tasks.delete(SCOPE, "one"))
        await here.shim.called("Delete")
        deleting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deleting
        here.shim.held["Delete"].set()
        await here.empty()
        assert here.bundles() == []
        await here.tasks.create(SCOPE, "one", NOTHING)

    play(folder, scene)


def test_two_who_delete_at_once(folder: Path) -> None:
    async def scene(here: World) -> None:
        await here.tasks.create(SCOPE, "one", NOTHING)
        calls = [here.tasks.delete(SCOPE, "one") for _ in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(type(r).__name__ for r in results) == ["Exit", "NotFound", "NotFound"]
        assert here.bundles() == []

    play(folder, scene)


def test_a_silent_shim_does_not_stop_the_list(folder: Path) -> None:
    async def scene(here: World) -> None:
        for id in ("one", "two"):
            await here.tasks.create(SCOPE, id, NOTHING)
        here.shim.silent.add("State")
        with pytest.raises(DeadlineExceeded):
            await here.tasks.get(SCOPE, "one")
        found = await here.tasks.list(SCOPE)
        assert [(p.container_id, p.status) for p in found] == [
            ("one", Status.UNKNOWN),
            ("two", Status.UNKNOWN),
        ]
        here.shim.silent.clear()
        assert [p.status for p in await here.tasks.list(SCOPE)] == [Status.CREATED] * 2

    play(folder, scene, "one", "two", patience=0.5)


def test_metrics_are_of_those_asked_for(folder: Path) -> None:
    async def scene(here: World) -> None:
        for id in ("one", "two"):
            await here.tasks.create(SCOPE, id, NOTHING)
        assert [m.id for m in await here.tasks.metrics(SCOPE)] == ["one", "two"]
        (metric,) = await here.tasks.metrics(SCOPE, ["id==two"])
        assert metric.data.value == b"two"
        assert await here.tasks.metrics(SCOPE, ["id==three"]) == []
        with pytest.raises(InvalidArgument):
            await here.tasks.metrics(SCOPE, ["id=="])
        here.shim.failing["Stats"] = NotFound("cgroup does not exist")
        assert await here.tasks.metrics(SCOPE) == []

    play(folder, scene, "one", "two")


def test_a_shim_that_dies_is_cleaned_up_after_and_spoken_for(folder: Path) -> None:
    async def scene(here: World) -> None:
        await here.tasks.create(SCOPE, "one", NOTHING)
        await here.tasks.start(SCOPE, "one")
        waiting = asyncio.create_task(here.tasks.wait(SCOPE, "one"))
        await here.shim.called("Wait")
        await here.shim.die()
        ended = await waiting
        assert (ended.status, ended.pid, ended.exited_at) == (137, 4242, 7 * 10**9)
        assert here.published.topics() == ["/tasks/exit", "/tasks/delete"]
        assert here.bundles() == []
        assert (here.folder / "delete.args").exists()
        with pytest.raises(NotFound):
            await here.tasks.kill(SCOPE, "one", 9)

    play(folder, scene)


def test_a_binary_that_cannot_clean_up_does_not_keep_the_task(folder: Path) -> None:
    async def scene(here: World) -> None:
        (here.folder / "delete.code").write_text("1")
        await here.tasks.create(SCOPE, "one", NOTHING)
        waiting = asyncio.create_task(here.tasks.wait(SCOPE, "one"))
        await here.shim.called("Wait")
        await here.shim.die()
        assert (await waiting).status == 137
        assert here.bundles() == []
        await here.shim.serve()
        here.shim.states.clear()
        await here.tasks.create(SCOPE, "one", NOTHING)

    play(folder, scene)


def test_a_new_manager_takes_running_tasks_over(folder: Path) -> None:
    async def scene(here: World) -> None:
        await here.tasks.create(SCOPE, "one", NOTHING)
        await here.tasks.start(SCOPE, "one")
        tasks = await here.again()
        # asked at once, before its shim has answered
        assert (await tasks.get(SCOPE, "one")).status is Status.RUNNING
        waiting = asyncio.create_task(tasks.wait(SCOPE, "one"))
        await tasks.kill(SCOPE, "one", 9)
        assert (await waiting).status == 137
        await tasks.delete(SCOPE, "one")
        assert here.bundles() == []

    play(folder, scene)


def test_who_waits_when_the_daemon_stops_is_not_told_of_an_exit(folder: Path) -> None:
    async def scene(here: World) -> None:
        await here.tasks.create(SCOPE, "one", NOTHING)
        waiting = asyncio.create_task(here.tasks.wait(SCOPE, "one"))
        await here.shim.called("Wait")
        await here.again()
        with pytest.raises(Unavailable):
            await waiting
        assert here.published.topics() == []

    play(folder, scene)


def test_what_died_while_no_manager_looked_is_cleaned_up(folder: Path) -> None:
    async def scene(here: World) -> None:
        await here.tasks.create(SCOPE, "one", NOTHING)
        await here.tasks.close()
        await here.shim.die()
        tasks = await here.again()
        await tasks.loaded()
        assert await tasks.list(SCOPE) == []
        assert here.bundles() == []
        assert here.published.topics() == ["/tasks/exit", "/tasks/delete"]

    play(folder, scene)


def test_a_shim_that_knows_nothing_of_the_task_is_ended_quietly(folder: Path) -> None:
    async def scene(here: World) -> None:
        await here.tasks.create(SCOPE, "one", NOTHING)
        here.shim.states.clear()
        tasks = await here.again()
        await tasks.loaded()
        assert here.shim.shut_down.is_set()
        assert here.bundles() == []
        assert here.published.topics() == []

    play(folder, scene)


def test_a_silent_shim_neither_holds_up_a_start_nor_loses_its_container(folder: Path) -> None:
    async def scene(here: World) -> None:
        for id in ("one", "two"):
            await here.tasks.create(SCOPE, id, NOTHING)
        here.shim.silent.add("State")
        tasks = await here.again()
        (first, second) = await tasks.list(SCOPE)
        assert (first.status, second.status) == (Status.UNKNOWN, Status.UNKNOWN)
        with pytest.raises(Unavailable, match="shim of task one does not answer"):
            await tasks.kill(SCOPE, "one", 9)
        with pytest.raises(AlreadyExists):
            await tasks.create(SCOPE, "one", NOTHING)
        here.shim.silent.clear()
        await tasks.loaded()
        assert [p.status for p in await tasks.list(SCOPE)] == [Status.CREATED] * 2
        assert "Kill" not in here.shim.calls
        assert here.published.topics() == []

    play(folder, scene, "one", "two", patience=0.5)


def test_a_half_made_bundle_is_cleared_away_at_the_start(folder: Path) -> None:
    async def scene(here: World) -> None:
        here.tasks.shims.bundles.create("default", "one", b"{}").write_binary(
            str(here.folder / "containerd-shim-fake-v1")
        )
        tasks = await here.again()
        await tasks.loaded()
        assert here.bundles() == []

    play(folder, scene)


def test_a_bundle_that_was_left_does_not_stop_a_new_task(folder: Path) -> None:
    async def scene(here: World) -> None:
        here.tasks.shims.bundles.create("default", "one", b"{}").write_binary(
            str(here.folder / "containerd-shim-fake-v1")
        )
        await here.tasks.create(SCOPE, "one", NOTHING)
        assert (await here.tasks.get(SCOPE, "one")).status is Status.CREATED

    play(folder, scene)


def test_a_shim_that_will_not_shut_down_does_not_keep_delete_waiting(folder: Path) -> None:
    async def scene(here: World) -> None:
        here.shim.silent.add("Shutdown")
        await here.tasks.create(SCOPE, "one", NOTHING)
        await here.tasks.delete(SCOPE, "one")
        assert here.bundles() == []

    play(folder, scene, patience=0.5)


def test_tasks_that_share_a_shim_end_it_with_the_last(folder: Path) -> None:
    async def scene(here: World) -> None:
        for id in ("one", "two"):
            await here.tasks.create(SCOPE, id, NOTHING)
        await here.tasks.delete(SCOPE, "one")
        assert "Shutdown" not in here.shim.calls
        assert (await here.tasks.get(SCOPE, "two")).status is Status.CREATED
        await here.tasks.delete(SCOPE, "two")
        assert here.shim.shut_down.is_set()

    play(folder, scene, "one", "two")


def test_version_3_of_the_service_is_spoken_where_the_shim_says_so(folder: Path) -> None:
    async def scene(here: World) -> None:
        await here.shim.die()
        here.shim.version = 3
        await here.shim.serve()
        text = f'{{"version": 3, "address": "{here.shim.address}", "protocol": "ttrpc"}}'
        (here.folder / "start.out").write_text(text)
        assert await here.tasks.create(SCOPE, "one", NOTHING) == 4242
        tasks = await here.again()
        assert (await tasks.get(SCOPE, "one")).status is Status.CREATED

    play(folder, scene)


def test_a_runtime_path_takes_the_place_of_the_name(folder: Path) -> None:
    async def scene(here: World) -> None:
        here.records.by_id["one"] = container("one", "io.containerd.runc.v2")
        binary = install_binary(here.folder, "another")
        (here.folder / "start.out").write_text(here.shim.address)
        await here.tasks.create(SCOPE, "one", CreateOptions(runtime_path=str(binary)))
        assert here.shim.states == {"one": Status.CREATED}

    play(folder, scene)
