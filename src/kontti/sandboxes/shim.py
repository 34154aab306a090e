"""The controller whose sandboxes are shims: io.containerd.sandbox.controller.v1.shim.

A shim that serves containerd.runtime.sandbox.v1.Sandbox is started for each sandbox; tasks of its
containers join it. The bundle finds it again after a restart of the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Coroutine, Sequence
from typing import TypeVar

from kontti.errors import DeadlineExceeded, Error, NotFound, Unavailable
from kontti.events.base import Publisher
from kontti.metadata.base import Sandbox
from kontti.namespaces import Scope
from kontti.runtime.bundle import SANDBOX_DIR, Bundles
from kontti.runtime.manager import KILLED, RuntimeSettings, ShimManager
from kontti.runtime.shim import Shim
from kontti.sandboxes import convert
from kontti.sandboxes.base import NOT_READY, CreateOptions, Ended, Started, Status
from kontti.sandboxes.table import Entry, Phase, SandboxTable
from kontti.tasks.base import Metric, Tasks
from kontti.values import Platform
from kontti.wire.messages.events.sandbox import SandboxCreate, SandboxExit, SandboxStart
from kontti.wire.messages.runtime.sandbox.v1 import sandbox as api
from kontti.wire.protobuf import Message

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
T = TypeVar("T")
UNKNOWN = 255
"""The exit status of a sandbox that went without saying how it ended."""
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
CLOSE_SECONDS = 10.0
TASK_SECONDS = 10.0
STOP_SECONDS = 60.0


class ShimController:
    """sandboxes.base.Controller over ``shims``, those of ``tasks``. Lives on one event loop."""

    def __init__(
        self, settings: RuntimeSettings, shims: ShimManager, tasks: Tasks, publisher: Publisher
    ) -> None:
        self._settings = settings
        self._shims = shims
        self._tasks = tasks
        self._publisher = publisher
        self._bundles = Bundles(settings.root, settings.state, SANDBOX_DIR)
        self._table = SandboxTable()
        self._work: set[asyncio.Task[object]] = set()
        self._loads: set[asyncio.Task[object]] = set()
        shims.on_lost.append(self._lost)

    async def load(self) -> None:
        """Take over the sandboxes of an earlier daemon, without waiting for their shims.

        To be called before tasks are: a shim that a sandbox holds is not ended with its last task.
        """
        for bundle in await asyncio.to_thread(self._bundles.all):
            bootstrap = await asyncio.to_thread(bundle.bootstrap)
            entry = self._table.claim(bundle, Phase.LOADING)
            if bootstrap is not None:
                self._shims.sandboxes.hold(bundle.namespace, bundle.id, bootstrap.address)
            self._loads.add(self._begin(self._load(entry)))

    async def loaded(self) -> None:
        """Wait until every sandbox of ``load`` is there or dead."""
        if self._loads:
            await asyncio.wait(self._loads)

    async def _load(self, entry: Entry) -> None:
        turn = 0
        while not await self._try_load(entry):
            await asyncio.sleep(RETRY_SECONDS[min(turn, len(RETRY_SECONDS) - 1)])
            turn += 1

    async def _try_load(self, entry: Entry) -> bool:
        """Whether it is known what became of it."""
        id, namespace = entry.bundle.id, entry.bundle.namespace
        try:
            shim = await self._shims.load(entry.bundle)
            request = api.SandboxStatusRequest(sandbox_id=id)
            seconds = self._settings.load_seconds
            await shim.sandbox("SandboxStatus", request, api.SandboxStatusResponse, seconds)
        except DeadlineExceeded as error:
            log.warning("sandbox %s in %s: %s", id, namespace, error)
            return False
        except Error as error:
            log.warning("sandbox %s in %s: %s; cleaning up", id, namespace, error)
            self._table.go(entry, Phase.ENDING)
            await self._bury(entry)
            return True
        entry.shim = shim
        self._table.go(entry, Phase.READY)
        self._watch(entry)
        return True

    async def create(self, scope: Scope, sandbox: Sandbox, options: CreateOptions) -> None:
        """Controller.create. A caller that gives up gets none."""
        bundle = self._bundles.of(scope.namespace, sandbox.id)
        entry = self._table.claim(bundle, Phase.CREATING)
        work = self._begin(self._create(entry, sandbox, options))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self._begin(self._abandon(entry, work))
            raise

    async def _create(self, entry: Entry, sandbox: Sandbox, options: CreateOptions) -> None:
        id = sandbox.id
        try:
            shim = await self._shims.start_sandbox(entry.bundle, convert.start(sandbox))
        except BaseException as error:
            self._table.go(entry, Phase.GONE)
            if isinstance(error, Error):
                text = f"failed to start new shim for sandbox {id}: {error.message}"
                raise type(error)(text) from None
            raise
        request = convert.create_request(entry.bundle, options)
        try:
            await shim.sandbox("CreateSandbox", request, api.CreateSandboxResponse)
        except Error as error:
            await self._take_away(entry, shim)
            self._table.go(entry, Phase.GONE)
            text = f"failed to create sandbox {id}: {error.message}"
            raise type(error)(text) from None
        entry.shim = shim
        self._table.go(entry, Phase.READY)
        event = SandboxCreate(sandbox_id=id)
        self._publisher.publish(entry.bundle.namespace, "/sandboxes/create", event)

    async def _abandon(self, entry: Entry, work: asyncio.Task[None]) -> None:
        try:
            await work
        except Error:
            return
        if entry.phase is Phase.READY:
            log.info("whoever asked for sandbox %s has gone; taking it away", entry.bundle.id)
            await self._shut_down(entry)

    async def start(self, scope: Scope, id: str) -> Started:
        """Controller.start. One that cannot be started is taken away, as in containerd."""
        entry, shim = await self._ready(scope, id)
        request = api.StartSandboxRequest(sandbox_id=id)
        try:
            answer = await self._call(entry, "StartSandbox", request, api.StartSandboxResponse)
        except Error as error:
            if entry.phase is Phase.READY:
                await asyncio.shield(self._begin(self._shut_down(entry)))
            raise type(error)(f"failed to start sandbox {id}: {error.message}") from None
        self._publisher.publish(scope.namespace, "/sandboxes/start", SandboxStart(sandbox_id=id))
        self._watch(entry)
        return convert.started(id, answer, shim.bootstrap)

    async def platform(self, scope: Scope, id: str) -> Platform:
        """Controller.platform."""
        entry, _ = await self._ready(scope, id)
        request = api.PlatformRequest(sandbox_id=id)
        answer = await self._call(entry, "Platform", request, api.PlatformResponse)
        return convert.platform(answer)

    async def stop(self, scope: Scope, id: str, timeout: int = 0) -> None:
        """Controller.stop."""
        with contextlib.suppress(NotFound, Unavailable):
            entry, _ = await self._ready(scope, id)
            await self._stop(entry, timeout)

    async def _stop(self, entry: Entry, timeout: int) -> None:
        request = api.StopSandboxRequest(sandbox_id=entry.bundle.id, timeout_secs=timeout)
        seconds = timeout + STOP_SECONDS
        await self._call(entry, "StopSandbox", request, api.StopSandboxResponse, seconds)

    async def wait(self, scope: Scope, id: str) -> Ended:
        """Controller.wait."""
        entry = await self._table.find(scope.namespace, id, self._settings.state_seconds)
        if entry.ended is not None:
            return entry.ended
        return await asyncio.shield(self._watch(entry))

    async def status(self, scope: Scope, id: str, *, verbose: bool = False) -> Status:
        """Controller.status."""
        try:
            entry, shim = await self._ready(scope, id)
        except NotFound:
            return self._dead_status(scope, id)
        request = api.SandboxStatusRequest(sandbox_id=id, verbose=verbose)
        seconds = self._settings.state_seconds
        answer = await self._call(
            entry, "SandboxStatus", request, api.SandboxStatusResponse, seconds
        )
        return convert.status(answer, shim.bootstrap)

    def _dead_status(self, scope: Scope, id: str) -> Status:
        found = self._table.dead(scope.namespace, id)
        exited_at = found.exited_at if found else time.time_ns()
        return Status(id, state=NOT_READY if found else "", exited_at=exited_at)

    async def metrics(self, scope: Scope, id: str) -> Metric | None:
        """Controller.metrics."""
        entry, _ = await self._ready(scope, id)
        request = api.SandboxMetricsRequest(sandbox_id=id)
        seconds = self._settings.stats_seconds
        answer = await self._call(
            entry, "SandboxMetrics", request, api.SandboxMetricsResponse, seconds
        )
        return convert.metric(answer)

    async def update(
        self, scope: Scope, id: str, sandbox: Sandbox, fields: Sequence[str] = ()
    ) -> None:
        """Controller.update: the protocol of shims has no such call, and nothing is to be done."""
        await self._ready(scope, id)

    async def shutdown(self, scope: Scope, id: str) -> None:
        """Controller.shutdown; one whose shim has died is only forgotten."""
        entry = await self._table.find(scope.namespace, id, self._settings.state_seconds)
        if entry.phase is Phase.DEAD:
            self._table.go(entry, Phase.GONE)
        elif entry.phase is Phase.READY:
            await asyncio.shield(self._begin(self._shut_down(entry)))
        else:
            raise Unavailable(f"shim of sandbox {id} does not answer")

    async def _shut_down(self, entry: Entry) -> None:
        if entry.shim is None:
            return
        with contextlib.suppress(Error):
            await self._stop(entry, 0)
        await self._delete_tasks(entry, entry.shim)
        if entry.phase is Phase.READY:
            await self._remove(entry, entry.shim)
            return
        # its shim died meanwhile, and what that left is cleared away; or somebody else was quicker
        await entry.settled.wait()
        if entry.phase is Phase.DEAD:
            self._table.go(entry, Phase.GONE)

    async def _remove(self, entry: Entry, shim: Shim) -> None:
        started = entry.watch is not None
        self._table.go(entry, Phase.ENDING)
        try:
            await self._take_away(entry, shim)
        finally:
            if started and entry.ended is None:
                self._tell(entry, Ended(UNKNOWN, time.time_ns()))
            self._table.go(entry, Phase.GONE)

    async def _delete_tasks(self, entry: Entry, shim: Shim) -> None:
        scope = Scope.of(entry.bundle.namespace)
        for id in sorted(shim.tasks - {entry.bundle.id}):
            try:
                async with asyncio.timeout(TASK_SECONDS):
                    with contextlib.suppress(Error):
                        await self._tasks.kill(scope, id, signal.SIGKILL, all=True)
                    await self._tasks.wait(scope, id)
                await self._tasks.delete(scope, id)
            except (Error, TimeoutError) as error:
                # the shim ends it, and the task manager clears away what it leaves
                log.warning("task %s of sandbox %s: %s", id, entry.bundle.id, error)

    async def _take_away(self, entry: Entry, shim: Shim) -> None:
        """End the shim, which has no other task, and remove the bundle."""
        bundle = entry.bundle
        request = api.ShutdownSandboxRequest(sandbox_id=bundle.id)
        try:
            await shim.sandbox(
                "ShutdownSandbox", request, api.ShutdownSandboxResponse, STOP_SECONDS
            )
        except Error as error:
            log.warning("shim of sandbox %s: %s", bundle.id, error)
        self._shims.sandboxes.let_go(bundle.namespace, bundle.id)
        await self._shims.stop(shim, bundle)

    async def _ready(self, scope: Scope, id: str) -> tuple[Entry, Shim]:
        entry = await self._table.find(scope.namespace, id, self._settings.state_seconds)
        if entry.phase is not Phase.READY or entry.shim is None:
            raise NotFound(f"sandbox {id}")
        return entry, entry.shim

    async def _call(
        self,
        entry: Entry,
        method: str,
        request: Message,
        response: type[M],
        timeout: float | None = STOP_SECONDS,
    ) -> M:
        if entry.shim is None:
            raise NotFound(f"sandbox {entry.bundle.id}")
        return await entry.shim.sandbox(method, request, response, timeout)

    def _watch(self, entry: Entry) -> asyncio.Task[Ended]:
        """Whoever waits for its end waits for this, and so does the event."""
        over = entry.watch is not None and entry.watch.done()
        if entry.watch is None or (over and entry.ended is None):
            entry.watch = self._begin(self._until_ended(entry))
        return entry.watch

    async def _until_ended(self, entry: Entry) -> Ended:
        request = api.WaitSandboxRequest(sandbox_id=entry.bundle.id)
        try:
            answer = await self._call(entry, "WaitSandbox", request, api.WaitSandboxResponse, None)
        except Unavailable:
            if entry.phase is Phase.READY:
                raise
            # its shim died: what its burial says is how it ended
            await entry.settled.wait()
            return entry.ended or Ended(UNKNOWN, time.time_ns())
        return self._tell(entry, convert.ended(answer))

    def _tell(self, entry: Entry, ended: Ended) -> Ended:
        """Note and publish how it ended, once."""
        if entry.ended is None:
            entry.ended = ended
            event = SandboxExit(
                sandbox_id=entry.bundle.id,
                exit_status=ended.status,
                exited_at=convert.timestamp(ended.exited_at),
            )
            self._publisher.publish(entry.bundle.namespace, "/sandboxes/exit", event)
        return entry.ended

    def _lost(self, shim: Shim, namespace: str) -> None:
        for entry in self._table:
            if entry.shim is shim and entry.phase is Phase.READY:
                log.warning("the shim of sandbox %s in %s is gone", entry.bundle.id, namespace)
                self._table.go(entry, Phase.ENDING)
                self._begin(self._bury(entry))

    async def _bury(self, entry: Entry) -> None:
        """A shim died: clear what it left, and say so."""
        self._shims.sandboxes.let_go(entry.bundle.namespace, entry.bundle.id)
        try:
            await self._shims.clear(entry.bundle)
        finally:
            self._tell(entry, Ended(KILLED, time.time_ns()))
            self._table.go(entry, Phase.DEAD)

    def _begin(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        task.add_done_callback(_look)
        return task

    async def close(self) -> None:
        """Let go of every sandbox; they go on. What has begun is given some time to finish."""
        watches = {entry.watch for entry in self._table if entry.watch is not None}
        for endless in [*watches, *self._loads]:
            endless.cancel()
        if self._work:
            await asyncio.wait(set(self._work), timeout=CLOSE_SECONDS)
        left = [*self._work]
        for work in left:
            work.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _look(task: asyncio.Task[T]) -> None:
    """An error that nobody waits for is no mistake: whoever asks next is told it."""
    if not task.cancelled():
        task.exception()
