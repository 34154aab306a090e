"""When to collect: after enough changes, not too often, or now where somebody waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kontti.errors import Error, Unavailable
from kontti.metadata.base import Collected

log = logging.getLogger(__name__)
WAIT_SECONDS = 300.0
MIN_SECONDS = 0.005
DEFAULT_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Policy:
    """io.containerd.gc.v1.scheduler's settings; delays in seconds."""

    pause_threshold: float = 0.02
    deletion_threshold: int = 0
    mutation_threshold: int = 100
    schedule_delay: float = 0.0
    startup_delay: float = 0.1


class Schedule:
    """When the next collection is due. No clock of its own: every method is told the time."""

    def __init__(self, policy: Policy, now: float) -> None:
        self._policy = policy
        self._next = now + policy.startup_delay if policy.startup_delay > 0 else None
        self._mutations = self._deletions = self._collections = 0
        self._seconds = 0.0
        self._asked = False

    def mutated(self, now: float, garbage: bool) -> bool:
        """Count a change; whether it brings a collection nearer."""
        self._mutations += 1
        self._deletions += garbage
        policy = self._policy
        if policy.deletion_threshold and self._deletions >= policy.deletion_threshold:
            return self._bring_forward(now)
        return self._next is None and self._wanted() and self._bring_forward(now)

    def ask(self, now: float) -> bool:
        """Have one whatever was counted; whether that brings it nearer."""
        self._asked = True
        return self._bring_forward(now)

    def _bring_forward(self, now: float) -> bool:
        at = now + self._policy.schedule_delay
        if self._next is not None and self._next <= at:
            return False
        self._next = at
        return True

    def _wanted(self) -> bool:
        policy = self._policy
        few = not policy.mutation_threshold or self._mutations < policy.mutation_threshold
        return self._asked or not few or (self._deletions > 0 and not policy.deletion_threshold)

    def delay(self, now: float) -> float | None:
        """Seconds to wait, 0 where one is due, None where nothing is planned."""
        if self._next is None:
            return None
        if now < self._next:
            return self._next - now
        # the first one looks for what an earlier process left
        if self._wanted() or self._deletions or not self._collections:
            return 0.0
        # the pause is over and nothing happened in it: the next change plans the next one
        self._next = None
        return None

    def began(self) -> None:
        """What changes from here on is for the next one."""
        self._mutations = self._deletions = 0
        self._asked = False

    def ended(self, now: float, seconds: float, *, failed: bool = False) -> None:
        """Pause, so that of all time at most the threshold's share goes into collections.

        What one that failed left is looked for again after the pause.
        """
        self._collections += 1
        self._deletions += failed
        self._seconds += seconds
        mean = max(self._seconds / self._collections, MIN_SECONDS)
        share = self._policy.pause_threshold
        pause = mean / share - mean if share > 0 else DEFAULT_PAUSE
        self._next = now + pause
        if self._asked:
            self._bring_forward(now)


class Scheduler:
    """A thread that collects. ``collect_and_wait`` returns after a collection that began later."""

    def __init__(self, collect: Callable[[], Collected], policy: Policy) -> None:
        self._collect = collect
        self._state = threading.Condition()
        self._schedule = Schedule(policy, time.monotonic())
        self._asked = 0
        self._done = 0
        self._failure: Error | None = None
        self._stopped = False
        self._last = Collected()
        self._thread = threading.Thread(target=self._run, name="gc", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the collection under way, if any."""
        with self._state:
            self._stopped = True
            self._state.notify_all()
        if self._thread.is_alive():
            self._thread.join(WAIT_SECONDS)

    def mutated(self, garbage: bool) -> None:
        """Count a change; ``garbage`` where it may have left something unreferenced."""
        with self._state:
            if self._schedule.mutated(time.monotonic(), garbage):
                self._state.notify_all()

    def collect_and_wait(self) -> Collected:
        """Collect now; raises what the collection raised, Unavailable after five minutes."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._state:
            self._asked += 1
            ticket = self._asked
            self._schedule.ask(time.monotonic())
            self._state.notify_all()
            while self._done < ticket:
                if self._stopped or time.monotonic() >= deadline:
                    raise Unavailable("garbage collection did not end in time")
                self._state.wait(deadline - time.monotonic())
            if self._failure is not None:
                raise self._failure
            return self._last

    def _run(self) -> None:
        while (asked := self._wait()) is not None:
            self._once(asked)

    def _wait(self) -> int | None:
        """Return when a collection is due, with the last request it answers; None to end."""
        with self._state:
            while not self._stopped:
                delay = self._schedule.delay(time.monotonic())
                if delay == 0:
                    self._schedule.began()
                    return self._asked
                self._state.wait(delay)
            return None

    def _once(self, asked: int) -> None:
        started = time.monotonic()
        failure: Error | None = None
        result = Collected()
        try:
            result = self._collect()
        except Error as error:
            failure = error
            log.warning("garbage collection failed: %s", error)
        except Exception as error:  # a collection that fails must not end all later ones
            failure = Error(f"garbage collection: {error}")
            log.exception("garbage collection failed")
        with self._state:
            ended = time.monotonic()
            self._schedule.ended(ended, ended - started, failed=failure is not None)
            self._last, self._failure, self._done = result, failure, asked
            self._state.notify_all()
