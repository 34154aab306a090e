"""Layers are applied: straight into directories and over what is mounted, with the same outcome."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from kontti.content.local import LocalStore
from kontti.diff.applier import LayerApplier
from tests.support.images import EPOCH, Entry, base_layer, directory, symlink
from tests.support.trees import Chain, Seen

pytestmark = pytest.mark.root


def hard_link(name: str, target: str) -> Entry:
    return Entry(name, kind=tarfile.LNKTYPE, link=target)


def device(name: str, major: int, minor: int, kind: bytes = tarfile.CHRTYPE) -> Entry:
    return Entry(name, kind=kind, device=(major, minor), mode=0o620)


def build(root: Path, layers: Iterable[Iterable[Entry]], *, direct: bool) -> dict[str, Seen]:
    store = LocalStore(str(root / "content"))
    chain = Chain(root / "layers", LayerApplier(store, direct=direct), store)
    for entries in layers:
        chain.apply(entries)
    return chain.tree()


BASE = [
    directory("./", mode=0o751),
    directory("etc", mode=0o711, uid=3, gid=4),
    directory("etc/deep", mode=0o2770, uid=5, gid=6),
    directory("etc/deep/er"),
    Entry("etc/deep/er/file", b"deep", pax={"SCHILY.xattr.user.color": "red"}),
    Entry("etc/passwd", b"root\n", mode=0o640, uid=1, gid=2),
    Entry("etc/shadow", b"secret\n", mode=0o4755),
    directory("var"),
    Entry("var/a", b"a" * 100_000),
    Entry("var/b", b"b"),
    directory("var/cache"),
    Entry("var/cache/one", b"1"),
    Entry("var/cache/two", b"2"),
    symlink("link", "etc"),
    symlink("absolute", "/etc/deep"),
    Entry("fifo", kind=tarfile.FIFOTYPE, mode=0o600),
    device("null", 1, 3),
    hard_link("var/hard", "var/a"),
]

LAYERS: dict[str, list[list[Entry]]] = {
    "base": [BASE],
    "whiteout": [BASE, [Entry("etc/.wh.passwd"), Entry("var/.wh.cache"), Entry(".wh.link")]],
    "whiteout of nothing": [BASE, [directory("new"), Entry("new/.wh.ghost"), Entry(".wh.ghost")]],
    "whiteout then the same name": [BASE, [Entry("etc/.wh.deep"), directory("etc/deep"), Entry("etc/deep/x")]],
    "the same name, then whiteout": [BASE, [directory("etc/deep"), Entry("etc/deep/x"), Entry("etc/.wh.deep")]],
    "file and its whiteout": [BASE, [Entry("var/b", b"new"), Entry("var/.wh.b")]],
    "opaque first": [BASE, [directory("var"), Entry("var/.wh..wh..opq"), Entry("var/new", b"n")]],
    "opaque last": [BASE, [Entry("var/cache/three", b"3"), Entry("var/.wh..wh..opq")]],
    "opaque after whiteout": [BASE, [Entry("var/.wh.a"), Entry("var/.wh..wh..opq"), Entry("var/k")]],
    "opaque root": [BASE, [directory("etc"), Entry("etc/new"), Entry(".wh..wh..opq")]],
    "implied parents keep their metadata": [BASE, [Entry("etc/deep/er/other", b"o")]],
    "implied parents of nothing": [BASE, [Entry("brand/new/file", b"o")]],
    "implied below opaque": [BASE, [Entry("etc/.wh..wh..opq"), Entry("etc/deep/er/x", b"o")]],
    "file over directory": [BASE, [Entry("var/cache", b"file now")]],
    "file over directory, then directory": [BASE, [Entry("var/cache", b"f"), directory("var/cache")]],
    "directory over file": [BASE, [directory("var/a"), Entry("var/a/in", b"i")]],
    "directory over symlink": [BASE, [directory("link"), Entry("link/in", b"i")]],
    "symlink over directory": [BASE, [symlink("var/cache", "../etc"), Entry("var/cache/in", b"i")]],
    "symlink over symlink": [BASE, [symlink("link", "var")]],
    "through a parent's symlink": [BASE, [Entry("link/through", b"t"), Entry("absolute/too", b"t")]],
    "through a new symlink": [BASE, [symlink("fresh", "var"), Entry("fresh/through", b"t")]],
    "through a dangling symlink": [BASE, [symlink("d", "/made/up"), Entry("d/through", b"t")]],
    "hard link to a parent's file": [BASE, [hard_link("etc/passwd2", "etc/passwd")]],
    "hard link over a name": [BASE, [Entry("n", b"n"), hard_link("var/b", "n")]],
    "hard link to itself": [BASE, [Entry("n", b"n"), hard_link("n", "n")]],
    "duplicates": [BASE, [Entry("x", b"1"), Entry("x", b"2"), directory("x"), Entry("x/y")]],
    "names that climb": [BASE, [Entry("../../up", b"u"), Entry("/abs/file", b"a"), Entry("a/../b", b"b")]],
    "directory metadata": [BASE, [directory("etc/deep", mode=0o1700, uid=9)]],
    "overlay's own whiteout": [BASE, [device("etc/passwd", 0, 0), device("nothing", 0, 0)]],
    "aufs metadata": [BASE, [directory(".wh..wh.plnk"), Entry(".wh..wh.plnk/1.2", b"x"), Entry(".wh..wh.aufs")]],
    "three layers": [
        BASE,
        [Entry("var/.wh.cache"), Entry("etc/deep/er/.wh.file")],
        [Entry("var/cache/again", b"x"), Entry("etc/deep/er/file", b"back")],
    ],
    "overlay's xattrs are dropped": [
        BASE,
        [directory("etc"), Entry("etc/f", pax={"SCHILY.xattr.trusted.overlay.metacopy": "y", "SCHILY.xattr.user.k": "v"})],
    ],
    "setgid directories give nothing away": [
        BASE,
        [directory("etc/deep", mode=0o2755, gid=6), Entry("etc/deep/f"), directory("etc/deep/d")],
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_both_ways_give_the_same_tree(tmp_path: Path, name: str) -> None:
    direct = build(tmp_path / "direct", LAYERS[name], direct=True)
    mounted = build(tmp_path / "mounted", LAYERS[name], direct=False)
    assert direct == mounted
