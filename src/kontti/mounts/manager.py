"""The mount manager: mounts.base.Mounts in the state directory.

An activation that a crash interrupted is undone by the next start; so is one that was being
undone. What nothing refers to is collected with the records: see ``held``.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kontti.content.locks import NamedLocks
from kontti.errors import AlreadyExists, Error, InvalidArgument, NotFound, ResourceExhausted
from kontti.filters import field_adaptor, parse_all
from kontti.linux import fs
from kontti.mounts.base import ActivateOptions, Activation, ActiveMount, Handler, Transformer
from kontti.mounts.handlers import ErofsHandler, LoopHandler, SystemHandler
from kontti.mounts.plan import Plan, Step, plan
from kontti.mounts.propagation import share, unshare
from kontti.mounts.records import Record, Records
from kontti.mounts.transforms import MakeDirectories, MakeImage, Roots, format_mount
from kontti.namespaces import Scope
from kontti.values import Held, Mount, check_labels, merge_labels

log = logging.getLogger(__name__)
STATE_DIR = "io.containerd.mount-manager.v1.bolt"
MAX_ACTIVE = 65536
MAX_NAME = 1024
PATIENCE = 5.0
"""Seconds that a collection waits for whoever works on the same mounts."""
_SYSTEM = SystemHandler()


class MountManager:
    """mounts.base.Mounts below ``state``; directories and images are made below ``root`` too."""

    def __init__(self, root: str, state: str) -> None:
        folder = os.path.join(os.path.realpath(state), STATE_DIR, "t")
        self._records = Records(folder)
        roots = Roots((folder, os.path.realpath(root)))
        self._handlers: Mapping[str, Handler] = {"erofs": ErofsHandler(), "loop": LoopHandler()}
        self._transforms: Mapping[str, Transformer] = {
            "format": format_mount,
            "mkdir": MakeDirectories(roots),
            "mkfs": MakeImage(roots),
        }
        self._locks = NamedLocks()
        self._mutex = threading.Lock()
        self._active: dict[tuple[str, str], Record] = {}
        try:
            # before there is any shim: what comes later is seen by those alone that see this
            share(folder)
        except OSError as error:
            log.warning("mounts will not be seen by shims that have mounts of their own: %s", error)
        numbers = self._records.numbers()
        self._numbers = itertools.count(max(numbers, default=0) + 1)
        self._load(numbers)

    def _load(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            record = self._records.read(number)
            if record is not None:
                self._active[record.namespace, record.activation.name] = record
                continue
            log.warning("mounts %d were left behind; undoing them", number)
            try:
                self._undo(number)
            except (Error, OSError) as error:
                log.warning("mounts %d stay: %s", number, error)

    def activate(
        self,
        scope: Scope,
        name: str,
        mounts: Sequence[Mount],
        options: ActivateOptions | None = None,
    ) -> Activation:
        """Mounts.activate. What fails is undone."""
        chosen = options or ActivateOptions()
        if not name or len(name) > MAX_NAME:
            raise InvalidArgument(f"mount name must have 1 to {MAX_NAME} characters")
        check_labels(chosen.labels)
        wanted = plan(mounts, self._transforms, self._handlers, chosen)
        with self._locks.hold((scope.namespace, name)):
            if (scope.namespace, name) in self._active:
                raise AlreadyExists(f'mount "{name}"')
            if len(self._active) >= MAX_ACTIVE:
                raise ResourceExhausted(f"{MAX_ACTIVE} mounts are active")
            number = next(self._numbers)
            os.mkdir(self._records.folder(number), 0o700)
            try:
                activation = self._perform(number, name, wanted, chosen)
                record = Record(scope.namespace, number, scope.lease, activation)
                self._records.write(record)
            except BaseException as error:
                self._take_back(number)
                if isinstance(error, OSError):
                    raise Error(f"mount failed: {error}") from None
                raise
            with self._mutex:
                self._active[scope.namespace, name] = record
            return activation

    def _perform(
        self, number: int, name: str, wanted: Plan, options: ActivateOptions
    ) -> Activation:
        active: list[ActiveMount] = []
        count = len(wanted.active)
        for index, step in enumerate(wanted.active):
            target = os.path.join(self._records.folder(number), str(count - index))
            active.append(self._make(step, target, active))
        system = [self._prepared(step, active) for step in wanted.system]
        if active and not system and wanted.active[-1].handler != "loop":
            # all is mounted: this is the way to it
            system.append(Mount("bind", active[-1].mount_point, ("rbind",)))
        return Activation(name, tuple(active), tuple(system), dict(options.labels))

    def _prepared(self, step: Step, active: Sequence[ActiveMount]) -> Mount:
        mount = step.mount
        for transform in step.transforms:
            mount = self._transforms[transform](mount, active)
        return mount

    def _make(self, step: Step, target: str, active: Sequence[ActiveMount]) -> ActiveMount:
        mount = self._prepared(step, active)
        # before it is made: whoever undoes it has to know how
        with open(f"{target}-type", "w") as file:
            file.write(step.handler)
        handler = self._handlers[step.handler] if step.handler else _SYSTEM
        made = handler.mount(mount, target)
        return ActiveMount(made, target, time.time_ns())

    def _take_back(self, number: int) -> None:
        try:
            self._undo(number)
        except (Error, OSError) as error:
            log.warning("mounts %d stay: %s", number, error)

    def _undo(self, number: int) -> None:
        """Unmount what was mounted, the last first, and remove the directory."""
        for target, name in self._records.steps(number):
            self._handlers.get(name, _SYSTEM).unmount(target)
        fs.remove_tree(self._records.folder(number))

    def deactivate(self, scope: Scope, name: str) -> None:
        """Mounts.deactivate."""
        with self._locks.hold((scope.namespace, name)):
            self._deactivate(self._get(scope, name))

    def _deactivate(self, record: Record) -> None:
        self._records.forget(record.number)
        try:
            self._undo(record.number)
        except BaseException as error:
            # what is still mounted keeps its name, to be tried again
            self._records.write(record)
            if isinstance(error, OSError):
                raise Error(f"unmount failed: {error}") from None
            raise
        with self._mutex:
            del self._active[record.namespace, record.activation.name]

    def _get(self, scope: Scope, name: str) -> Record:
        with self._mutex:
            found = self._active.get((scope.namespace, name))
        if found is None:
            raise NotFound(f'mount "{name}"')
        return found

    def info(self, scope: Scope, name: str) -> Activation:
        """Mounts.info."""
        return self._get(scope, name).activation

    def update(self, scope: Scope, activation: Activation, paths: Sequence[str] = ()) -> Activation:
        """Mounts.update."""
        for path in paths:
            if path != "labels" and not path.startswith("labels."):
                raise InvalidArgument(f'cannot update "{path}" field on mount "{activation.name}"')
        with self._locks.hold((scope.namespace, activation.name)):
            old = self._get(scope, activation.name)
            labels = merge_labels(old.activation.labels, activation.labels, paths)
            check_labels(labels)
            record = replace(old, activation=replace(old.activation, labels=labels))
            self._records.write(record)
            with self._mutex:
                self._active[scope.namespace, activation.name] = record
            return record.activation

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> Sequence[Activation]:
        """Mounts.list."""
        wanted = parse_all(filters)
        with self._mutex:
            records = list(self._active.values())
        found = [r.activation for r in records if r.namespace == scope.namespace]
        return sorted(
            (
                a
                for a in found
                if wanted.match(field_adaptor({"name": a.name}, {"labels": a.labels}))
            ),
            key=lambda a: a.name,
        )

    def held(self) -> Sequence[Held]:
        """Every activation, for garbage collection: it needs a lease or somebody that refers."""
        with self._mutex:
            records = list(self._active.values())
        return [
            Held(
                r.namespace,
                r.activation.name,
                r.activation.labels,
                r.lease,
                serial=r.number,
            )
            for r in records
        ]

    def collect(self, garbage: Iterable[Held]) -> None:
        """Deactivate what nothing refers to any more."""
        for found in garbage:
            scope = Scope.of(found.namespace)
            key = found.namespace, found.key
            with self._locks.hold(key, timeout=PATIENCE), contextlib.suppress(NotFound):
                record = self._get(scope, found.key)
                if record.number != found.serial:
                    continue
                try:
                    self._deactivate(record)
                except Error as error:
                    log.warning('mount "%s" stays: %s', found.key, error)

    def close(self) -> None:
        """Let go; what is active stays mounted."""
        if not self._records.numbers():
            unshare(self._records.path)
