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


@dataclass(frozen=True, slots=True)
class Policy:
    """io.containerd.gc.v1.scheduler's settings; delays in seconds."""

    pause_threshold: float = 0.02
    deletion_threshold: int = 0
    mutation_threshold: int = 100
    schedule_delay: float = 0.0
    startup_delay: float = 0.1


class Scheduler:
    """A thread that collects. ``collect_and_wait`` returns after a collection that began later."""

    def __init__(self, collect: Callable[[], Collected], policy: Policy) -> None:
        self._collect = collect
        self._policy = policy
        self._state = threading.Condition()
        self._mutations = 0
        self._deletions = 0
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
            self._mutations += 1
            self._deletions += garbage
            if self._due():
                self._state.notify_all()

    def collect_and_wait(self) -> Collected:
        """Collect now; raises what the collection raised, Unavailable after five minutes."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._state:
            self._asked += 1
            ticket = self._asked
            self._state.notify_all()
            while self._done < ticket:
                left = deadline - time.monotonic()
                if left <= 0 or self._stopped or not self._state.wait(left):
                    raise Unavailable("garbage collection did not end in time")
            if self._failure is not None:
                raise self._failure
            return self._last

    def _due(self) -> bool:
        policy = self._policy
        if self._asked > self._done:
            return True
        if policy.deletion_threshold and self._deletions >= policy.deletion_threshold:
            return True
        return self._deletions > 0 and self._mutations >= policy.mutation_threshold

    def _run(self) -> None:
        pause = self._policy.startup_delay
        while True:
            with self._state:
                self._state.wait_for(lambda: self._stopped or self._asked > self._done, pause)
                self._state.wait_for(lambda: self._stopped or self._due())
                if self._stopped:
                    return
                asked = self._asked
                self._mutations = self._deletions = 0
            seconds = self._once(asked)
            # of all time at most the threshold's share goes into collections
            pause = self._policy.schedule_delay + seconds / self._policy.pause_threshold

    def _once(self, asked: int) -> float:
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
            self._last, self._failure, self._done = result, failure, asked
            self._state.notify_all()
        return time.monotonic() - started
