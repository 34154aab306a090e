"""What the system cannot mount of a task's root file system, mounted for as long as the task."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from kontti.errors import AlreadyExists, Error, NotFound, Unimplemented
from kontti.metadata.gc import BREF_CONTAINER
from kontti.mounts.base import ActivateOptions, Activation, Mounts
from kontti.namespaces import Scope
from kontti.runtime.bundle import Bundle
from kontti.tasks.base import CreateOptions

log = logging.getLogger(__name__)
PLAIN = frozenset({"bind", "overlay", "rbind"})


class RootFilesystems:
    """Activations by the task's id; without ``mounts`` the system is left to mount all."""

    def __init__(self, mounts: Mounts | None) -> None:
        self._mounts = mounts

    async def prepare(self, bundle: Bundle, options: CreateOptions) -> CreateOptions:
        """``options`` with mounts that the system can make; raises Error."""
        if self._mounts is None or all(mount.type in PLAIN for mount in options.rootfs):
            return options
        try:
            found = await asyncio.to_thread(self._activate, self._mounts, bundle, options)
        except Unimplemented:
            return options
        return replace(options, rootfs=found.system)

    @staticmethod
    def _activate(mounts: Mounts, bundle: Bundle, options: CreateOptions) -> Activation:
        scope = Scope.of(bundle.namespace)
        labels = {BREF_CONTAINER: bundle.id}
        try:
            return mounts.activate(scope, bundle.id, options.rootfs, ActivateOptions(labels))
        except AlreadyExists:
            # of an earlier task of the container, which could not be unmounted
            return mounts.info(scope, bundle.id)

    async def release(self, bundle: Bundle) -> None:
        """Unmount it; what cannot be is collected after the container."""
        if self._mounts is None:
            return
        scope = Scope.of(bundle.namespace)
        try:
            self._mounts.info(scope, bundle.id)
            await asyncio.to_thread(self._mounts.deactivate, scope, bundle.id)
        except NotFound:
            return
        except Error as error:
            log.warning("mounts of task %s: %s", bundle.id, error)
