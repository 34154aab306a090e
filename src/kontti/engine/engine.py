"""The Python API: containers in this process, with no daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kontti.engine import lookup
from kontti.engine.image_calls import ImageCalls
from kontti.engine.life import Life, stop_signal
from kontti.engine.logs import Logs, query, tee
from kontti.engine.processes import Processes
from kontti.engine.stdio import Streams
from kontti.engine.values import (
    ContainerInfo,
    ExecOptions,
    Options,
    ProcessUsage,
    Result,
    Sink,
    Usage,
)
from kontti.errors import DeadlineExceeded, FailedPrecondition, NotFound
from kontti.logs.output import Shown
from kontti.logs.reader import read
from kontti.metadata.base import Container
from kontti.namespaces import DEFAULT, Scope
from kontti.shim.log_writer import LogWriter
from kontti.tasks.base import Stdio
from kontti.values import Mount
from kontti.wire.log_record import STREAMS
from kontti.wire.log_uri import LABEL, is_log

if TYPE_CHECKING:
    from kontti.engine.base import Core
    from kontti.engine.files import Files
    from kontti.engine.prune import Pruned, PrunePlan

ROOT, STATE = "/var/lib/kontti", "/run/kontti"


class Engine(ImageCalls):
    """Images and containers below ``root``; ``state`` holds what a reboot may lose.

    One process owns a root at a time: FailedPrecondition names the one that has it. Containers in
    the background go on when the engine is closed, and are there when it is opened again.
    ``processes`` has the steps that ``run`` and ``exec`` are made of.
    """

    def __init__(
        self,
        root: str = ROOT,
        state: str = STATE,
        namespace: str = DEFAULT,
        *,
        core: Core | None = None,
    ) -> None:
        scope = Scope.of(namespace)
        super().__init__(core or _embedded(root, state), scope)
        self._fifos = os.path.join(state, "fifo")
        self._logs = Logs(root, scope)
        self.processes = Processes(self._core, self._scope)
        self._life = Life(self._core, self._scope, self._logs, self.processes)

    @classmethod
    def connect(
        cls, address: str, namespace: str = DEFAULT, *, root: str = ROOT, state: str = STATE
    ) -> Self:
        """The same in the daemon at ``address``: kontti's, or any containerd on this host.

        Output is kept below ``root``, and FIFOs are made below ``state``. Raises Unavailable.
        """
        from kontti.engine.remote import RemoteCore

        core = RemoteCore(address, Scope.of(namespace))
        return cls(root, state, namespace, core=core)

    @property
    def shared(self) -> bool:
        """Whether this works in a daemon, which others use too."""
        return self._core.shared

    def close(self) -> None:
        """Give the root back, or hang up."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def run(
        self,
        image: str,
        command: Sequence[str] = (),
        options: Options | None = None,
        *,
        input: bytes | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        remove: bool = True,
    ) -> Result:
        """Run ``command`` (or the image's own) in a new container, to its end.

        Output is in the result, or goes to the sinks as it comes. With ``remove`` False the
        container is kept, and its output for ``logs``.
        """
        record, mounts = self._make(image, command, options)
        id, out, err = record.id, bytearray(), bytearray()
        sinks = [stdout or out.extend, stderr or err.extend]
        with contextlib.ExitStack() as undo:
            undo.callback(self.remove, id, force=True)
            with contextlib.ExitStack() as stack:
                if log := None if remove else self._logs.writer(record):
                    stack.callback(log.close, wait=True)
                    sinks = [tee(s, log, name) for s, name in zip(sinks, STREAMS, strict=True)]
                streams = stack.enter_context(Streams(self._fifos, sinks[0], sinks[1], input))
                self.processes.create(id, mounts, streams.stdio)
                code = self.processes.attend(id, streams)
            if not remove:
                undo.pop_all()
        return Result(id, code, bytes(out), bytes(err))

    def start(
        self,
        image: str,
        command: Sequence[str] = (),
        options: Options | None = None,
        *,
        stdio: Stdio | None = None,
    ) -> ContainerInfo:
        """Run ``command`` in a new container in the background.

        Its output is kept for ``logs``, or goes to the FIFOs or URIs of ``stdio``.
        """
        from kontti.engine import restarts

        record, mounts = self._make(image, command, options)
        uri = record.labels[LABEL]
        log = uri if is_log(uri) else ""
        try:
            self.processes.create(record.id, mounts, stdio or Stdio(stdout=log, stderr=log))
            self.processes.start(record.id)
            if options and restarts.wanted(options.restart):
                log = self._core.streams(Stdio(stdout=log)).stdout
                self._life.label(record, restarts.labels_of(options.restart, log))
        except BaseException:
            self.remove(record.id, force=True)
            raise
        return self.container(record.id)

    def _make(
        self, image: str, command: Sequence[str], options: Options | None
    ) -> tuple[Container, list[Mount]]:
        from kontti.engine import containers, images, restarts

        chosen = options or Options()
        restarts.check(self._core, chosen.restart)
        chosen = replace(chosen, name=chosen.name or containers.new_id())
        labels = {LABEL: self._logs.uri(chosen.name, chosen)}
        found = images.find(self._core, self._scope, image)
        return containers.make(self._core, self._scope, found, command, chosen, labels=labels)

    def exec(
        self,
        id: str,
        command: Sequence[str],
        options: ExecOptions | None = None,
        *,
        input: bytes | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> Result:
        """Run ``command`` in a running container, to its end."""
        out, err = bytearray(), bytearray()
        to_out, to_err = stdout or out.extend, stderr or err.extend
        with Streams(self._fifos, to_out, to_err, input) as streams:
            exec_id = self.begin_exec(id, command, options, stdio=streams.stdio)
            try:
                code = self.processes.attend(id, streams, exec_id)
            except BaseException:
                self.processes.end(id, exec_id)
                raise
            finally:
                self.processes.delete(id, exec_id)
        return Result(id, code, bytes(out), bytes(err))

    def begin_exec(
        self, id: str, command: Sequence[str], options: ExecOptions | None = None, *, stdio: Stdio
    ) -> str:
        """Make a process of a running container for ``processes.start``; its exec id."""
        return self.processes.add(self._record(id), command, options or ExecOptions(), stdio)

    def _record(self, id: str) -> Container:
        return self._life.records.get(id)

    def containers(self, *, all: bool = True, filters: Sequence[str] = ()) -> list[ContainerInfo]:
        """Every container, or those that run; ``filters`` as ``kontti ps --filter`` takes them."""
        records = self._life.records.list()
        tasks = self.processes.list()
        found = [lookup.info(record, tasks.get(record.id)) for record in records]
        return lookup.select(found, filters, all=all)

    def container(self, id: str) -> ContainerInfo:
        """One container; raises NotFound."""
        return self._life.info(self._record(id))

    def resolve(self, name: str) -> str:
        """The container that ``name`` is, or that alone begins so; NotFound, InvalidArgument."""
        return lookup.resolve(self._life.records, name)

    def inspect(self, id: str) -> dict[str, object]:
        """All that is recorded of a container, its OCI spec included."""
        record = self._record(id)
        return lookup.details(record, self.container(id), record.labels.get(LABEL, ""))

    def usage(self, *ids: str) -> list[Usage]:
        """What these containers have used so far, or all that run."""
        from kontti.engine.usage import usage

        return [usage(metric) for metric in self.processes.metrics(ids)]

    def top(self, id: str) -> list[ProcessUsage]:
        """The processes of a running container."""
        from kontti.engine.top import processes

        first = self._running(id)
        before = self.processes.pids(id)
        found = processes(before, first)
        # a number that was another's by the time it was looked at is in one list only
        after = frozenset(self.processes.pids(id))
        return [process for process in found if process.pid in after]

    def _running(self, id: str) -> int:
        """The first process's pid; raises FailedPrecondition where the container does not run."""
        found = self.container(id)
        if not found.pid:
            raise FailedPrecondition(f"container {id} is not running")
        return found.pid

    def files(self, id: str) -> Files:
        """A container's files, running or not, to copy from and to; a context manager.

        It can be used when the engine is closed already.
        """
        from kontti.engine.files import open_files

        return open_files(self._core, self._scope, self._record(id), self.container(id).pid)

    def wait(self, id: str, timeout: float | None = None) -> int:
        """Wait for a container's end; its exit code. Raises DeadlineExceeded."""
        return self.processes.wait(id, timeout=timeout)

    def kill(self, id: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a container's first process; one that ends it ends restarts too."""
        self._life.kill(self._record(id), number)

    def ask_to_stop(self, id: str) -> bool:
        """Send a container its image's stop signal; False where it has ended by itself."""
        record = self._record(id)
        try:
            self._life.kill(record, stop_signal(record))
        except NotFound:
            return False
        return True

    def stop(self, id: str, timeout: float = 10.0) -> int:
        """Ask a container to end, make it after ``timeout`` seconds; its exit code."""
        if self.ask_to_stop(id):
            try:
                return self.wait(id, timeout)
            except DeadlineExceeded:
                with contextlib.suppress(NotFound):  # it has ended by itself
                    self.kill(id)
        elif self.container(id).status == "none":
            return 0  # between two turns of a restart policy, the last of which is over now
        return self.wait(id)

    def start_again(self, id: str) -> ContainerInfo:
        """Run a container's command again, with the files it left; one that runs is left be."""
        self._life.start_again(self._record(id))
        return self.container(id)

    def restart(self, id: str, timeout: float = 10.0) -> ContainerInfo:
        """Stop a container, if it runs, and start it again."""
        if self.container(id).status in lookup.LIVE:
            self.stop(id, timeout)
        return self.start_again(id)

    def pause(self, id: str) -> None:
        """Freeze every process of a container."""
        self.processes.pause(id)

    def unpause(self, id: str) -> None:
        """Let a paused container go on."""
        self.processes.unpause(id)

    def remove(self, id: str, *, force: bool = False) -> None:
        """Remove a container with its files and output; one that runs only with ``force``."""
        self._life.remove(self._record(id), force=force)

    def plan_prune(self, *, all: bool = False) -> PrunePlan:
        """What ``prune`` would remove: images without a tag; with ``all`` whatever is not used."""
        from kontti.engine import prune

        return prune.plan(self._core, self._scope, self.containers(), all=all)

    def prune(self, plan: PrunePlan) -> Pruned:
        """Remove what was planned and is still not used; what went, and the bytes freed."""
        from kontti.engine import prune

        return prune.perform(self._core, self._scope, plan, self.remove)

    def logs(
        self,
        id: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: str = "",
        until: str = "",
        timestamps: bool = False,
        stream: str = "",
    ) -> Iterator[bytes]:
        """What a kept container wrote, both streams or one (``stdout``, ``stderr``), in pieces.

        ``follow`` goes on to its end; ``tail`` gives the last lines; ``since`` and ``until`` are
        times (``2006-01-02T15:04:05Z``) or how long ago (``10m``). Raises NotFound,
        FailedPrecondition where nothing is kept, DataLoss.
        """
        wanted = query(
            follow=follow,
            tail=tail,
            since=since,
            until=until,
            stream=stream,
            ended=lambda: self.container(id).status not in lookup.LIVE,
        )
        shown = Shown(timestamps=timestamps)
        return map(shown.text, read(self.log_folder(id), wanted))

    def log_folder(self, id: str) -> str:
        """The folder that ``logs`` reads; raises NotFound, FailedPrecondition."""
        return self._logs.folder(self._record(id))

    def log_writer(self, id: str) -> LogWriter | None:
        """To keep what a container writes to FIFOs of the caller's; None to keep nothing."""
        return self._logs.writer(self._record(id))


def _embedded(root: str, state: str) -> Core:
    from kontti.engine.embedded import EmbeddedCore

    return EmbeddedCore(root, state, f"an embedded engine in {os.path.basename(sys.argv[0])}")
