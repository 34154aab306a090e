"""The ends and new beginnings of containers that are there."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kontti.engine import lookup
from kontti.engine.base import Core
from kontti.engine.logs import Logs
from kontti.engine.processes import Processes
from kontti.engine.values import ContainerInfo
from kontti.errors import Error, FailedPrecondition, NotFound
from kontti.linux.process import signal_number
from kontti.metadata.base import Container, Containers
from kontti.namespaces import Scope
from kontti.tasks import labels
from kontti.tasks.base import Stdio
from kontti.values import Mount
from kontti.wire.log_uri import LABEL, is_log


class Life:
    """Of the containers of one namespace."""

    def __init__(self, core: Core, scope: Scope, logs: Logs, processes: Processes) -> None:
        self._core, self._scope = core, scope
        self._logs, self._processes = logs, processes

    @property
    def records(self) -> Containers:
        """The containers' records."""
        return self._core.stores.containers(self._scope)

    def info(self, record: Container) -> ContainerInfo:
        """A container by its record and its first process, if it has one."""
        try:
            return lookup.info(record, self._processes.get(record.id))
        except NotFound:
            return lookup.info(record, None)

    def kill(self, record: Container, number: int) -> None:
        """Send a signal to the first process; one that is to end it ends restarts too."""
        if number in (signal.SIGKILL, stop_signal(record)):
            self._keep_down(record)
        self._processes.kill(record.id, number)

    def _keep_down(self, record: Container) -> None:
        """Have no daemon start a container again that a user ends."""
        if labels.STATUS in record.labels:
            self.label(record, {labels.STATUS: "created", labels.EXPLICITLY_STOPPED: "true"})

    def label(self, record: Container, wanted: Mapping[str, str]) -> None:
        """Set labels; one with no value is taken away."""
        paths = [f"labels.{name}" for name in wanted]
        self.records.update(replace(record, labels=wanted), paths)

    def start_again(self, record: Container) -> None:
        """Run a container's command again, with the files it left; one that runs is left be."""
        status = self.info(record).status
        if status in ("running", "paused"):
            return
        if status == "stopped":
            self._processes.delete(record.id)
        if status != "created":
            self._create_again(record)
        try:
            self._processes.start(record.id)
        except Error:
            self._processes.delete(record.id)
            raise
        if labels.STATUS in record.labels:
            self.label(record, {labels.STATUS: "running", labels.EXPLICITLY_STOPPED: ""})

    def _create_again(self, record: Container) -> None:
        uri = record.labels.get(LABEL, "")
        log = uri if is_log(uri) else ""
        mounts: Sequence[Mount] = ()
        if record.snapshot_key:
            snapshots = self._core.stores.snapshots(self._scope, record.snapshotter)
            mounts = snapshots.mounts(record.snapshot_key)
        terminal = lookup.wants_terminal(record)
        stdio = Stdio(stdout=log, stderr="" if terminal else log, terminal=terminal)
        self._processes.create(record.id, mounts, stdio)

    def remove(self, record: Container, *, force: bool) -> None:
        """Remove a container with its files and output; one that runs only with ``force``."""
        from kontti.engine import containers

        id, status = record.id, self.info(record).status
        if status in ("running", "paused") and not force:
            raise FailedPrecondition(f"container {id} is {status}: stop it, or force this")
        self._keep_down(record)
        if status in lookup.LIVE:
            with contextlib.suppress(NotFound):  # it has ended by itself
                self._processes.kill(id, signal.SIGKILL)
            self._processes.wait(id)
        if status != "none":
            self._processes.delete(id)
        containers.unmake(self._core, self._scope, record)
        self._logs.remove(id)


def stop_signal(record: Container) -> int:
    """What asks a container to end: its image says."""
    return signal_number(record.labels.get(lookup.STOP_SIGNAL_LABEL, "SIGTERM"))
