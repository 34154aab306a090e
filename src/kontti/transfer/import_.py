"""Import: an archive to blobs, image records and snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kontti.content.base import Store
from kontti.errors import NotFound
from kontti.images.archive_import import Imported, Read, import_index
from kontti.images.archive_names import IMAGE_NAME, REF_NAME
from kontti.images.graph import GC_REF, child_labels, walk
from kontti.images.manifest import children
from kontti.metadata.base import Image
from kontti.namespaces import Scope
from kontti.transfer.base import Selection, Unpacked, Unpacking
from kontti.transfer.labels import add_labels
from kontti.transfer.lease import leased
from kontti.transfer.parts import Parts, selected
from kontti.transfer.progress import OnProgress, Reporter, silent
from kontti.transfer.records import record
from kontti.transfer.selection import matcher_of
from kontti.values import EMPTY, Descriptor

LAYER_REF = f"{GC_REF}.l."


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How images are named, and what is done with them.

    ``prefix`` is put before a bare tag; with ``filter_prefix`` a full name must begin with it.
    ``digests`` adds a name by digest, not to named images with ``skip_digest_for_named``.
    ``unpack`` None leaves layers packed; ``compress`` gzips plain layers of docker archives.
    With ``discard_unpacked_layers`` the collector may take the blobs of layers after that.
    """

    prefix: str = ""
    filter_prefix: bool = False
    digests: bool = False
    skip_digest_for_named: bool = False
    index_name: str = ""
    select: Selection = field(default_factory=Selection)
    unpack: Unpacking | None = field(default_factory=Unpacking)
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    compress: bool = False
    discard_unpacked_layers: bool = False


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The image records made, in the archive's order, and what was unpacked."""

    images: tuple[Image, ...]
    unpacked: tuple[Unpacked, ...] = ()


def import_archive(
    parts: Parts,
    scope: Scope,
    read: Read,
    options: ImportOptions | None = None,
    *,
    progress: OnProgress = silent,
) -> ImportResult:
    """Read an archive from ``read(count)``; records are made last, when all else has succeeded."""
    chosen, reporter = options or ImportOptions(), Reporter(progress)
    reporter.tell("Importing")
    with leased(parts.stores, scope) as held:
        content = parts.stores.content(held)
        imported = import_index(read, content, compress=chosen.compress)
        label_graph(content, imported.index, chosen)
        targets = dict(name_images(imported, chosen))
        unpacked = _unpack(parts, held, targets, chosen, reporter)
        store = parts.stores.images(held)
        made = tuple(record(store, name, t, chosen.labels) for name, t in targets.items())
    for image in made:
        reporter.tell("saved", image.name)
    reporter.tell("Completed import")
    return ImportResult(made, unpacked)


def label_graph(content: Store, root: Descriptor, options: ImportOptions) -> None:
    """Label every document for the collector.

    Raises NotFound where one of a wanted platform is absent, or there is no document at all.
    """
    empty = True
    for node in walk(content, root, matcher_of(options.select)):
        if node.missing:
            raise NotFound(f"content digest {node.descriptor.digest}")
        empty = empty and not node.children
        labels = child_labels(children(content, node.descriptor))
        if options.discard_unpacked_layers:
            labels = {k: v for k, v in labels.items() if not k.startswith(LAYER_REF)}
        add_labels(content, node.descriptor.digest, labels)
    if empty:
        raise NotFound("image might be filtered out")


def name_images(imported: Imported, options: ImportOptions) -> Iterator[tuple[str, Descriptor]]:
    """The names that the images of an archive are recorded by."""
    if options.index_name:
        yield options.index_name, imported.index
    for _, target in imported.images:
        name = name_of(target.annotations, options)
        if name:
            yield name, target
        if options.digests and not (name and options.skip_digest_for_named):
            yield f"{options.prefix}@{target.digest}", target


def name_of(annotations: Mapping[str, str], options: ImportOptions) -> str:
    """The name by the annotations; "" for an image that gets none."""
    full, name = annotations.get(IMAGE_NAME, ""), annotations.get(REF_NAME, "")
    if full or not name:
        return full
    if not options.prefix:
        return name
    if not set(name) & set("/:@"):
        return f"{options.prefix}:{name}"
    return name if not options.filter_prefix or has_prefix(name, options.prefix) else ""


def has_prefix(name: str, prefix: str) -> bool:
    """Whether ``name`` is ``prefix`` or goes on from it at a border."""
    rest = name.removeprefix(prefix)
    return name.startswith(prefix) and (not rest or rest[0] in "/:@")


def _unpack(
    parts: Parts,
    scope: Scope,
    targets: Mapping[str, Descriptor],
    options: ImportOptions,
    reporter: Reporter,
) -> tuple[Unpacked, ...]:
    if options.unpack is None:
        return ()
    unpacker = parts.unpacker(scope, options.unpack, reporter)
    found = (selected(unpacker.content, t, options.select) for t in targets.values())
    wanted = {descriptor.digest: descriptor for part in found for descriptor in part}
    return tuple(done for d in wanted.values() if (done := unpacker.unpack(d)))
