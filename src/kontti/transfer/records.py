"""The image record at the end of a transfer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kontti.errors import AlreadyExists, NotFound, Unavailable
from kontti.metadata.base import Image, Images
from kontti.transfer.progress import Reporter
from kontti.values import Descriptor

ATTEMPTS = 10


def record(images: Images, name: str, target: Descriptor, labels: Mapping[str, str]) -> Image:
    """Make ``name`` stand for ``target``, whatever it stood for before."""
    image = Image(name, target, labels)
    for _ in range(ATTEMPTS):
        try:
            return images.create(image)
        except AlreadyExists:
            try:
                return images.update(image)
            except NotFound:
                # someone removed it in between
                continue
    raise Unavailable(f"image {name} is created and removed all the time")


def record_all(images: Images, wanted: Iterable[Image], reporter: Reporter) -> list[Image]:
    """Make each of ``wanted`` be there, and tell of it."""
    made = [record(images, image.name, image.target, image.labels) for image in wanted]
    for image in made:
        reporter.of_image("saved", image.name, image.target)
    return made
