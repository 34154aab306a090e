"""Layers are applied: straight into directories and over what is mounted, with the same outcome."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import pytest
import zstandard

from kontti.content.base import Info, Reader, Store
from kontti.content.local import LocalStore
from kontti.diff.applier import LayerApplier
from kontti.errors import (
    FailedPrecondition,
    InvalidArgument,
)
from kontti.values import Digest, Mount
from tests.support.images import EPOCH, Entry, base_layer, digest_of, directory, layer, symlink
from tests.support.trees import BASE, Chain, Seen, apply_all, device, gzipped, hard_link, put

pytestmark = pytest.mark.root

PLAIN = "application/vnd.oci.image.layer.v1.tar"
GZIP, ZSTD = f"{PLAIN}+gzip", f"{PLAIN}+zstd"


def build(root: Path, layers: Iterable[Iterable[Entry]], *, direct: bool) -> dict[str, Seen]:
    store = LocalStore(str(root / "content"))
    chain = Chain(root / "layers", LayerApplier(store, direct=direct), store)
    for entries in layers:
        chain.apply(entries)
    return chain.tree()


LAYERS: dict[str, list[list[Entry]]] = {
    "base": [BASE],
    "whiteout": [BASE, [Entry("etc/.wh.passwd"), Entry("var/.wh.cache"), Entry(".wh.link")]],
    "whiteout of nothing": [BASE, [directory("new"), Entry("new/.wh.ghost"), Entry(".wh.ghost")]],
    "whiteout then the same name": [
        BASE,
        [Entry("etc/.wh.deep"), directory("etc/deep"), Entry("etc/deep/x")],
    ],
    "the same name, then whiteout": [
        BASE,
        [directory("etc/deep"), Entry("etc/deep/x"), Entry("etc/.wh.deep")],
    ],
    "file and its whiteout": [BASE, [Entry("var/b", b"new"), Entry("var/.wh.b")]],
    "opaque first": [BASE, [directory("var"), Entry("var/.wh..wh..opq"), Entry("var/new", b"n")]],
    "opaque last": [BASE, [Entry("var/cache/three", b"3"), Entry("var/.wh..wh..opq")]],
    "opaque after whiteout": [
        BASE,
        [Entry("var/.wh.a"), Entry("var/.wh..wh..opq"), Entry("var/k")],
    ],
    "opaque root": [BASE, [directory("etc"), Entry("etc/new"), Entry(".wh..wh..opq")]],
    "implied parents keep their metadata": [BASE, [Entry("etc/deep/er/other", b"o")]],
    "implied parents of nothing": [BASE, [Entry("brand/new/file", b"o")]],
    "implied below opaque": [BASE, [Entry("etc/.wh..wh..opq"), Entry("etc/deep/er/x", b"o")]],
    "file over directory": [BASE, [Entry("var/cache", b"file now")]],
    "file over directory, then directory": [
        BASE,
        [Entry("var/cache", b"f"), directory("var/cache")],
    ],
    "directory over file": [BASE, [directory("var/a"), Entry("var/a/in", b"i")]],
    "directory over symlink": [BASE, [directory("link"), Entry("link/in", b"i")]],
    "symlink over directory": [BASE, [symlink("var/cache", "../etc"), Entry("var/cache/in", b"i")]],
    "symlink over symlink": [BASE, [symlink("link", "var")]],
    "through a parent's symlink": [
        BASE,
        [Entry("link/through", b"t"), Entry("absolute/too", b"t")],
    ],
    "through a new symlink": [BASE, [symlink("fresh", "var"), Entry("fresh/through", b"t")]],
    "through a dangling symlink": [BASE, [symlink("d", "/made/up"), Entry("d/through", b"t")]],
    "hard link to a parent's file": [BASE, [hard_link("etc/passwd2", "etc/passwd")]],
    "hard link over a name": [BASE, [Entry("n", b"n"), hard_link("var/b", "n")]],
    "hard link to itself": [BASE, [Entry("n", b"n"), hard_link("n", "n")]],
    "duplicates": [BASE, [Entry("x", b"1"), Entry("x", b"2"), directory("x"), Entry("x/y")]],
    "names that climb": [
        BASE,
        [Entry("../../up", b"u"), Entry("/abs/file", b"a"), Entry("a/../b", b"b")],
    ],
    "directory metadata": [BASE, [directory("etc/deep", mode=0o1700, uid=9)]],
    "overlay's own whiteout": [BASE, [device("etc/passwd", 0, 0), device("nothing", 0, 0)]],
    "aufs metadata": [
        BASE,
        [directory(".wh..wh.plnk"), Entry(".wh..wh.plnk/1.2", b"x"), Entry(".wh..wh.aufs")],
    ],
    "three layers": [
        BASE,
        [Entry("var/.wh.cache"), Entry("etc/deep/er/.wh.file")],
        [Entry("var/cache/again", b"x"), Entry("etc/deep/er/file", b"back")],
    ],
    "overlay's xattrs are dropped": [
        BASE,
        [
            directory("etc"),
            Entry(
                "etc/f",
                pax={"SCHILY.xattr.trusted.overlay.metacopy": "y", "SCHILY.xattr.user.k": "v"},
            ),
        ],
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


@pytest.fixture(params=["direct", "mounted"])
def direct(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "direct")


OUTCOMES: dict[str, tuple[set[str], set[str]]] = {
    "whiteout": ({"etc", "var/a"}, {"etc/passwd", "var/cache", "var/cache/one", "link"}),
    "whiteout of nothing": ({"new"}, {"new/ghost", "new/.wh.ghost", "ghost"}),
    "whiteout then the same name": ({"etc/deep/x"}, {"etc/deep/er", "etc/.wh.deep"}),
    "the same name, then whiteout": ({"etc/deep/x"}, {"etc/deep/er"}),
    "file and its whiteout": ({"var/b"}, {"var/.wh.b"}),
    "opaque first": ({"var/new"}, {"var/a", "var/cache", "var/.wh..wh..opq"}),
    "opaque last": ({"var/cache/three"}, {"var/cache/one", "var/a"}),
    "opaque root": ({"etc/new"}, {"etc/passwd", "var", "null"}),
    "implied parents of nothing": ({"brand/new/file"}, set()),
    "implied below opaque": ({"etc/deep/er/x"}, {"etc/deep/er/file", "etc/passwd"}),
    "file over directory": ({"var/cache"}, {"var/cache/one"}),
    "file over directory, then directory": ({"var/cache"}, {"var/cache/one"}),
    "directory over symlink": ({"link/in", "etc/passwd"}, {"etc/in", "link/passwd"}),
    "symlink over directory": ({"var/cache", "etc/in"}, {"var/cache/one"}),
    "through a parent's symlink": ({"etc/through", "etc/deep/too", "link"}, {"link/through"}),
    "through a dangling symlink": ({"made/up/through"}, set()),
    "hard link to itself": ({"n"}, set()),
    "names that climb": ({"up", "abs/file", "b"}, {"a"}),
    "overlay's own whiteout": ({"etc/shadow"}, {"etc/passwd", "nothing"}),
    "aufs metadata": (set(), {".wh..wh.plnk", ".wh..wh.aufs"}),
    "three layers": ({"var/cache/again", "etc/deep/er/file"}, {"var/cache/one"}),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_what_is_there_and_what_is_not(tmp_path: Path, name: str, direct: bool) -> None:
    tree = build(tmp_path, LAYERS[name], direct=direct)
    there, gone = OUTCOMES[name]
    assert there <= tree.keys()
    assert not gone & tree.keys()


def test_metadata_is_the_layers(tmp_path: Path, direct: bool) -> None:
    tree = build(tmp_path, [BASE], direct=direct)
    time = EPOCH * 10**9
    assert {seen.mtime for seen in tree.values()} == {time}
    assert tree["."].mode == "drwxr-x--x"
    assert tree["etc"].owner == (3, 4)
    assert tree["etc/deep"].mode == "drwxrws---"
    assert tree["etc/shadow"].mode == "-rwsr-xr-x"
    assert tree["etc/deep/er/file"].xattrs == (("user.color", b"red"),)
    assert tree["absolute"].data == b"/etc/deep"
    assert tree["null"].mode == "crw--w----"
    assert tree["var/hard"].links == ("var/a", "var/hard")


def test_implied_parents_keep_their_metadata(tmp_path: Path, direct: bool) -> None:
    tree = build(tmp_path, LAYERS["implied parents keep their metadata"], direct=direct)
    assert (tree["etc"].mode, tree["etc"].owner) == ("drwx--x--x", (3, 4))
    assert (tree["etc/deep"].mode, tree["etc/deep"].owner) == ("drwxrws---", (5, 6))
    assert tree["etc/deep"].mtime == EPOCH * 10**9


def test_the_result_describes_the_uncompressed_layer(tmp_path: Path) -> None:
    chain = apply_all(tmp_path, [])
    applied = chain.apply(BASE)
    tar = layer(BASE)
    assert applied.media_type == "application/vnd.oci.image.layer.v1.tar"
    assert applied.digest == digest_of(tar)
    assert applied.size == len(tar)


def test_the_file_system_is_synced_when_asked(tmp_path: Path, direct: bool) -> None:
    chain = apply_all(tmp_path, [BASE], direct=direct)
    layer_blob = put(chain.store, gzipped([Entry("etc/new")]))
    chain.applier.apply(layer_blob, chain.mounts(), sync_fs=True)
    assert (tmp_path / "layers/1/fs/etc/new").exists()


def test_directories_are_written_without_mounting(tmp_path: Path) -> None:
    chain = apply_all(tmp_path, [BASE])
    [overlay] = chain.mounts()
    options = tuple(o for o in overlay.options if not o.startswith("workdir"))
    # such a mount would fail
    broken = Mount("overlay", "overlay", options)
    chain.applier.apply(put(chain.store, gzipped([Entry("etc/deep/er/x")])), [broken])
    assert (tmp_path / "layers/1/fs/etc/deep/er/x").exists()


def test_an_upper_directory_of_unknown_parents(tmp_path: Path) -> None:
    chain = apply_all(tmp_path, [])
    upper = tmp_path / "upper"
    upper.mkdir()
    mounts = [Mount("overlay", "overlay", (f"upperdir={upper}", f"workdir={tmp_path}"))]
    entries = [
        directory("etc"),
        Entry("etc/.wh.passwd"),
        directory("var"),
        Entry("var/.wh..wh..opq"),
    ]
    chain.applier.apply(put(chain.store, gzipped(entries)), mounts)
    assert (upper / "etc/passwd").is_char_device()
    assert os.getxattr(upper / "var", "trusted.overlay.opaque") == b"y"
    lacking = put(chain.store, gzipped([Entry("usr/lib/file")]))
    with pytest.raises(FailedPrecondition, match="needs its parents"):
        chain.applier.apply(lacking, mounts)


def test_a_layer_applied_over_its_parents_leaves_no_trace_of_the_first_try(tmp_path: Path) -> None:
    entries = [
        directory("./", mode=0o700, uid=77),
        Entry("junk"),
        Entry("junk", b"2"),
        Entry("link/x"),
    ]
    chain = apply_all(tmp_path, [BASE, entries])
    tree = chain.tree()
    assert tree["."].owner == (77, 0)
    assert tree["junk"].data == b"2"
    assert "etc/x" in tree


def parts_of(tar: bytes) -> list[bytes]:
    return [tar[start : start + 3000] for start in range(0, len(tar), 3000)]


COMPRESSIONS = {
    "gzip": (gzipped(BASE), GZIP),
    "two gzip members": (
        gzip.compress(layer(BASE)[:5000]) + gzip.compress(layer(BASE)[5000:]),
        GZIP,
    ),
    "zstd": (zstandard.compress(layer(BASE)), ZSTD),
    "two zstd frames": (
        zstandard.compress(layer(BASE)[:5000])
        + b"\x50\x2a\x4d\x18\x04\0\0\0skip"
        + zstandard.compress(layer(BASE)[5000:]),
        ZSTD,
    ),
    "eStargz": (
        b"".join(gzip.compress(part) for part in parts_of(layer(BASE)))
        # its footer: an empty member with an extra field
        + b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0"
        + b"0000000000000000STARGZ"
        + b"\x01\0\0\xff\xff"
        + bytes(8),
        GZIP,
    ),
    "zstd:chunked": (
        b"".join(zstandard.compress(part) for part in parts_of(layer(BASE)))
        # its manifest and its footer, in frames to be skipped
        + b"\x50\x2a\x4d\x18\x10\0\0\0"
        + b"m" * 16
        + b"\x50\x2a\x4d\x18\x40\0\0\0"
        + b"f" * 64,
        ZSTD,
    ),
    "zstd that begins with a frame to be skipped": (
        b"\x5f\x2a\x4d\x18\x03\0\0\0abc" + zstandard.compress(layer(BASE)),
        ZSTD,
    ),
    "plain": (layer(BASE), PLAIN),
    "docker": (gzipped(BASE), "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    "docker, plain": (layer(BASE), "application/vnd.docker.image.rootfs.diff.tar"),
    "foreign": (gzipped(BASE), "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
    "called gzip, is zstd": (zstandard.compress(layer(BASE)), GZIP),
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_every_compression_gives_the_same_diff_id(tmp_path: Path, name: str) -> None:
    data, media_type = COMPRESSIONS[name]
    chain = apply_all(tmp_path, [])
    applied = chain.applier.apply(put(chain.store, data, media_type), chain.mounts())
    assert applied.digest == digest_of(layer(BASE))


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress])
def test_other_compressions_are_not_for_layers(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    chain = apply_all(tmp_path, [])
    with pytest.raises(InvalidArgument, match="archive/tar: invalid tar header"):
        chain.applier.apply(put(chain.store, compress(layer(BASE)), GZIP), chain.mounts())


def test_a_blob_without_a_file_is_streamed(tmp_path: Path) -> None:
    chain = apply_all(tmp_path, [])
    blob = put(chain.store, gzipped(BASE))
    applied = LayerApplier(Remote(chain.store)).apply(blob, chain.mounts())
    assert applied.digest == digest_of(layer(BASE))


def test_mounts_that_are_no_overlay_are_mounted(tmp_path: Path) -> None:
    chain = apply_all(tmp_path, [])
    (tmp_path / "plain/inner").mkdir(parents=True)
    (tmp_path / "inner").mkdir()
    mounts = [
        Mount("bind", str(tmp_path / "plain"), ("rbind", "rw")),
        Mount("bind", str(tmp_path / "inner"), ("rbind", "rw"), "/inner"),
    ]
    chain.applier.apply(put(chain.store, gzipped([Entry("inner/x", b"x"), Entry("y")])), mounts)
    assert (tmp_path / "inner/x").read_bytes() == b"x"
    assert (tmp_path / "plain/y").exists()
    assert "kontti-diff-" not in Path("/proc/self/mountinfo").read_text()


def test_busybox_runs_from_an_applied_layer(tmp_path: Path, direct: bool) -> None:
    store = LocalStore(str(tmp_path / "content"))
    chain = Chain(tmp_path / "layers", LayerApplier(store, direct=direct), store)
    data = gzip.compress(base_layer())
    chain.applier.apply(put(store, data), chain.mounts())
    root = tmp_path / "layers/0/fs"
    said = subprocess.run(["chroot", root, "/bin/echo", "hi"], check=True, capture_output=True)
    assert said.stdout == b"hi\n"


class Remote:
    """A store whose blobs have no file here."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def info(self, digest: Digest) -> Info:
        return self._store.info(digest)

    def reader(self, digest: Digest) -> Reader:
        return RemoteReader(self._store.reader(digest))


class RemoteReader:
    """Hides the file of a local reader."""

    path = None

    def __init__(self, inner: Reader) -> None:
        self._inner = inner
        self.size = inner.size
        self.read_at = inner.read_at
        self.close = inner.close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()
