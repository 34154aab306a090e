"""Convert: an image record made from another, with the blobs that are new."""

from __future__ import annotations

from kontti.content.base import Store
from kontti.images.convert import Conversion, convert
from kontti.images.graph import child_labels, walk
from kontti.metadata.base import Image
from kontti.namespaces import Scope
from kontti.transfer.base import Stores
from kontti.transfer.labels import add_labels
from kontti.transfer.lease import leased
from kontti.transfer.records import record
from kontti.values import Descriptor


def convert_image(
    stores: Stores, scope: Scope, source: str, name: str, wanted: Conversion
) -> Image:
    """Make ``name`` the image ``source`` as ``wanted``; raises NotFound for what is not here."""
    with leased(stores, scope) as held:
        images, content = stores.images(held), stores.content(held)
        image = images.get(source)
        target = convert(content, image.target, wanted)
        if target != image.target:
            _label(content, target)
        return record(images, name, target, image.labels)


def _label(content: Store, target: Descriptor) -> None:
    """Have each document keep what it refers to."""
    for node in walk(content, target):
        if not node.missing:
            add_labels(content, node.descriptor.digest, child_labels(node.children))
