"""How an image was built, step by step, as its config tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kontti.engine.base import Core
from kontti.errors import InvalidArgument
from kontti.images import documents as json
from kontti.images.documents import Json
from kontti.images.graph import find_manifest
from kontti.images.manifest import Manifest, read_config
from kontti.images.platforms import default, only
from kontti.metadata.base import Image
from kontti.namespaces import Scope
from kontti.values import Descriptor


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a build. ``layer`` is "" for one that changed no file; ``size`` compressed."""

    created: str
    created_by: str
    comment: str
    layer: str = ""
    size: int = 0


def history(core: Core, scope: Scope, image: Image) -> tuple[Step, ...]:
    """The steps, the last first. A layer that no step tells of has a step with no words.

    Raises NotFound where the image's documents are not here.
    """
    content = core.stores.content(scope)
    _, manifest = find_manifest(content, image.target, only(default()))
    document = read_config(content, manifest.config).document
    return tuple(reversed(list(_steps(document, manifest))))


def _steps(document: Json, manifest: Manifest) -> Iterator[Step]:
    layers = iter(manifest.layers)
    for item in json.items(document, "history"):
        told = json.as_object(item, "history entry")
        empty = told.get("empty_layer", False)
        if not isinstance(empty, bool):
            raise InvalidArgument("empty_layer is not a boolean")
        # more steps than layers: whoever wrote it counted wrong, and the words are still of use
        yield _step(told, None if empty else next(layers, None))
    yield from (_step({}, layer) for layer in layers)


def _step(told: Json, layer: Descriptor | None) -> Step:
    return Step(
        json.text(told, "created"),
        json.text(told, "created_by"),
        json.text(told, "comment"),
        str(layer.digest) if layer else "",
        layer.size if layer else 0,
    )
