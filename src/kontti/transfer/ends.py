"""What a transfer goes from and to, as a client names it: registries, image stores, archives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kontti.errors import NotFound, Unimplemented
from kontti.images.archive_names import IMAGE_NAME, REF_NAME
from kontti.images.platforms import normalize, only
from kontti.metadata.base import Image
from kontti.registry.session import Session
from kontti.transfer.base import Selection
from kontti.transfer.import_ import has_prefix
from kontti.transfer.lease import EXPIRE_LABEL
from kontti.transfer.settings import Supported
from kontti.values import EMPTY, Descriptor, Platform

PARENT_LABEL = "containerd.io/gc.bref.image"


class NoSuchTransfer(Unimplemented):
    """There is no transfer from the one end to the other."""


@dataclass(frozen=True, slots=True)
class Registry:
    """An image at a registry. ``connect`` opens a session that is closed with the transfer."""

    reference: str
    connect: Callable[[], Session]

    def __str__(self) -> str:
        return f"OCI Registry ({self.reference})"


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A further name of an image, or how its name is made of what an archive says.

    ``prefix`` is put before a bare tag; a full name must begin with it unless ``overwrite``.
    ``digest`` adds a name by digest, not to named images with ``skip_named_digest``.
    """

    name: str
    is_prefix: bool = False
    overwrite: bool = False
    digest: bool = False
    skip_named_digest: bool = False


@dataclass(frozen=True, slots=True)
class UnpackWish:
    """A platform to unpack, and the snapshotter, "" for the default."""

    platform: Platform
    snapshotter: str = ""


@dataclass(frozen=True, slots=True)
class ImageStore:
    """Images of the daemon: the one named ``name``, what it is filtered by and unpacked to.

    No platforms are all of them.
    """

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    platforms: tuple[Platform, ...] = ()
    all_metadata: bool = False
    manifest_limit: int = 0
    references: tuple[ImageReference, ...] = ()
    unpacks: tuple[UnpackWish, ...] = ()

    def selection(self) -> Selection:
        """The manifests that are meant."""
        return Selection(self.platforms, not self.platforms, self.manifest_limit)

    def named(self, target: Descriptor) -> list[Image]:
        """The records for ``target``; raises NotFound where there are none."""
        found = self.images(target)
        if not found:
            raise NotFound("no image name found")
        return found

    def images(self, target: Descriptor) -> list[Image]:
        """The records for ``target`` by the names given."""
        found = [Image(self.name, target, self.labels)] if self.name else []
        for reference in self.references:
            if reference.digest:
                found.append(self._further(f"{reference.name}@{target.digest}", target))
            elif not reference.is_prefix:
                found.append(self._further(reference.name, target))
        return found

    def imported(self, target: Descriptor) -> list[Image]:
        """The records for an image of an archive, by its own names."""
        found = []
        for reference in self.references:
            if not reference.is_prefix:
                continue
            name = name_in_archive(target.annotations, reference)
            if name:
                found.append(self._further(name, target))
            if reference.digest and not (name and reference.skip_named_digest):
                found.append(self._further(f"{reference.name}@{target.digest}", target))
        return found

    def _further(self, name: str, target: Descriptor) -> Image:
        """One that lives no longer than the image it is beside, where that has a name."""
        if not self.name:
            return Image(name, target, self.labels)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Image(name, target, {**self.labels, PARENT_LABEL: self.name, EXPIRE_LABEL: now})


def name_in_archive(annotations: Mapping[str, str], reference: ImageReference) -> str:
    """The name by an archive's annotations; "" where they give none that will do."""
    full, tag = annotations.get(IMAGE_NAME, ""), annotations.get(REF_NAME, "")
    if full:
        # a full name is taken as it is, or not at all
        return full if _translated(full, reference) == full else ""
    return _translated(tag, reference) if tag else ""


def _translated(name: str, reference: ImageReference) -> str:
    if not reference.name:
        return ""
    if not set(name) & set("/:@"):
        return f"{reference.name}:{name}"
    return name if reference.overwrite or has_prefix(name, reference.name) else ""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive to read images from, ``read(count)`` bytes at a time."""

    read: Callable[[int], bytes]
    compress: bool = False


@dataclass(frozen=True, slots=True)
class ArchiveWriter:
    """An archive to write images to; ``close`` says that all of it was written."""

    write: Callable[[bytes], object]
    close: Callable[[], object]
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    skip_manifest_json: bool = False
    skip_nondistributable: bool = False


End = Registry | ImageStore | Archive | ArchiveWriter


def supported_for(
    wish: UnpackWish, supported: Sequence[Supported], default: str
) -> Supported | None:
    """What ``wish`` is unpacked with; None where it is not to be."""
    wanted, best = normalize(wish.platform), None
    for entry in supported:
        matcher = only(entry.platform)
        if wanted.os != entry.platform.os or (entry.strict and not matcher.match(wanted)):
            continue
        if wish.snapshotter == entry.snapshotter or (
            not wish.snapshotter and entry.snapshotter == default
        ):
            return entry
        if not wish.snapshotter:
            best = best or entry
    return best
