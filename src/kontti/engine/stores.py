"""The composition root: opens the stores in their order, and closes them in reverse."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

from kontti.content.base import Store as ContentStore
from kontti.content.local import LocalStore
from kontti.diff.base import Applier, Comparer, Limits
from kontti.diff.workers import Workers
from kontti.engine.lock import RootLock
from kontti.errors import Error, Unimplemented
from kontti.events.exchange import LocalExchange
from kontti.metadata.backup import Backup
from kontti.metadata.base import Collected
from kontti.metadata.leases import CONTENT, SNAPSHOTS
from kontti.metadata.rebuild import Here, ensure
from kontti.metadata.scheduler import Policy, Scheduler
from kontti.metadata.store import MetadataStore
from kontti.namespaces import Scope
from kontti.snapshots import btrfs, erofs, overlay
from kontti.snapshots.base import Snapshotter
from kontti.snapshots.blockfile import BlockfileSnapshotter
from kontti.snapshots.btrfs import BtrfsSnapshotter
from kontti.snapshots.erofs import ErofsSnapshotter
from kontti.snapshots.native import NativeSnapshotter
from kontti.snapshots.overlay import OverlaySnapshotter
from kontti.tasks.checkpoints import ContentCheckpoints
from kontti.transfer.verifiers import BinDir, Verifier

if TYPE_CHECKING:
    from kontti.diff.chain import Differ
    from kontti.transfer.foresight import Foresight
    from kontti.transfer.parts import Parts

log = logging.getLogger(__name__)
CONTENT_DIR = "io.containerd.content.v1.content"
OPEN_MARK = "open"
"""There while the root is open: whoever finds it when opening comes after a crash."""
METADATA_DIR = "io.containerd.metadata.v1.sqlite"
SNAPSHOTTER_DIR = "io.containerd.snapshotter.v1."


class ContentProxy(ContentStore, Protocol):
    """A content store that another process is."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where things are kept and how; options are by snapshotter and named as in config.toml."""

    root: str
    owner: str = "an embedded engine"
    gc: Policy = field(default_factory=Policy)
    sharing_policy: str = "shared"
    overlay_root: str = ""
    overlay_options: Mapping[str, object] = field(default_factory=dict)
    native_root: str = ""
    btrfs_root: str = ""
    blockfile_root: str = ""
    blockfile_options: Mapping[str, object] = field(default_factory=dict)
    erofs_root: str = ""
    erofs_mount_options: tuple[str, ...] = ()
    erofs_refused: tuple[str, ...] = ()
    """Settings that are asked for, and not there."""
    disabled_snapshotters: tuple[str, ...] = ()
    warm_workers: int = 0
    max_concurrent_unpacks: int = 0
    limits: Limits = field(default_factory=Limits)
    snapshotter_proxies: Mapping[str, Snapshotter] = field(default_factory=dict)
    content_proxy: ContentProxy | None = None
    """Used in the place of the local content store."""
    differs: tuple[Callable[[Scope], Differ] | None, ...] = (None,)
    """Those that are asked, in their order; None is ours."""
    verifiers: tuple[Verifier, ...] = (BinDir(),)
    named_differs: Mapping[str, Callable[[Scope], Differ] | None] = field(default_factory=dict)
    """Those that images may be unpacked with alone."""


def begin(mark: str) -> bool:
    """Note that a root is open now; whether it was left so."""
    try:
        with open(mark, "x"):
            return False
    except FileExistsError:
        return True


