"""The engine of a command: in the daemon that has the root, or in this process if none has.

In this process it is open while the command needs it, and no longer: a root has one owner at a
time, so a command that waits for a container lets go of it meanwhile. ``kontti ps`` and
``kontti stop`` work while ``kontti run`` is in the foreground elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from kontti.engine.engine import Engine
from kontti.engine.lock import daemon_of, holder_of
from kontti.errors import FailedPrecondition

PATIENCE_SECONDS = float(os.environ.get("KONTTI_PATIENCE", "15"))
RETRY_SECONDS = 0.02


class Root:
    """Engines on ``root``, from any thread; those that overlap in time are one.

    ``address`` is the daemon's to work in, "" for the one that has the root, if any.
    """

    def __init__(self, root: str, state: str, namespace: str, address: str = "") -> None:
        self.root, self.state, self.namespace = root, state, namespace
        self._address = address
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
            # once in a daemon always there: it may be away for a moment to be started again
            self._address = self._address or daemon_of(self.root)
            if self._address:
                return Engine.connect(
                    self._address, self.namespace, root=self.root, state=self.state
                )
            try:
                return Engine(self.root, self.state, self.namespace)
            except FailedPrecondition:
                # another command lets go as soon as it can; a daemon that starts listens soon
                if not holder_of(self.root) or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_SECONDS)
