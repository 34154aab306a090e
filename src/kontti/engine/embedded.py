"""An engine in this process: stores and tasks, with a loop of their own for what takes long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, TypeVar

from kontti.engine.base import CALL_SECONDS
from kontti.engine.lock import RootLock
from kontti.engine.stores import Stores, StoreSettings
from kontti.errors import DeadlineExceeded
from kontti.namespaces import Scope
from kontti.runtime import events as shim_events
from kontti.runtime.manager import RuntimeSettings
from kontti.runtime.probe import choose
from kontti.runtime.ttrpc import TtrpcServer
from kontti.tasks.base import Stdio
from kontti.tasks.manager import TaskManager

if TYPE_CHECKING:
    from kontti.transfer.parts import Parts

T = TypeVar("T")
LOAD_SECONDS = 30.0
TTRPC_NAME = "engine.ttrpc"
SOCKET_DIR = "/run/kontti/s"


class EmbeddedCore:
    """engine.base.Core, opened at ``root`` and ``state``.

    Raises FailedPrecondition where another owns the root.
    """

    runtime = "io.containerd.kontti.v1"
    shared = False

    def __init__(self, root: str, state: str, owner: str) -> None:
        os.makedirs(state, mode=0o711, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self.opened = Stores(StoreSettings(root=root, owner=owner))
            stack.callback(self.opened.close)
            self.stores = self.opened.metadata
            # two owners of one state would bury each other's tasks
            stack.enter_context(RootLock(state, owner, "state"))
            self._loop = asyncio.new_event_loop()
            stack.callback(self._loop.close)
            thread = threading.Thread(target=self._loop.run_forever, name="tasks", daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(self._loop.call_soon_threadsafe, self._loop.stop)
            self._ttrpc = TtrpcServer(shim_events.handlers(self.opened.exchange))
            self.tasks = self.wait_for(self._start(root, state), LOAD_SECONDS)
            stack.callback(lambda: self.wait_for(self._stop()))
            self._stack = stack.pop_all()

    async def _start(self, root: str, state: str) -> TaskManager:
        choice = await asyncio.to_thread(choose, state)
        address = os.path.join(state, TTRPC_NAME)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)
        await self._ttrpc.start(address, os.geteuid(), os.getegid())
        settings = RuntimeSettings(
            root=root,
            state=state,
            socket_dir=SOCKET_DIR,
            ttrpc_address=address,
            runtime=choice.binary,
            hide_unified=choice.hide_unified,
        )
        records, checkpoints = self.stores.containers, self.opened.checkpoints()
        tasks = TaskManager(settings, records, self.opened.exchange, checkpoints)
        await tasks.load()
        await tasks.loaded()
        return tasks

    async def _stop(self) -> None:
        await self.tasks.close()
        await self._ttrpc.stop()

    def wait_for(
        self, work: Coroutine[object, object, T], timeout: float | None = CALL_SECONDS
    ) -> T:
        """Do ``work`` on the loop, and wait for it; raises DeadlineExceeded after ``timeout`` s."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise DeadlineExceeded("the task manager did not answer in time") from None
        except BaseException:
            future.cancel()
            raise

    def snapshotters(self) -> Sequence[str]:
        """The names of those that opened."""
        return tuple(self.stores.snapshotters)

    def is_lazy(self, snapshotter: str) -> bool:
        """None of those here does."""
        return False

    def transfer_parts(self) -> Parts:
        """What pull, push, import and export work on."""
        return self.opened.transfer_parts()

    def streams(self, stdio: Stdio) -> Stdio:
        """The task manager here understands all of it."""
        return stdio

    def collect(self, scope: Scope) -> None:
        """What nothing in any namespace needs is off the disk after this."""
        self.opened.gc.collect_and_wait()

    def close(self) -> None:
        """Let go of everything; containers go on."""
        self._stack.close()
