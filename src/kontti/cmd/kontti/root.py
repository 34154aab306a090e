"""The engine of a command: open while the command needs it, and no longer.

A root has one owner at a time, so a command that waits for a container lets go of it meanwhile:
``kontti ps`` and ``kontti stop`` work while ``kontti run`` is in the foreground elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from kontti.engine.engine import Engine
from kontti.engine.lock import holder_of
from kontti.errors import FailedPrecondition

PATIENCE_SECONDS = float(os.environ.get("KONTTI_PATIENCE", "15"))
RETRY_SECONDS = 0.02


class Root:
    """Engines on ``root``, from any thread; those that overlap in time are one."""

    def __init__(self, root: str, state: str, namespace: str) -> None:
        self.root, self.state, self.namespace = root, state, namespace
        self._lock = threading.Lock()
        self._users = 0
        self._engine: Engine | None = None

    @property
    def fifos(self) -> str:
        """Where FIFOs are made."""
        return os.path.join(self.state, "fifo")

    @contextlib.contextmanager
    def engine(self) -> Iterator[Engine]:
        """The engine; raises FailedPrecondition where another program has the root and keeps it."""
        with self._lock:
            engine = self._engine or self._open()
            self._engine = engine
            self._users += 1
        try:
            yield engine
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._engine = None
                    engine.close()

    def _open(self) -> Engine:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return Engine(self.root, self.state, self.namespace)
            except FailedPrecondition as error:
                holder = holder_of(self.root)
                if holder.startswith("the daemon"):
                    raise FailedPrecondition(
                        f"{error.message}: use ctr with that daemon, or another --root"
                    ) from None
                # another command's: it lets go as soon as it can
                if not holder or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_SECONDS)
