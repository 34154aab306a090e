"""Transfers in this process, between what a client names: pull, push, import, export, tag."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from kontti.content.base import Store
from kontti.errors import InvalidArgument, Unimplemented
from kontti.images.archive_import import Imported, import_index
from kontti.images.graph import walk
from kontti.images.media_types import kind_of
from kontti.metadata.base import Image
from kontti.namespaces import Scope
from kontti.registry.resolver import Resolver
from kontti.transfer.base import DEFAULT_SNAPSHOTTER, PullOptions, Selection, Unpacking
from kontti.transfer.ends import (
    Archive,
    ArchiveWriter,
    End,
    ImageStore,
    NoSuchTransfer,
    Registry,
    UnpackWish,
    supported_for,
)
from kontti.transfer.export import ExportOptions, export_images
from kontti.transfer.import_ import ImportOptions, label_graph
from kontti.transfer.lease import leased
from kontti.transfer.parts import Parts
from kontti.transfer.progress import OnProgress, Reporter, silent
from kontti.transfer.pull import pull
from kontti.transfer.push import PushOptions, push
from kontti.transfer.records import record, record_all
from kontti.transfer.selection import is_wanted, limit_of, matcher_of
from kontti.transfer.settings import Rates, Supported
from kontti.values import Descriptor

log = logging.getLogger(__name__)
COPY = 256 << 10
NO_LIMIT = 16
"""How many at once, where a limit of 0 asks for none."""


@dataclass(frozen=True, slots=True)
class LocalTransfers:
    """``supported`` is what may be unpacked; None: every platform, with every snapshotter.

    ``lazy``: the snapshotters that may get layers by themselves.
    """

    parts: Parts
    rates: Rates = field(default_factory=Rates)
    supported: tuple[Supported, ...] | None = None
    lazy: frozenset[str] = frozenset()

    def run(
        self, scope: Scope, source: End, destination: End, progress: OnProgress = silent
    ) -> None:
        """Do it; raises NoSuchTransfer for what cannot be a transfer, and all that one raises.

        An error raised by ``progress`` ends it.
        """
        match source, destination:
            case Registry(), ImageStore():
                self._pull(scope, source, destination, progress)
            case ImageStore(), Registry():
                self._push(scope, source, destination, progress)
            case Archive(), ImageStore():
                self._import(scope, source, destination, Reporter(progress))
            case ImageStore(), ArchiveWriter():
                self._export(scope, source, destination, progress)
            case ImageStore(), ImageStore():
                self._tag(scope, source, destination)
            case Archive(), ArchiveWriter():
                _copy(source, destination)
            case _:
                names = f"{type(source).__name__} to {type(destination).__name__}"
                raise NoSuchTransfer(f"unable to transfer from {names}")

    def _pull(
        self, scope: Scope, source: Registry, store: ImageStore, progress: OnProgress
    ) -> None:
        unpackings = self.unpackings(store, source.reference)
        options = PullOptions(
            select=store.selection(),
            unpack=unpackings[0] if unpackings else None,
            unpack_also=unpackings[1:],
            skip_metadata=not store.all_metadata,
            max_concurrent_downloads=self.rates.downloads or NO_LIMIT,
            concurrent_layer_fetch_buffer=self.rates.fetch_buffer,
            images=store.named,
        )
        with source.connect() as session:
            resolver = Resolver(session)
            pull(self.parts, scope, resolver, source.reference, options, progress=progress)

    def unpackings(self, store: ImageStore, reference: str = "") -> tuple[Unpacking, ...]:
        """Where the images of ``store`` are unpacked to; what is not supported is left out.

        ``reference`` is where they come from, if that is a registry. Raises InvalidArgument where
        there are wishes, and none is supported.
        """
        wishes = (self._unpacking(wish) for wish in store.unpacks)
        made = tuple(unpacking for unpacking in wishes if unpacking is not None)
        if store.unpacks and not made:
            raise InvalidArgument("unable to initialize unpacker: no unpack platforms defined")
        return tuple(
            replace(m, lazy_name=reference if m.snapshotter in self.lazy else "") for m in made
        )

    def _unpacking(self, wish: UnpackWish) -> Unpacking | None:
        if self.supported is None:
            return Unpacking(wish.snapshotter or DEFAULT_SNAPSHOTTER, platform=wish.platform)
        found = supported_for(wish, self.supported, DEFAULT_SNAPSHOTTER)
        if found is None:
            log.warning("no unpack_config for %s, %s", wish.platform, wish.snapshotter)
            return None
        return Unpacking(
            found.snapshotter,
            platform=wish.platform,
            differ=found.differ,
            config_type=found.config_type,
            layer_types=found.layer_types,
        )

    def _push(
        self, scope: Scope, store: ImageStore, destination: Registry, progress: OnProgress
    ) -> None:
        stores = self.parts.stores
        options = PushOptions(
            Selection(store.platforms), max_concurrent_uploads=self.rates.uploads or NO_LIMIT
        )
        # the lease keeps the collector from removing what is being uploaded
        with leased(stores, scope) as held, destination.connect() as session:
            target = stores.images(held).get(store.name).target
            push(
                stores,
                held,
                session,
                destination.reference,
                target,
                options=options,
                progress=progress,
            )

    def _import(self, scope: Scope, source: Archive, store: ImageStore, reporter: Reporter) -> None:
        reporter.tell("Importing")
        unpackings = self.unpackings(store)
        with leased(self.parts.stores, scope) as held:
            content = self.parts.stores.content(held)
            imported = import_index(source.read, content, compress=source.compress)
            select = store.selection()
            label_graph(content, imported.index, ImportOptions(select=select))
            manifests = _manifests(content, imported, select)
            for unpacking in unpackings:
                unpacker = self.parts.unpacker(held, unpacking, reporter)
                for manifest in manifests:
                    if is_wanted(manifest, unpacking):
                        unpacker.unpack(manifest)
            images = self.parts.stores.images(held)
            record_all(images, _records(imported, store), reporter)
        reporter.tell("Completed import")

    def _export(
        self, scope: Scope, store: ImageStore, destination: ArchiveWriter, progress: OnProgress
    ) -> None:
        if any(reference.is_prefix for reference in store.references):
            raise Unimplemented("prefix lookup on export not implemented")
        names = [*([store.name] if store.name else []), *(r.name for r in store.references)]
        options = ExportOptions(
            Selection(destination.platforms, destination.all_platforms),
            destination.skip_manifest_json,
            destination.skip_nondistributable,
        )
        stores = self.parts.stores
        export_images(stores, scope, names, destination.write, options, progress=progress)
        destination.close()

    def _tag(self, scope: Scope, source: ImageStore, destination: ImageStore) -> None:
        images = self.parts.stores.images(scope)
        target = images.get(source.name).target
        for image in destination.named(target):
            record(images, image.name, image.target, image.labels)


def _copy(source: Archive, destination: ArchiveWriter) -> None:
    """What goes in comes out: for clients that try the way."""
    while data := source.read(COPY):
        destination.write(data)
    destination.close()


def _manifests(content: Store, imported: Imported, select: Selection) -> Sequence[Descriptor]:
    limit = limit_of(select)
    nodes = walk(content, imported.index, matcher_of(select), limit=limit)
    found = (node.descriptor for node in nodes if not node.missing)
    return [descriptor for descriptor in found if kind_of(descriptor.media_type) == "manifest"]


def _records(imported: Imported, store: ImageStore) -> Iterator[Image]:
    """The records for the index and for each image; those without a name get none."""
    yield from store.images(imported.index)
    for _, target in imported.images:
        yield from store.imported(target)
