"""Push: an image in the content store to a name at a registry."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

from kontti.content.base import Reader, Store
from kontti.diff.media_types import is_nondistributable
from kontti.errors import Canceled, InvalidArgument, NotFound
from kontti.images.graph import find_manifest, walk
from kontti.images.manifest import parse_manifest, read_document
from kontti.images.media_types import kind_of
from kontti.namespaces import Scope
from kontti.registry.pusher import Pusher
from kontti.registry.reference import Reference
from kontti.registry.session import Session
from kontti.transfer.base import Selection, Stores
from kontti.transfer.labels import add_labels, repositories, source_label
from kontti.transfer.progress import Meter, OnProgress, Reporter, silent
from kontti.transfer.referrers import add_referrer
from kontti.transfer.selection import matcher_of
from kontti.values import Descriptor

_CHUNK = 256 << 10


@dataclass(frozen=True, slots=True)
class PushOptions:
    """Platforms given: the best manifest for them alone is pushed, under the name."""

    select: Selection = field(default_factory=Selection)
    allow_nondistributable: bool = False
    max_concurrent_uploads: int = 3


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is uploaded: leaves first, then manifests, then indexes, inner ones first."""

    target: Descriptor
    leaves: tuple[Descriptor, ...]
    documents: tuple[Descriptor, ...]


def push(
    stores: Stores,
    scope: Scope,
    session: Session,
    name: str,
    target: Descriptor,
    *,
    options: PushOptions | None = None,
    progress: OnProgress = silent,
) -> None:
    """Push ``target`` to ``name``; raises NotFound, before any upload, for missing content."""
    reference = Reference.parse(name)
    if not reference.object or not reference.path:
        raise InvalidArgument(f"{name}: object required")
    chosen, content = options or PushOptions(), stores.content(scope)
    plan = plan_push(content, target, chosen)
    reporter = Reporter(progress)
    reporter.tell(f"Pushing to OCI Registry ({name})")
    reporter.of_image("pushing content", name, plan.target)
    run = _Run(content, Pusher(session, reference), session, reference, reporter)
    run.leaves(plan.leaves, chosen.max_concurrent_uploads)
    for document in plan.documents:
        run.document(document, reference.tag if document == plan.target else "")
    reporter.of_image("pushed content", name, plan.target)
    reporter.tell(f"Completed push to OCI Registry ({name})")


def plan_push(content: Store, target: Descriptor, options: PushOptions) -> _Plan:
    """What must be uploaded for ``target``."""
    if options.select.platforms:
        target, _ = find_manifest(content, target, matcher_of(options.select))
    found = [node.descriptor for node in walk(content, target)]
    for descriptor in found:
        _check_present(content, descriptor)
    kinds = {d.digest: kind_of(d.media_type) for d in found}
    manifests = [d for d in found if kinds[d.digest] == "manifest"]
    indexes = [d for d in reversed(found) if kinds[d.digest] == "index"]
    leaves = [d for d in found if kinds[d.digest] not in ("manifest", "index")]
    if not options.allow_nondistributable:
        leaves = [d for d in leaves if not is_nondistributable(d.media_type)]
    return _Plan(target, tuple(leaves), (*manifests, *indexes))


def _check_present(content: Store, descriptor: Descriptor) -> None:
    if is_nondistributable(descriptor.media_type):
        return
    try:
        content.info(descriptor.digest)
    except NotFound as error:
        raise NotFound(f"content digest {descriptor.digest}") from error


class _Body:
    """A blob as a file that tells how far it was read."""

    def __init__(self, reader: Reader, meter: Meter, stop: threading.Event) -> None:
        self._reader, self._meter, self._stop = reader, meter, stop

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; raises Canceled once the push has failed elsewhere."""
        if self._stop.is_set():
            raise Canceled("push")
        count = _CHUNK if size < 0 else min(size, _CHUNK)
        data = self._reader.read_at(self._meter.done, count)
        self._meter.add(len(data))
        return data


@dataclass(frozen=True, slots=True)
class _Run:
    content: Store
    pusher: Pusher
    session: Session
    reference: Reference
    reporter: Reporter
    stop: threading.Event = field(default_factory=threading.Event)

    def leaves(self, leaves: Sequence[Descriptor], workers: int) -> None:
        """Upload blobs, several at a time; the first failure stops the rest."""
        with ThreadPoolExecutor(max(1, workers), "upload") as pool:
            futures = [pool.submit(self._leaf, leaf) for leaf in leaves]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                self.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _leaf(self, leaf: Descriptor) -> None:
        others = repositories(self.content.info(leaf.digest).labels, self.reference)
        source = others[0] if others else ""
        sent = self.pusher.push_blob(leaf, lambda offset: self._body(leaf, offset), source)
        self._done(leaf, "complete" if sent else "already exists")

    @contextmanager
    def _body(self, leaf: Descriptor, offset: int) -> Iterator[_Body]:
        with self.content.reader(leaf.digest) as reader:
            yield _Body(reader, Meter(self.reporter, "uploading", leaf, offset), self.stop)

    def document(self, document: Descriptor, tag: str) -> None:
        """Put a manifest or index, under its tag if it has one."""
        if tag or not self.pusher.exists(document):
            data = read_document(self.content, document)
            listed = self.pusher.push_manifest(document, data, tag)
            if not listed and kind_of(document.media_type) == "manifest":
                manifest = parse_manifest(data, document.media_type)
                add_referrer(self.session, self.reference, document, manifest)
        self._done(document, "complete")

    def _done(self, descriptor: Descriptor, event: str) -> None:
        add_labels(self.content, descriptor.digest, source_label(self.reference))
        self.reporter.blob(event, descriptor, descriptor.size)
