"""How tasks begin, are found again and end: each either whole or not at all.

What has begun is finished or taken back even where the caller goes away in the middle: it runs in
a task of the event loop that the caller only waits for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import TypeVar

from kontti.errors import DeadlineExceeded, Error, FailedPrecondition, NotFound, Unimplemented
from kontti.events.base import Publisher
from kontti.linux import fs
from kontti.metadata.base import Container
from kontti.mounts.base import Mounts
from kontti.namespaces import Scope
from kontti.runtime.bundle import Bundle
from kontti.runtime.manager import KILLED, RuntimeSettings, ShimManager
from kontti.runtime.shim import Shim
from kontti.tasks import convert, streams
from kontti.tasks.base import CreateOptions, Exit, Status
from kontti.tasks.checkpoints import Checkpoints
from kontti.tasks.rootfs import RootFilesystems
from kontti.tasks.table import Phase, Task, TaskTable
from kontti.values import AnyValue, Descriptor
from kontti.wire.messages.events.task import TaskDelete, TaskExit
from kontti.wire.messages.google import Empty
from kontti.wire.messages.runtime.task.v2 import shim as api

log = logging.getLogger(__name__)
T = TypeVar("T")
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
CLOSE_SECONDS = 10.0
LOADS_A_TURN = 8
DELETABLE = (Status.STOPPED, Status.CREATED)


class Lifecycle:
    """Fills and empties ``table``. Lives on one event loop."""

    def __init__(
        self,
        settings: RuntimeSettings,
        table: TaskTable,
        publisher: Publisher,
        checkpoints: Checkpoints | None = None,
        *,
        mounts: Mounts | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self.settings = settings
        self._rootfs = RootFilesystems(mounts)
        self.table = table
        self._publisher = publisher
        self.shims = ShimManager(settings)
        self.shims.on_lost.append(self._lost)
        self._loads: set[asyncio.Task[None]] = set()
        self._work: set[asyncio.Task[object]] = set()

    async def create(self, bundle: Bundle, container: Container, options: CreateOptions) -> int:
        """A new task's pid; raises AlreadyExists, Error. A caller that gives up gets none."""
        own = self.shims.is_own(container.runtime, options.runtime_path)
        stdio = streams.for_task(options.stdio, dict(self.settings.log_options), own=own)
        options = replace(options, stdio=stdio)
        task = self.table.claim(bundle, Phase.CREATING)
        work = self._begin(self._create(task, container, options))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._begin(self._abandon(task, work))
            raise

    async def _create(self, task: Task, container: Container, options: CreateOptions) -> int:
        try:
            options = await self._rootfs.prepare(task.bundle, options)
            shim = await self.shims.start(task.bundle, convert.start(container, options))
        except BaseException:
            await self._rootfs.release(task.bundle)
            self.table.go(task, Phase.GONE)
            raise
        try:
            image = await self._image(task.bundle, options)
            request = convert.create_request(task.bundle, container, options, image)
            answer = await shim.call("Create", request, api.CreateTaskResponse)
        except Error as error:
            await self._take_back(task, shim)
            raise type(error)(f"failed to create shim task: {error.message}") from None
        task.shim = shim
        self.table.go(task, Phase.READY)
        return answer.pid

    async def _image(self, bundle: Bundle, options: CreateOptions) -> str:
        """The directory to restore from, "" for a new beginning; raises Error.

        What comes from the content store is in the bundle, and goes with it.
        """
        path = convert.criu_image(options.options) or options.restore_path
        if path or options.checkpoint is None:
            return path
        image = os.path.join(bundle.work, "checkpoint")
        scope = Scope(bundle.namespace)
        await asyncio.to_thread(self._unpack, scope, options.checkpoint, image)
        return image

    def _unpack(self, scope: Scope, checkpoint: Descriptor, path: str) -> None:
        if self._checkpoints is None:
            raise Unimplemented("checkpoints are not kept here")
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            raise Error(f"failed to restore: {error}") from None
        self._checkpoints.unpack(scope, checkpoint, path)

    async def checkpoint(
        self, scope: Scope, task: Task, spec: AnyValue, options: AnyValue | None
    ) -> list[Descriptor]:
        """Write the state of a task; raises Error, and the task goes on.

        Gives what was made of it, nothing where ``options`` say where it is to be left.
        """
        return await asyncio.shield(self._begin(self._write(scope, task, spec, options)))

    async def _write(
        self, scope: Scope, task: Task, spec: AnyValue, options: AnyValue | None
    ) -> list[Descriptor]:
        path = convert.checkpoint_path(options)
        if path:
            await self._dump(task, path, options)
            return []
        if self._checkpoints is None:
            raise Unimplemented("checkpoints are not kept here")
        # on disk, which has more room than the state directory for what a container remembers
        path = os.path.join(task.bundle.work, f"checkpoint-{secrets.token_hex(8)}")
        try:
            await self._dump(task, path, options)
            return await asyncio.to_thread(self._checkpoints.save, scope, path, spec)
        finally:
            await asyncio.to_thread(_remove, path)

    @staticmethod
    async def _dump(task: Task, path: str, options: AnyValue | None) -> None:
        if task.shim is None:
            raise NotFound(f"task {task.bundle.id} not found")
        packed = convert.to_any(options) if options else None
        request = api.CheckpointTaskRequest(id=task.bundle.id, path=path, options=packed)
        await task.shim.call("Checkpoint", request, Empty)

    async def _take_back(self, task: Task, shim: Shim) -> None:
        try:
            await self.shims.clean(task.bundle, shim)
        finally:
            await self._rootfs.release(task.bundle)
            self.table.go(task, Phase.GONE)

    async def _abandon(self, task: Task, work: asyncio.Task[int]) -> None:
        """Take back what was created for a caller that has gone."""
        try:
            await work
        except Error:
            return
        if task.phase is Phase.READY:
            log.info("whoever asked for task %s has gone; deleting it", task.bundle.id)
            self.table.go(task, Phase.ENDING)
            await self._end(task, task.shim)

    async def _end(self, task: Task, shim: Shim | None) -> None:
        """End a task in whatever state it is in."""
        ended = api.DeleteResponse(exit_status=KILLED)
        try:
            ended = await self.shims.clean(task.bundle, shim)
        finally:
            task.exit = convert.exit_of(task.bundle.id, ended)
            if not task.exit.exited_at:
                task.exit = replace(task.exit, exited_at=time.time_ns())
            await self._rootfs.release(task.bundle)
            self.table.go(task, Phase.GONE)

    async def delete(self, task: Task, shim: Shim) -> Exit:
        """Delete a stopped task, with its shim if that has no other.

        Raises FailedPrecondition where it is not stopped, NotFound where somebody else was first.
        """
        return await asyncio.shield(self._begin(self._delete(task, shim)))

    async def _delete(self, task: Task, shim: Shim) -> Exit:
        id = task.bundle.id
        ended: api.DeleteResponse | None = None
        try:
            state = convert.process(id, await shim.state(id, "", self.settings.state_seconds))
            if state.status not in DELETABLE:
                name = state.status.name.lower()
                raise FailedPrecondition(f"task must be stopped before deletion: {name}")
            ended = await shim.call("Delete", api.DeleteRequest(id=id), api.DeleteResponse)
        except NotFound:
            # deleted before, by a daemon that did not live to clear the rest away
            log.info("shim of task %s does not know it any more", id)
        except Error:
            if task.phase is Phase.READY:
                raise
        if task.phase is not Phase.READY:
            # somebody else deletes it, or its shim died
            await task.settled.wait()
            raise NotFound(f"task {id} not found")
        self.table.go(task, Phase.ENDING)
        await self._clear(task, shim)
        if ended is None:
            raise NotFound(f"task {id} not found")
        return convert.exit_of(id, ended)

    async def _clear(self, task: Task, shim: Shim) -> None:
        """What is left to do when the shim has deleted the task."""
        try:
            await self.shims.stop(shim, task.bundle)
        finally:
            await self._rootfs.release(task.bundle)
            self.table.go(task, Phase.GONE)

    async def load(self) -> None:
        """Take over the tasks of an earlier daemon, all at once and without waiting for them."""
        bundles = await asyncio.to_thread(self.shims.bundles.all)
        tasks = [self.table.claim(bundle, Phase.LOADING) for bundle in bundles]
        self._begin_load(self._load_all(tasks))

    async def _load_all(self, tasks: Sequence[Task]) -> None:
        for number, task in enumerate(tasks):
            self._begin_load(self._load(task))
            if number % LOADS_A_TURN == 0:
                # whoever calls meanwhile is served between them
                await asyncio.sleep(0)

    def _begin_load(self, work: Coroutine[object, object, None]) -> None:
        loading = asyncio.get_running_loop().create_task(work)
        self._loads.add(loading)
        loading.add_done_callback(self._loads.discard)

    async def loaded(self) -> None:
        """Wait until every task of ``load`` is there or gone."""
        while self._loads:
            await asyncio.wait(self._loads)

    async def _load(self, task: Task) -> None:
        turn = 0
        while not await self._try_load(task):
            # it may be slow and not dead; its container is not to be killed for that
            await asyncio.sleep(RETRY_SECONDS[min(turn, len(RETRY_SECONDS) - 1)])
            turn += 1

    async def _try_load(self, task: Task) -> bool:
        """Whether it is known what became of the task."""
        bundle = task.bundle
        shim: Shim | None = None
        try:
            shim = await self.shims.load(bundle)
            state = await shim.state(bundle.id, "", self.settings.load_seconds)
        except DeadlineExceeded as error:
            log.warning("task %s in %s: %s", bundle.id, bundle.namespace, error)
            return False
        except NotFound as error:
            log.info("task %s in %s: %s; clearing away", bundle.id, bundle.namespace, error)
            if shim is not None:
                self.table.go(task, Phase.ENDING)
                await self._clear(task, shim)
            return True
        except Error as error:
            log.warning("task %s in %s: %s; cleaning up", bundle.id, bundle.namespace, error)
            self.table.go(task, Phase.ENDING)
            await self._bury(task)
            return True
        log.info("task %s in %s is there, pid %d", bundle.id, bundle.namespace, state.pid)
        task.shim = shim
        self.table.go(task, Phase.READY)
        task.brief.note(task.brief.turn, convert.process(bundle.id, state), shim.pid)
        return True

    def _lost(self, shim: Shim, namespace: str) -> None:
        for task in self.table:
            if task.shim is shim and task.phase is Phase.READY:
                log.warning("the shim of task %s in %s is gone", task.bundle.id, namespace)
                self.table.go(task, Phase.ENDING)
                self._begin(self._bury(task))

    async def _bury(self, task: Task) -> None:
        """A shim died: end what it kept, and say so."""
        namespace, id = task.bundle.namespace, task.bundle.id
        await self._end(task, None)
        ended = task.exit
        if ended is None:
            return
        stamp = convert.timestamp(ended.exited_at)
        exit = TaskExit(
            container_id=id, id=id, pid=ended.pid, exit_status=ended.status, exited_at=stamp
        )
        self._publisher.publish(namespace, "/tasks/exit", exit)
        deleted = TaskDelete(
            container_id=id, pid=ended.pid, exit_status=ended.status, exited_at=stamp
        )
        self._publisher.publish(namespace, "/tasks/delete", deleted)

    def _begin(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def close(self) -> None:
        """Let go of every shim; tasks go on. What has begun is given some time to finish."""
        self.shims.on_lost.clear()
        for task in self.table:
            task.brief.drop()
        for loading in list(self._loads):
            loading.cancel()
        if self._work:
            await asyncio.wait(set(self._work), timeout=CLOSE_SECONDS)
        left = [*self._loads, *self._work]
        for work in left:
            work.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.shims.close()


def _remove(path: str) -> None:
    try:
        fs.remove_tree(path)
    except OSError as error:
        log.warning("checkpoint at %s is not removed: %s", path, error)
