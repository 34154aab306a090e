"""Pull: a name at a registry to an image record, its blobs and its snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kontti.content.base import Store
from kontti.errors import FailedPrecondition, InvalidArgument, NotFound
from kontti.images.graph import MAX_BLOBS, MAX_DEPTH, child_labels
from kontti.images.manifest import (
    MAX_DOCUMENT,
    check_known,
    children,
)
from kontti.images.media_types import kind_of
from kontti.images.platforms import Matcher, select
from kontti.metadata.base import Image
from kontti.namespaces import Scope
from kontti.registry.parallel import Chunking
from kontti.registry.reference import Reference
from kontti.registry.resolver import Resolver
from kontti.transfer.base import Pulled, PullOptions, Unpacked
from kontti.transfer.download import Downloads, Sink
from kontti.transfer.incoming import Blobs
from kontti.transfer.labels import add_labels, source_label
from kontti.transfer.lazy import OnDemand
from kontti.transfer.lease import leased
from kontti.transfer.parts import Parts
from kontti.transfer.progress import OnProgress, Reporter, silent
from kontti.transfer.records import record_all
from kontti.transfer.selection import is_wanted, limit_of, matcher_of
from kontti.transfer.verifiers import verify
from kontti.values import Descriptor

_DOCUMENTS = frozenset(("index", "manifest"))


def pull(
    parts: Parts,
    scope: Scope,
    resolver: Resolver,
    name: str,
    options: PullOptions | None = None,
    *,
    progress: OnProgress = silent,
) -> Pulled:
    """Pull ``name``; when this returns the image is recorded, complete and, if asked, unpacked.

    Raises what the registry, a store or a hostile image makes it raise, and then leaves no record,
    no snapshot of a half layer and no lease. An error raised by ``progress`` ends it.
    """
    chosen = options or PullOptions()
    reference = Reference.parse(name)
    reporter = Reporter(progress)
    reporter.tell(f"Resolving from OCI Registry ({reference})")
    _, target = resolver.resolve(reference)
    check_target(target)
    verify(parts.verifiers, name, target)
    with leased(parts.stores, scope, chosen.lease_seconds) as held:
        reporter.tell(f"Pulling from OCI Registry ({reference})")
        reporter.of_image("fetching image content", name, target)
        unpacked = _Run(parts, held, chosen, reporter).fetch(resolver, reference, target)
        wanted = chosen.images(target) if chosen.images else [Image(name, target, chosen.labels)]
        images = record_all(parts.stores.images(held), wanted, reporter)
    reporter.tell(f"Completed pull from OCI Registry ({reference})")
    return Pulled(images[0], unpacked)


@dataclass(frozen=True, slots=True)
class _Run:
    parts: Parts
    scope: Scope
    options: PullOptions
    reporter: Reporter

    def fetch(
        self, resolver: Resolver, reference: Reference, target: Descriptor
    ) -> tuple[Unpacked, ...]:
        content = self.parts.stores.content(self.scope)
        labels = source_label(reference)
        flights, slots = self.parts.flights, self.parts.slots
        sink = Sink(content, self._unleased, self.reporter, flights, labels, slots)
        workers = self.options.max_concurrent_downloads
        chunking = Chunking(self.options.concurrent_layer_fetch_buffer, workers, slots)
        source = resolver.fetcher(reference, chunking)
        with Downloads(source, sink, workers) as downloads:
            manifests = list(Graph(content, downloads, self.options).fetch(target))
            unpacked = self._unpack(content, manifests, downloads)
            downloads.finish()
        return unpacked

    def _unleased(self) -> Store:
        return self.parts.stores.content(Scope(self.scope.namespace))

    def _unpack(
        self, content: Store, manifests: Sequence[Descriptor], downloads: Downloads
    ) -> tuple[Unpacked, ...]:
        found: list[Unpacked] = []
        for options in self.options.unpackings:
            unpacker = self.parts.unpacker(self.scope, options, self.reporter)
            for manifest in (manifest for manifest in manifests if is_wanted(manifest, options)):
                unpacked = unpacker.unpack(manifest, self._blobs(content, manifest, downloads))
                found += [] if unpacked is None else [unpacked]
        if self.options.is_lazy:
            # what nobody unpacked is of no use where it is
            for manifest in (m for m in manifests if m not in [u.manifest for u in found]):
                for blob in children(content, manifest):
                    downloads.start(blob)
        return tuple(found)

    def _blobs(self, content: Store, manifest: Descriptor, downloads: Downloads) -> Blobs:
        if not self.options.is_lazy:
            return downloads
        return OnDemand(downloads, children(content, manifest)[1:])


def check_target(target: Descriptor) -> None:
    """Raises NotFound where a name stands for what is no image."""
    check_known(target.media_type)
    if kind_of(target.media_type) not in _DOCUMENTS:
        raise NotFound(f"unexpected media type {target.media_type} for {target.digest}")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A blob to fetch; ``whole`` is false where only metadata is."""

    descriptor: Descriptor
    whole: bool


