"""When collections happen: the schedule on a clock of the test's, and the thread that keeps it."""

from __future__ import annotations

import threading

import pytest

from kontti.errors import Error, Internal, Unavailable
from kontti.metadata.base import Collected
from kontti.metadata.scheduler import Policy, Schedule, Scheduler

QUIET = Policy(startup_delay=0.0)


def settled(policy: Policy = QUIET, seconds: float = 0.02) -> Schedule:
    """A schedule after one collection that ended at time 0."""
    schedule = Schedule(policy, -1.0)
    schedule.ask(-1.0)
    schedule.began()
    schedule.ended(0.0, seconds)
    return schedule


def test_first_collection_comes_after_the_startup_delay() -> None:
    schedule = Schedule(Policy(startup_delay=0.1), 5.0)
    assert schedule.delay(5.0) == pytest.approx(0.1)
    assert schedule.delay(5.2) == 0
    assert Schedule(QUIET, 5.0).delay(5.2) is None


def test_pause_keeps_collections_to_their_share() -> None:
    assert settled(seconds=0.02).delay(0.0) == pytest.approx(0.98)
    # very short ones still are that far apart
    assert settled(seconds=0.0).delay(0.0) == pytest.approx(0.245)
    assert settled(Policy(pause_threshold=0.0)).delay(0.0) == 1.0


def test_one_deletion_is_collected_after_the_pause() -> None:
    schedule = settled()
    schedule.mutated(0.1, True)
    assert schedule.delay(0.5) == pytest.approx(0.48)
    assert schedule.delay(1.0) == 0
    late = settled()
    assert late.delay(1.0) is None
    assert late.mutated(2.0, True)
    assert late.delay(2.0) == 0


def test_mutations_alone_are_collected_when_they_are_many() -> None:
    schedule = settled(Policy(mutation_threshold=3))
    assert schedule.delay(1.0) is None
    assert not schedule.mutated(2.0, False)
    assert not schedule.mutated(2.0, False)
    assert schedule.delay(2.0) is None
    assert schedule.mutated(2.0, False)
    assert schedule.delay(2.0) == 0


def test_deletion_threshold_does_not_wait_for_the_pause() -> None:
    schedule = settled(Policy(deletion_threshold=2, schedule_delay=0.25))
    assert not schedule.mutated(0.0, True)
    assert schedule.mutated(0.0, True)
    assert schedule.delay(0.0) == pytest.approx(0.25)


def test_request_does_not_wait_for_the_pause() -> None:
    schedule = settled()
    assert schedule.ask(0.1)
    assert schedule.delay(0.1) == 0
    schedule.began()
    schedule.ask(0.2)
    schedule.ended(0.3, 0.02)
    assert schedule.delay(0.3) == 0


def test_failure_is_tried_again_after_the_pause() -> None:
    schedule = settled()
    schedule.began()
    schedule.ended(0.0, 0.02, failed=True)
    assert schedule.delay(0.0) == pytest.approx(0.98)
    assert schedule.delay(1.0) == 0


def test_waiter_gets_a_collection_that_began_after_it_asked() -> None:
    begun = threading.Semaphore(0)
    go = threading.Semaphore(0)
    count = 0

    def collect() -> Collected:
        nonlocal count
        count += 1
        number = count
        begun.release()
        assert go.acquire(timeout=30)
        return Collected(blobs=number)

    scheduler = Scheduler(collect, QUIET)
    scheduler.start()
    results: list[int] = []
    first = threading.Thread(target=lambda: results.append(scheduler.collect_and_wait().blobs))
    first.start()
    assert begun.acquire(timeout=30)
    second = threading.Thread(target=lambda: results.append(scheduler.collect_and_wait().blobs))
    second.start()
    go.release()
    first.join(30)
    go.release()
    second.join(30)
    scheduler.stop()
    assert results == [1, 2]


def test_changes_lead_to_a_collection() -> None:
    collected = threading.Event()

    def collect() -> Collected:
        collected.set()
        return Collected()

    scheduler = Scheduler(collect, QUIET)
    scheduler.start()
    scheduler.mutated(True)
    assert collected.wait(30)
    scheduler.stop()


@pytest.mark.parametrize("error", [Internal("broken"), ValueError("bug")])
def test_failure_is_told_and_does_not_end_the_thread(error: Exception) -> None:
    outcomes: list[Exception | None] = [error, None]

    def collect() -> Collected:
        outcome = outcomes.pop(0) if outcomes else None
        if outcome is not None:
            raise outcome
        return Collected(blobs=7)

    scheduler = Scheduler(collect, QUIET)
    scheduler.start()
    with pytest.raises(Error):
        scheduler.collect_and_wait()
    assert scheduler.collect_and_wait().blobs == 7
    scheduler.stop()
    with pytest.raises(Unavailable):
        scheduler.collect_and_wait()
