"""What images, snapshots and containers take on the disk, and what would be freed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kontti.content.base import Provider
from kontti.engine.base import Core
from kontti.errors import DeadlineExceeded, NotFound, Unavailable
from kontti.images.graph import walk
from kontti.images.identity import chain_ids
from kontti.images.manifest import read_config
from kontti.images.media_types import kind_of
from kontti.metadata.base import Container, Image
from kontti.namespaces import Scope
from kontti.snapshots.base import Kind, Snapshotter
from kontti.values import Descriptor

PACKED = ""
Item = tuple[str, str]
"""A snapshotter and a key of it, or ``PACKED`` and a blob's digest."""


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """What one image takes, in bytes; ``unpacked`` is by snapshotter.

    ``shared`` is what other images have too, ``unique`` the rest, ``reclaimable`` what removing
    this name alone would free: nothing of an image that a container uses.
    """

    name: str
    digest: str
    compressed: int
    unpacked: Mapping[str, int]
    shared: int
    unique: int
    reclaimable: int
    containers: int


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """What a container wrote, in bytes."""

    id: str
    snapshotter: str
    size: int


@dataclass(frozen=True, slots=True)
class Total:
    """All things of a kind: each counted once. ``snapshotter`` is "" for blobs."""

    kind: str
    snapshotter: str
    count: int
    size: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What a namespace takes. ``totals`` are of blobs, then by snapshotter of layers and others.

    ``left_out`` is by snapshotter why what it has is not known.
    """

    images: tuple[ImageUsage, ...]
    containers: tuple[ContainerUsage, ...]
    totals: tuple[Total, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Survey:
    """Everything a namespace holds: items with their sizes, parents, and the images they are of."""

    sizes: dict[Item, int] = field(default_factory=dict)
    parents: dict[Item, Item] = field(default_factory=dict)
    kinds: dict[Item, Kind] = field(default_factory=dict)
    images: dict[str, frozenset[Item]] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    containers: Sequence[Container] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    def total(self, items: frozenset[Item] | set[Item]) -> int:
        """Bytes of ``items``."""
        return sum(self.sizes[item] for item in items)

    def held(self) -> set[Item]:
        """The snapshots that containers stand on, and their own."""
        found: set[Item] = set()
        for container in self.containers:
            item: Item | None = (container.snapshotter, container.snapshot_key)
            while item in self.sizes and item not in found:
                found.add(item)
                item = self.parents.get(item)
        return found

    def used(self) -> frozenset[str]:
        """Names of images that containers are of."""
        return frozenset(c.image for c in self.containers)


def disk_usage(core: Core, scope: Scope) -> DiskUsage:
    """What the namespace's images, layers and containers take."""
    survey = look(core, scope)
    containers = (_container_usage(survey, c) for c in survey.containers if c.snapshot_key)
    images, totals = _image_usages(survey), tuple(_totals(survey))
    return DiskUsage(images, tuple(containers), totals, survey.left_out)


def look(core: Core, scope: Scope) -> Survey:
    """Read everything once. What goes away meanwhile is left out."""
    stores, survey = core.stores, Survey(containers=core.stores.containers(scope).list())
    content = stores.content(scope)
    for blob in content.walk():
        survey.sizes[PACKED, blob.digest] = blob.size
    names = core.snapshotters()
    for name in names:
        try:
            _add_snapshots(survey, stores.snapshots(scope, name), name)
        except (Unavailable, DeadlineExceeded) as error:
            # another process, which may be gone
            survey.left_out[name] = error.message
    for image in stores.images(scope).list():
        survey.images[image.name] = frozenset(_items(survey, content, image, names))
        survey.targets[image.name] = image.target.digest
    return survey


def _add_snapshots(survey: Survey, snapshots: Snapshotter, name: str) -> None:
    for info in list(snapshots.walk()):
        try:
            survey.sizes[name, info.name] = snapshots.usage(info.name).size
        except NotFound:
            continue
        survey.kinds[name, info.name] = info.kind
        if info.parent:
            survey.parents[name, info.name] = (name, info.parent)


def _items(
    survey: Survey, content: Provider, image: Image, snapshotters: Sequence[str]
) -> Iterator[Item]:
    for node in walk(content, image.target):
        blob = (PACKED, node.descriptor.digest)
        if blob in survey.sizes:
            yield blob
        if kind_of(node.descriptor.media_type) == "manifest" and not node.missing:
            chain = _chain(content, node.children)
            names = ((name, key) for name in snapshotters for key in chain)
            yield from (item for item in names if item in survey.sizes)


def _chain(content: Provider, children: Sequence[Descriptor]) -> Sequence[str]:
    configs = [child for child in children if kind_of(child.media_type) == "config"]
    try:
        return chain_ids(read_config(content, configs[0]).diff_ids) if configs else ()
    except NotFound:
        return ()


def _image_usages(survey: Survey) -> tuple[ImageUsage, ...]:
    owners: dict[Item, int] = {}
    for items in survey.images.values():
        for item in items:
            owners[item] = owners.get(item, 0) + 1
    held, counts = survey.held(), _counts(survey)
    found = []
    for name, items in survey.images.items():
        unique = {item for item in items if owners[item] == 1}
        used = counts.get(name, 0)
        found.append(
            ImageUsage(
                name,
                survey.targets[name],
                survey.total({item for item in items if item[0] == PACKED}),
                _by_snapshotter(survey, items),
                survey.total(items - unique),
                survey.total(unique),
                0 if used else survey.total(unique - held),
                used,
            )
        )
    return tuple(found)


def _counts(survey: Survey) -> dict[str, int]:
    counts: dict[str, int] = {}
    for container in survey.containers:
        counts[container.image] = counts.get(container.image, 0) + 1
    return counts


def _by_snapshotter(survey: Survey, items: frozenset[Item]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for item in sorted(items):
        if item[0] != PACKED:
            sizes[item[0]] = sizes.get(item[0], 0) + survey.sizes[item]
    return sizes


def _container_usage(survey: Survey, container: Container) -> ContainerUsage:
    item = (container.snapshotter, container.snapshot_key)
    return ContainerUsage(container.id, container.snapshotter, survey.sizes.get(item, 0))


def _totals(survey: Survey) -> Iterator[Total]:
    of_images = frozenset[Item]().union(*survey.images.values())
    used = survey.used()
    needed = survey.held().union(*(i for name, i in survey.images.items() if name in used))
    groups: dict[tuple[str, str], set[Item]] = {("blobs", PACKED): set()}
    for item in sorted(survey.sizes):
        groups.setdefault((_kind(survey, item), item[0]), set()).add(item)
    for (kind, snapshotter), items in groups.items():
        # what no image has is the collector's to judge: a lease or a label may keep it
        free = (items & of_images) - needed
        yield Total(kind, snapshotter, len(items), survey.total(items), survey.total(free))


def _kind(survey: Survey, item: Item) -> str:
    if item[0] == PACKED:
        return "blobs"
    return "layers" if survey.kinds[item] is Kind.COMMITTED else "writable"