class Stores:
    """Everything on disk, open. ``failures`` says why a snapshotter is not there."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self.failures: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(RootLock(settings.root, settings.owner))
            self.was_unclean = begin(os.path.join(settings.root, OPEN_MARK))
            stack.callback(os.unlink, os.path.join(settings.root, OPEN_MARK))
            self.exchange = LocalExchange()
            self.content = self._open_content(stack)
            self.snapshotters = self._open_snapshotters()
            for snapshotter in self.snapshotters.values():
                stack.callback(snapshotter.close)
            database = os.path.join(settings.root, METADATA_DIR, "meta.db")
            ensure(database, self._here())
            self.metadata = MetadataStore(
                database,
                self.content,
                self.snapshotters,
                self.exchange,
                policy=settings.sharing_policy,
                elsewhere=self._elsewhere(),
            )
            stack.callback(self.metadata.close)
            self.workers = Workers(warm=settings.warm_workers)
            stack.callback(self.workers.close)
            self.backup = Backup(self.metadata, database)
            stack.callback(self.backup.keep, closing=True)
            self.gc = Scheduler(self._collect, settings.gc)
            self.metadata.on_mutation(self.gc.mutated)
            self.gc.start()
            stack.callback(self.gc.stop)
            self._stack = stack.pop_all()

    def _collect(self) -> Collected:
        collected = self.metadata.collect()
        self.backup.keep()
        return collected

    def _open_content(self, stack: contextlib.ExitStack) -> ContentStore:
        proxy = self.settings.content_proxy
        if proxy is None:
            return LocalStore(os.path.join(self.settings.root, CONTENT_DIR))
        stack.callback(proxy.close)
        return proxy

    def _elsewhere(self) -> set[str]:
        names = {SNAPSHOTS + name for name in self.settings.snapshotter_proxies}
        return names if self.settings.content_proxy is None else {CONTENT, *names}

    def _here(self) -> Here:
        """The backends that start-up may wait for."""
        elsewhere = self._elsewhere()
        own = {n: s for n, s in self.snapshotters.items() if SNAPSHOTS + n not in elsewhere}
        content = None if CONTENT in elsewhere else self.content
        return Here(content, own, others=bool(elsewhere))

    def _open_snapshotters(self) -> dict[str, Snapshotter]:
        makers: dict[str, Callable[[], Snapshotter]] = {
            "overlayfs": self._open_overlay,
            "erofs": self._open_erofs,
            "native": self._open_native,
            "btrfs": self._open_btrfs,
            "blockfile": self._open_blockfile,
        }
        opened = dict(self.settings.snapshotter_proxies)
        for name, make in makers.items():
            if name in self.settings.disabled_snapshotters:
                continue
            try:
                opened[name] = make()
            except Unimplemented as error:
                self.failures[name] = error.message
                log.info("snapshotter %s is not there: %s", name, error)
            except (Error, OSError) as error:
                self.failures[name] = str(error)
                log.warning("snapshotter %s is not there: %s", name, error)
        return opened

    def _open_overlay(self) -> Snapshotter:
        root = self.settings.overlay_root or self._snapshotter_root("overlayfs")
        overlay.supported(root)
        return OverlaySnapshotter(root, **self.settings.overlay_options)  # type: ignore[arg-type]

    def _open_erofs(self) -> Snapshotter:
        if self.settings.erofs_refused:
            names = ", ".join(self.settings.erofs_refused)
            raise Unimplemented(f"erofs: {names}")
        root = self.settings.erofs_root or self._snapshotter_root("erofs")
        erofs.supported(root)
        return ErofsSnapshotter(root, ovl_mount_options=self.settings.erofs_mount_options)

    def _open_native(self) -> Snapshotter:
        return NativeSnapshotter(self.settings.native_root or self._snapshotter_root("native"))

    def _open_btrfs(self) -> Snapshotter:
        root = self.settings.btrfs_root or self._snapshotter_root("btrfs")
        btrfs.supported(root)
        return BtrfsSnapshotter(root)

    def _open_blockfile(self) -> Snapshotter:
        root = self.settings.blockfile_root or self._snapshotter_root("blockfile")
        return BlockfileSnapshotter(root, **self.settings.blockfile_options)  # type: ignore[arg-type]

    def _snapshotter_root(self, name: str) -> str:
        return os.path.join(self.settings.root, SNAPSHOTTER_DIR + name)

    def capabilities(self) -> dict[str, tuple[str, ...]]:
        """What snapshotters can do on this host, where that is not the same everywhere."""
        return {
            name: (*snapshotter.remapping(), *snapshotter.capabilities)
            for name, snapshotter in self.snapshotters.items()
            if isinstance(snapshotter, OverlaySnapshotter)
        }

    def applier(self, scope: Scope) -> Applier:
        """Applies layers of the scope's content."""
        return self._first(self.settings.differs, scope)

    def _first(self, makers: Sequence[Callable[[Scope], Differ] | None], scope: Scope) -> Applier:
        # what moves layers is loaded when the first is moved: most commands move none
        from kontti.diff.applier import LayerApplier
        from kontti.diff.chain import FirstApplier

        content = self.metadata.content(scope)
        erofs_store = self.snapshotters.get("erofs")
        images = erofs_store.trees if isinstance(erofs_store, ErofsSnapshotter) else ""
        limits = self.settings.limits
        ours = LayerApplier(content, self.workers, limits=limits, images=images)
        differs = [make(scope) if make else ours for make in makers]
        return differs[0] if len(differs) == 1 else FirstApplier(differs)

    def client_applier(self, scope: Scope) -> Applier:
        """``applier``, for clients that have an image's layers applied one after another."""
        from kontti.diff.applier import LayerApplier
        from kontti.transfer.foresight import ForeseeingApplier, following

        ours, foresight = self.applier(scope), self._foresight
        if foresight is None or not isinstance(ours, LayerApplier):
            return ours
        content = self.metadata.content(scope)
        tell = partial(following, content, content.labelled)
        return ForeseeingApplier(ours, foresight, scope.namespace, tell)

    @cached_property
    def _foresight(self) -> Foresight | None:
        from kontti.transfer.flights import Unpacks
        from kontti.transfer.foresight import Foresight

        count = Unpacks(self.settings.max_concurrent_unpacks).count
        found = (self.snapshotters.get(name) for name in ("overlayfs", "erofs"))
        folders = {type(s): s.trees for s in found if isinstance(s, OverlaySnapshotter)}
        if count < 2 or not folders:
            return None
        return Foresight(tuple(folders.values()), count, folders.get(ErofsSnapshotter, ""))

    def comparer(self, scope: Scope) -> Comparer:
        """Makes layers in the scope's content."""
        from kontti.diff.chain import FirstComparer
        from kontti.diff.differ import WalkingDiffer

        ours = WalkingDiffer(self.metadata.content(scope), self.workers)
        differs = [differ(scope) if differ else ours for differ in self.settings.differs]
        return differs[0] if len(differs) == 1 else FirstComparer(differs)

    def checkpoints(self) -> ContentCheckpoints:
        """What keeps the state of tasks."""
        return ContentCheckpoints(self.metadata.content, self.applier, self.comparer)

    def transfer_parts(self) -> Parts:
        """What pull, push, import and export work on."""
        return self._parts

    @cached_property
    def _parts(self) -> Parts:
        # one for all transfers: it is what keeps two from doing the same work
        from kontti.transfer.flights import Unpacks
        from kontti.transfer.parts import Parts

        unpacks = Unpacks(self.settings.max_concurrent_unpacks)
        named = self.settings.named_differs.items()
        differs = {name: partial(self._first, (make,)) for name, make in named}
        return Parts(
            self.metadata,
            self.applier,
            unpacks=unpacks,
            verifiers=self.settings.verifiers,
            differs=differs,
        )

    def close(self) -> None:
        """Close everything; the root is free for another owner after it."""
        foresight = self.__dict__.get("_foresight")
        if foresight is not None:
            foresight.close()
        self._stack.close()
