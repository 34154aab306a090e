"""Layers are extracted while others are still being downloaded."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kontti.diff.applier import LayerApplier
from kontti.diff.base import Ahead
from kontti.engine.stores import Stores
from kontti.errors import Error, NotFound
from kontti.registry.hosts import HostOptions, configured
from kontti.registry.resolver import Resolver
from kontti.registry.session import Session
from kontti.transfer.base import Pulled
from kontti.transfer.pull import pull
from kontti.values import Descriptor
from tests.root.test_unpack_together import SCOPE, assert_clean, opened
from tests.support.images import Entry, Image, build, layer
from tests.support.web import Answer, Asked, Repository, serving

pytestmark = pytest.mark.root
SECONDS = 30.0


class Watched(LayerApplier):
    """Tells by ``extracted`` when ``count`` layers have been extracted ahead of their parents."""

    extracted: threading.Event
    count: int

    def apply_ahead(self, layer: Descriptor, *args: object) -> Ahead:  # type: ignore[override]
        made = super().apply_ahead(layer, *args)  # type: ignore[arg-type]
        self.count -= 1
        if not self.count:
            self.extracted.set()
        return made


@dataclass
class Late:
    """A registry that gives out one layer only when the others have been extracted."""

    image: Image
    number: int
    status: int = 200
    extracted: threading.Event = field(default_factory=threading.Event)
    waited: list[bool] = field(default_factory=list)

    def __call__(self, asked: Asked) -> Answer:
        kinds = {self.image.digest: str(self.image.manifest["mediaType"])}
        repository = Repository(dict(self.image.blobs), {"1": self.image.digest}, kinds)
        if asked.path.endswith(self.image.layer_digests[self.number]):
            self.waited.append(self.extracted.wait(SECONDS))
            if self.status != 200:
                return Answer(self.status)
        return repository(asked)


def pulled(stores: Stores, registry: Late) -> Pulled:
    applier = Watched(stores.metadata.content(SCOPE), stores.workers)
    applier.extracted, applier.count = registry.extracted, len(registry.image.layer_digests) - 1
    parts = replace(stores.transfer_parts(), applier=lambda scope: applier)
    with serving(registry) as web, Session(configured(HostOptions(plain_http=True))) as session:
        return pull(parts, SCOPE, Resolver(session), f"{web.host}/late:1")


@pytest.fixture(scope="module")
def image() -> Image:
    return build([layer([Entry(f"file-{n}", os.urandom(10_000))]) for n in range(3)])


@pytest.mark.parametrize("late", [0, 1, 2])
def test_what_has_arrived_is_extracted_while_others_come(
    tmp_path: Path, image: Image, late: int
) -> None:
    registry = Late(image, late)
    with opened(tmp_path, 2) as stores:
        made = pulled(stores, registry)
        assert registry.waited == [True]
        assert stores.metadata.snapshots(SCOPE, "overlayfs").stat(made.unpacked[0].chain_id)


@pytest.mark.parametrize("late", [0, 2])
def test_a_layer_that_does_not_come_ends_the_others(
    tmp_path: Path, image: Image, late: int
) -> None:
    with opened(tmp_path, 2) as stores:
        with pytest.raises(Error) as raised:
            pulled(stores, Late(image, late, status=404))
        assert isinstance(raised.value, NotFound)
        assert_clean(stores)