@dataclass(frozen=True, slots=True)
class Graph:
    """Fetches documents level by level, and starts all other downloads as they are found."""

    content: Store
    downloads: Downloads
    options: PullOptions

    def fetch(self, root: Descriptor) -> Iterator[Descriptor]:
        """The manifests whose layers are wanted, once all documents are there."""
        level = [_Wanted(root, True)]
        seen: dict[str, int] = {root.digest: True}
        for _ in range(MAX_DEPTH + 1):
            if not level:
                return
            self._start(level)
            found = []
            for item in level:
                if kind_of(item.descriptor.media_type) in _DOCUMENTS:
                    found += self._children(item)
                    if item.whole and kind_of(item.descriptor.media_type) == "manifest":
                        yield item.descriptor
            # what was fetched for its metadata may turn out to be wanted whole
            level = [f for f in _best(found) if f.whole > seen.get(f.descriptor.digest, -1)]
            seen |= {f.descriptor.digest: f.whole for f in level}
            if len(seen) > MAX_BLOBS:
                break
        raise FailedPrecondition(f"image {root.digest} refers to too many blobs")

    def _start(self, level: Sequence[_Wanted]) -> None:
        for item in level:
            descriptor = item.descriptor
            if kind_of(descriptor.media_type) in _DOCUMENTS and descriptor.size > MAX_DOCUMENT:
                raise InvalidArgument(
                    f"{descriptor.digest} is too large to read: {descriptor.size} bytes"
                )
            self.downloads.start(descriptor)

    def _children(self, item: _Wanted) -> list[_Wanted]:
        descriptor = item.descriptor
        self.downloads.fetched(descriptor)
        found = children(self.content, descriptor)
        # all of them are labelled: those that are not fetched now may be later
        add_labels(self.content, descriptor.digest, child_labels(found))
        self.downloads.tell_of(descriptor, found)
        if kind_of(descriptor.media_type) == "index":
            return self._of_index(item, found)
        layers = item.whole and not (self.options.metadata_only or self.options.is_lazy)
        return [_Wanted(child, True) for child in (found if layers else found[:1])]

    def _of_index(self, item: _Wanted, found: Sequence[Descriptor]) -> list[_Wanted]:
        chosen = choose(found, matcher_of(self.options.select), limit_of(self.options.select))
        if item.whole and not chosen:
            raise NotFound(f"no match for platform in manifest {item.descriptor.digest}")
        wanted = [_Wanted(child, item.whole) for child in chosen]
        if self.options.skip_metadata:
            return wanted
        return wanted + [_Wanted(child, False) for child in found if child not in chosen]


def choose(found: Sequence[Descriptor], matcher: Matcher, limit: int) -> tuple[Descriptor, ...]:
    """The entries of an index that are documents of wanted platforms."""
    return select([d for d in found if kind_of(d.media_type) in _DOCUMENTS], matcher, limit)


def _best(found: Sequence[_Wanted]) -> list[_Wanted]:
    """Each blob once, whole if anything wants it whole."""
    best: dict[str, _Wanted] = {}
    for item in found:
        if item.whole or item.descriptor.digest not in best:
            best[item.descriptor.digest] = item
    return list(best.values())
