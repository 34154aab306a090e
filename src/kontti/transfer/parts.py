"""What every transfer works with, and unpacking of what is in the content store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from kontti.content.base import Store
from kontti.diff.base import Applier
from kontti.errors import NotFound
from kontti.images.graph import find_manifest, walk
from kontti.images.manifest import read_config, read_manifest
from kontti.images.media_types import kind_of
from kontti.namespaces import Scope
from kontti.registry.parallel import Slots
from kontti.transfer.base import Selection, Stores, Unpacked, Unpacking
from kontti.transfer.flights import Flights, Unpacks
from kontti.transfer.incoming import ALL_THERE, Blobs
from kontti.transfer.lease import keep, leased
from kontti.transfer.progress import OnProgress, Reporter, silent
from kontti.transfer.selection import limit_of, matcher_of
from kontti.transfer.unpack import Unpacker, hinted, is_unpackable, layers_of
from kontti.transfer.verifiers import Verifier
from kontti.values import Descriptor

# of all pulls of a process together
MAX_DOWNLOADS = 16


@dataclass(frozen=True, slots=True)
class Parts:
    """The stores, what applies layers within a scope, and what keeps work from being done twice.

    ``slots`` is what all downloads share, ``unpacks`` all that is unpacked. ``differs`` are those
    that can be asked for by name, ``verifiers`` who is asked whether an image may be pulled.
    """

    stores: Stores
    applier: Callable[[Scope], Applier]
    flights: Flights = field(default_factory=Flights)
    slots: Slots = field(default_factory=lambda: Slots(MAX_DOWNLOADS))
    unpacks: Unpacks = field(default_factory=Unpacks)
    verifiers: tuple[Verifier, ...] = ()
    differs: Mapping[str, Callable[[Scope], Applier]] = field(default_factory=dict)

    def unpacker(self, scope: Scope, options: Unpacking, reporter: Reporter) -> ManifestUnpacker:
        """Unpacks manifests in ``scope``; raises NotFound for a differ of another name."""
        content = self.stores.content(scope)
        snapshots = self.stores.snapshots(scope, options.snapshotter)
        applier = self._applier(options.differ)(scope)
        unpacker = Unpacker(
            content,
            snapshots,
            applier,
            options,
            reporter,
            self.flights,
            scope.namespace,
            partial(keep, self.stores, scope),
            self.unpacks,
        )
        return ManifestUnpacker(content, unpacker)

    def _applier(self, differ: str) -> Callable[[Scope], Applier]:
        if differ and differ not in self.differs:
            raise NotFound(f"differ {differ!r:.80}")
        return self.differs[differ] if differ else self.applier


@dataclass(frozen=True, slots=True)
class ManifestUnpacker:
    """Unpacks whole manifests."""

    content: Store
    unpacker: Unpacker

    def unpack(self, descriptor: Descriptor, blobs: Blobs = ALL_THERE) -> Unpacked | None:
        """Unpack a manifest, as its blobs come; None where it is not an image's."""
        manifest = read_manifest(self.content, descriptor)
        options = self.unpacker.options
        if not is_unpackable(descriptor, manifest, options):
            return None
        blobs.fetched(manifest.config)
        config = read_config(self.content, manifest.config)
        layers = layers_of(manifest, config, options.layer_types)
        if name := options.lazy_name:
            layers = hinted(layers, name, descriptor.digest)
        chain_id = self.unpacker.unpack(layers, manifest.config, blobs)
        return Unpacked(descriptor, chain_id)


def selected(content: Store, target: Descriptor, select: Selection) -> Iterator[Descriptor]:
    """The manifests of ``target`` that ``select`` means; raises NotFound where there is none."""
    matcher = matcher_of(select)
    best, _ = find_manifest(content, target, matcher)
    limit = limit_of(select)
    if limit == 1:
        yield best
        return
    for node in walk(content, target, matcher, limit=limit):
        if kind_of(node.descriptor.media_type) == "manifest" and not node.missing:
            yield node.descriptor


def unpack(
    parts: Parts,
    scope: Scope,
    target: Descriptor,
    options: Unpacking | None = None,
    select: Selection | None = None,
    *,
    progress: OnProgress = silent,
) -> tuple[Unpacked, ...]:
    """Unpack an image that is in the content store. Raises NotFound for what is not there."""
    reporter = Reporter(progress)
    with leased(parts.stores, scope) as held:
        unpacker = parts.unpacker(held, options or Unpacking(), reporter)
        manifests = selected(unpacker.content, target, select or Selection())
        return tuple(done for m in manifests if (done := unpacker.unpack(m)))
