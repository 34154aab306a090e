"""Any layers whatever: both ways of applying them agree, and comparing makes them again."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kontti.content.local import LocalStore
from kontti.diff.applier import LayerApplier
from kontti.diff.base import DiffOptions
from kontti.diff.differ import WalkingDiffer
from kontti.errors import Error
from kontti.values import Descriptor
from tests.support.images import Entry
from tests.support.trees import Chain, ImageChain, Seen

pytestmark = pytest.mark.root

NAMES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
KINDS = [tarfile.REGTYPE] * 3 + [tarfile.DIRTYPE] * 3 + [tarfile.SYMTYPE, tarfile.LNKTYPE]


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    name = draw(NAMES)
    mark = draw(st.sampled_from(["", "", "", "", "whiteout", "opaque"]))
    if mark == "whiteout":
        parent, slash, base = name.rpartition("/")
        return Entry(f"{parent}{slash}.wh.{base}")
    if mark == "opaque":
        return Entry(f"{name}/.wh..wh..opq")
    kind = draw(st.sampled_from(KINDS))
    link = draw(NAMES) if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    data = draw(st.sampled_from([b"", b"1", b"22"])) if kind == tarfile.REGTYPE else b""
    mode = draw(st.sampled_from([0o644, 0o755, 0o2750, 0o4711]))
    return Entry(name, data, mode, kind, link, uid=draw(st.sampled_from([0, 5])))


class AheadChain(Chain):
    """Each layer but the first is extracted before it is put over its parents, where it can be."""

    def apply(self, entries: Iterable[Entry]) -> Descriptor | None:
        if self.layers and self.apply_ahead(entries):
            return None
        return super().apply(entries)


class AheadImageChain(AheadChain, ImageChain):
    """The same, of images."""


LAYERS = st.lists(st.lists(entries(), max_size=6), min_size=2, max_size=3)


def outcome(chain: Chain, layers: list[list[Entry]]) -> tuple[dict[str, Seen], int]:
    """The tree of the layers up to the first that is refused, and how many that is."""
    for number, layer in enumerate(layers):
        try:
            chain.apply(layer)
        except Error:
            return (chain.tree() if chain.layers else {}), number
    return chain.tree(), len(layers)


@settings(
    max_examples=int(os.environ.get("KONTTI_EXAMPLES", "25")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(layers=LAYERS)
def test_all_ways_agree(layers: list[list[Entry]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        store = LocalStore(str(root / "content"))
        chain = Chain(root / "direct", LayerApplier(store), store)
        tree, _ = direct = outcome(chain, layers)
        mounted = Chain(root / "mounted", LayerApplier(store, direct=False), store)
        assert direct == outcome(mounted, layers)
        assert direct == outcome(AheadChain(root / "ahead", LayerApplier(store), store), layers)
        for kind in (ImageChain, AheadImageChain):
            with closing(kind(root / kind.__name__, store)) as images:
                assert direct == outcome(images, layers)
        if tree:
            assert_made_again(root, store, chain, tree)


def assert_made_again(root: Path, store: LocalStore, chain: Chain, tree: dict[str, Seen]) -> None:
    """Each layer made of the trees before and after it gives the same trees."""
    again = Chain(root / "again", LayerApplier(store), store)
    made = chain.layers
    for count in range(1, len(made) + 1):
        # blobs that are there already would have to be labelled, which this store cannot
        store = LocalStore(str(root / "differences" / str(count)))
        chain.layers = made[: count - 1]
        lower = chain.view() if chain.layers else []
        chain.layers = made[:count]
        layer = WalkingDiffer(store).compare(lower, chain.view(), DiffOptions())
        LayerApplier(store).apply(layer, again.mounts())
        again.layers.append(again.root / str(len(again.layers)) / "fs")
    found = again.tree()
    assert found.keys() == tree.keys()
    assert {p: s for p, s in found.items() if p != "."} == {
        p: s for p, s in tree.items() if p != "."
    }
