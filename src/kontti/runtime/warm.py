"""Has the kernel's lock on moving processes between groups ready when a container needs it.

The first move after a quiet time waits for an RCU grace period (10 to 20 ms), later ones do not.
A snapshot or container that is made means that one will be started soon, an exec that it will join
one: this process then moves itself to where it is, in a thread, and the wait is over, or shorter,
when the OCI runtime moves the process.
"""

from __future__ import annotations

import logging
import os
import threading

from kontti.events.base import Envelope, Exchange
from kontti.linux import cgroups

log = logging.getLogger(__name__)
FILTERS = ("topic==/snapshot/prepare", "topic==/containers/create", "topic==/tasks/exec-added")


class GroupWarmer:
    """Hears of containers to come on ``exchange`` until closed."""

    def __init__(self, exchange: Exchange) -> None:
        self._wanted = threading.Event()
        self._stopped = False
        self._file = self._own_group()
        self._thread = threading.Thread(target=self._run, name="cgroup-warmer", daemon=True)
        self._subscription = exchange.subscribe(FILTERS, self._hear) if self._file else None
        if self._file:
            self._thread.start()

    @staticmethod
    def _own_group() -> str:
        """A file that moves a process to where we are; "" where there is none to write."""
        try:
            groups = cgroups.paths_of(os.getpid())
        except OSError:
            return ""
        for controller in ("", "memory", "pids", "cpu"):
            path = os.path.join(groups.get(controller, ""), "cgroup.procs")
            if controller in groups and os.access(path, os.W_OK):
                return path
        return ""

    def _hear(self, _envelope: Envelope) -> None:
        self._wanted.set()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._stopped:
                return
            try:
                with open(self._file, "w") as file:
                    file.write(str(os.getpid()))
            except OSError as error:
                log.debug("cannot warm %s: %s", self._file, error)

    def close(self) -> None:
        """Stop."""
        if self._subscription is not None:
            self._subscription.close()
            self._stopped = True
            self._wanted.set()
            self._thread.join(5.0)
