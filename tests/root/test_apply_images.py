"""Layers applied as images: the same tree and the same errors as in a directory."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kontti.content.local import LocalStore
from kontti.diff.applier import LayerApplier
from kontti.diff.base import Limits
from kontti.errors import Error, InvalidArgument, ResourceExhausted
from kontti.linux.mounts import mounted
from kontti.snapshots.applied import APPLIED
from kontti.values import Mount
from tests.root.test_apply_hostile import DAMAGE, HOSTILE
from tests.root.test_apply_sparse import FORMS, PLAIN, make_sparse, pax
from tests.support.filesystems import ext4, make_ext4
from tests.support.images import Entry, directory, layer, symlink
from tests.support.trees import (
    BASE,
    Chain,
    ImageChain,
    Seen,
    apply_all,
    device,
    hard_link,
    put,
)

pytestmark = pytest.mark.root
CAPABILITY = b"\1\0\0\2" + b"\0\4\0\0" + bytes(12)


@pytest.fixture
def images(tmp_path: Path) -> Iterator[ImageChain]:
    with closing(ImageChain(tmp_path / "images", LocalStore(str(tmp_path / "store")))) as chain:
        yield chain


def xattr(name: str, value: str | bytes) -> dict[str, str]:
    text = value if isinstance(value, str) else value.decode("latin-1")
    return {f"SCHILY.xattr.{name}": text}


def timed(name: str, time: str, **options: object) -> Entry:
    return Entry(name, pax={"mtime": time}, **options)  # type: ignore[arg-type]


LONG = "n" * 255
IMAGES: dict[str, list[list[Entry]]] = {
    "everything": [BASE],
    "all sizes": [[Entry(str(n), os.urandom(n)) for n in (0, 1, 511, 512, 513, 4096, 3_000_000)]],
    "names of every length": [[Entry("d/" + "n" * n) for n in range(1, 256)]],
    "a deep tree": [[Entry("/".join(["d" * 30] * 60) + "/f", b"deep")]],
    "bytes that are no text": [[Entry("\udcff\udc80", b"x"), symlink("s", "\udcfe")]],
    "long links": [[symlink(f"s{n}", "t" * n) for n in (1, 511, 512, 513, 4095)]],
    "times": [
        [
            timed("past", "-5.5"),
            timed("fine", "1700000000.123456789"),
            timed("far", "99999999999"),
            timed("dir", "1.000000001", kind=tarfile.DIRTYPE),
            timed("dir/in", "2"),
            timed("made/by/the/way", "7.25"),
        ]
    ],
    "devices": [
        [device("a", 4095, 1048575), device("b", 259, 70000, tarfile.BLKTYPE)],
        [device("b", 0, 0, tarfile.BLKTYPE), device("a", 0, 0)],
    ],
    "ids": [[Entry("big", uid=2_000_000, gid=4_294_967_294)]],
    "links of links": [
        [
            Entry("a", b"a"),
            hard_link("b", "a"),
            hard_link("c", "b"),
            Entry("b", b"replaced"),
            symlink("s", "nowhere"),
            hard_link("t", "s"),
            hard_link("deep/er/u", "t"),
        ]
    ],
    "replaced again and again": [
        [Entry("x/y/z", b"1"), Entry("x", b"file"), directory("x", mode=0o700), Entry("x/y", b"2")],
        [symlink("x/y", "z"), Entry("x/y", b"3"), directory("x/y"), Entry("x/y/z", b"4")],
    ],
    "setgid directories": [
        [directory("g", mode=0o2755, gid=7), Entry("g/implied/deeper/f"), directory("g/own")]
    ],
    "described twice": [
        [
            Entry("d", kind=tarfile.DIRTYPE, pax=xattr("user.a", "1")),
            Entry("d", kind=tarfile.DIRTYPE, pax=xattr("user.b", "2"), mode=0o700),
        ]
    ],
    "attributes": [
        [
            Entry("f", pax={**xattr("user.a", "1"), **xattr("trusted.t", "x" * 200)}),
            Entry("cap", pax=xattr("security.capability", CAPABILITY)),
            Entry("d", kind=tarfile.DIRTYPE, pax=xattr("user.a", "")),
            Entry("s", kind=tarfile.SYMTYPE, link="f", pax=xattr("user.a", "1")),
            Entry("mac", pax=xattr("com.apple.quarantine", "q")),
            Entry("o", pax=xattr("trusted.overlay.metacopy", "y")),
        ]
    ],
    "opaque, removed and made again": [
        [directory("a"), Entry("a/x"), Entry("b/x")],
        [Entry("a", b"file"), directory("a"), Entry("a/y"), Entry("b/.wh..wh..opq"), Entry("b/y")],
    ],
}
FILES: dict[str, list[list[Entry]]] = {
    "an attribute too large": [[Entry("f", pax=xattr("user.a", "x" * 2000))]],
    "access lists": [
        [Entry("f", pax=xattr("system.posix_acl_access", b"\2\0\0\0" + b"\1\0\6\0\xff\xff\xff\xff"
            + b"\4\0\4\0\xff\xff\xff\xff" + b"\x20\0\0\0\xff\xff\xff\xff"))]
    ],
    "an attribute of a name alone": [[Entry("f", pax=xattr("user.", "1"))]],
    "what the kernel has a say in": [[Entry("f", pax=xattr("security.capability", "odd"))]],
    "through a symlink": [[symlink("s", "d"), Entry("s/f", b"through")]],
    "a hard link through a symlink": [[Entry("d/f"), symlink("s", "d"), hard_link("l", "s/f")]],
}  # fmt: skip


def same(images: ImageChain, root: Path, layers: list[list[Entry]]) -> dict[str, Seen] | str:
    """What both ways give: a tree, or an error."""
    chain = Chain(root / "layers", LayerApplier(images.store), images.store)
    found = [outcome(one, layers) for one in (images, chain)]
    assert found[0] == found[1]
    return found[0]


def outcome(chain: Chain, layers: list[list[Entry]]) -> dict[str, Seen] | str:
    for entries in layers:
        try:
            chain.apply(entries)
        except Error as error:
            return f"{type(error).__name__}: {error}"
    return chain.tree()


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_shows_what_a_directory_does(
    images: ImageChain, tmp_path: Path, name: str
) -> None:
    assert isinstance(same(images, tmp_path, IMAGES[name]), dict)
    assert images.images == len(IMAGES[name])


@pytest.mark.parametrize("name", FILES)
def test_what_an_image_cannot_hold_is_extracted(
    images: ImageChain, tmp_path: Path, name: str
) -> None:
    same(images, tmp_path, FILES[name])
    assert images.images == 0
    assert not list(images.root.glob("*/*.erofs"))


@pytest.mark.parametrize("base", ["first", "second"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layers_are_refused_as_elsewhere(
    images: ImageChain, tmp_path: Path, name: str, base: str
) -> None:
    entries, error, message = HOSTILE[name]
    said = same(images, tmp_path, [entries] if base == "first" else [BASE, entries])
    assert isinstance(said, str)
    assert said.startswith(error.__name__)
    assert message in said
    assert sorted(os.listdir(images.root / str(len(images.layers)))) == [
        ".erofslayer",
        "fs",
        "work",
    ]


ODD: dict[str, list[Entry]] = {
    "a device that is too large": [device("a", 4096, 0)],
    "a symlink to nothing": [symlink("s", "")],
    "a hard link to the root": [hard_link("x", "/")],
    "a long directory": [Entry(LONG + "n/f")],
    "an id too large": [Entry("f", uid=4_294_967_295)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_layers_are_refused_as_elsewhere(images: ImageChain, tmp_path: Path, name: str) -> None:
    assert str(same(images, tmp_path, [ODD[name]])).startswith("InvalidArgument")


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_layers_leave_nothing(images: ImageChain, name: str) -> None:
    data, media_type, error = DAMAGE[name]
    with pytest.raises(error):
        images.applier.apply(put(images.store, data, media_type), images.mounts())
    assert sorted(os.listdir(images.root / "0")) == [".erofslayer", "fs", "work"]


def test_the_data_is_where_the_tar_has_it(images: ImageChain) -> None:
    entries = [Entry("a", b"first"), Entry("b", b"second" * 500)]
    images.apply(entries)
    tar = layer(entries)
    data = (images.root / "0" / APPLIED).read_bytes()
    end = tar.rindex(b"second") + 6
    assert data[4096 : 4096 + end] == tar[:end]
    # all that is added is metadata
    assert len(data) < len(tar) + 4096 + 4096


def test_what_follows_the_archive_is_not_kept(images: ImageChain) -> None:
    data = layer([Entry("a", b"a")]) + bytes(64 << 20)
    images.applier.apply(put(images.store, data, PLAIN), images.mounts())
    assert (images.root / "0" / APPLIED).stat().st_size < 4 << 20


@pytest.mark.parametrize("form", FORMS)
def test_sparse_files(images: ImageChain, tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, parts in (("three", 3), ("many", 100), ("hole", 0), ("gone", 2)):
        make_sparse(source, name, parts)
    (source / "plain").write_bytes(b"plain")
    command = ["tar", "-cS", *FORMS[form], "-C", str(source)]
    names = ["three", "many", "hole", "gone", "plain"]
    packed = subprocess.run([*command, *names], check=True, capture_output=True).stdout
    # what is last ends with no zero: the archive's end is known by that
    replaced = packed.rstrip(b"\0")
    replaced += bytes(-len(replaced) % 512) + layer([Entry("gone", b"replaced")])
    top = images.mounts()
    images.applier.apply(put(images.store, replaced, PLAIN), top)
    image = images.root / "0" / APPLIED
    with mounted([Mount("erofs", str(image), ("ro",))]) as shown:
        for name in names:
            wanted = b"replaced" if name == "gone" else (source / name).read_bytes()
            assert Path(shown, name).read_bytes() == wanted, name
    assert image.stat().st_blocks * 512 < 4 << 20


def test_a_file_larger_than_any_can_be(images: ImageChain) -> None:
    data = pax({b"map": b"", b"size": b"%d" % ((1 << 63) - 1)}, b"")
    with pytest.raises(InvalidArgument, match="failed to extract 's': file too large"):
        images.applier.apply(put(images.store, data, PLAIN), images.mounts())


def test_limits(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "store"))
    with closing(ImageChain(tmp_path / "i", store, limits=Limits(entries=10))) as chain:
        chain.apply([Entry(f"{number}") for number in range(10)])
        with pytest.raises(ResourceExhausted, match="more than 10 entries"):
            chain.apply([Entry(f"{number}") for number in range(11)])
    chain = ImageChain(tmp_path / "j", store, limits=Limits(size=1 << 20))
    with pytest.raises(ResourceExhausted, match="more than 1048576 bytes"):
        chain.apply([Entry("zeros", bytes(4 << 20))])
    assert not list(chain.root.glob("*/*.erofs"))


def test_a_full_disk_makes_no_image(tmp_path: Path) -> None:
    make_ext4(tmp_path / "image", 16 << 20)
    store = LocalStore(str(tmp_path / "store"))
    with ext4(tmp_path / "image", tmp_path / "disk") as small:
        chain = ImageChain(small / "i", store)
        before = os.statvfs(small).f_bfree
        with pytest.raises(ResourceExhausted, match="no space left"):
            chain.apply([Entry("big", os.urandom(20 << 20))])
        assert sorted(os.listdir(chain.root / "0")) == [".erofslayer", "fs", "work"]
        subprocess.run(["sync", "-f", str(small)], check=True)
        assert os.statvfs(small).f_bfree >= before - 16


def test_other_folders_take_no_image(tmp_path: Path) -> None:
    """A mark that is found elsewhere, where a container could have put it, says nothing."""
    chain = apply_all(tmp_path, [])
    mounts = chain.mounts()
    (tmp_path / "layers/0/.erofslayer").touch()
    applier = LayerApplier(chain.store, images=str(tmp_path / "snapshots"))
    applier.apply(put(chain.store, layer([Entry("f", b"f")]), PLAIN), mounts)
    assert (tmp_path / "layers/0/fs/f").read_bytes() == b"f"
    assert not (tmp_path / "layers/0" / APPLIED).exists()


def test_an_image_has_one_inode_for_each_file(images: ImageChain) -> None:
    images.apply(IMAGES["links of links"][0])
    with mounted([Mount("erofs", str(images.root / "0" / APPLIED), ("ro",))]) as shown:
        status = os.lstat(f"{shown}/a")
        assert (status.st_nlink, os.lstat(f"{shown}/b").st_nlink) == (2, 1)
        assert os.lstat(f"{shown}/c").st_ino == status.st_ino
        assert stat.S_ISLNK(os.lstat(f"{shown}/deep/er/u").st_mode)
        with pytest.raises(OSError, match="Read-only") as caught:
            os.unlink(f"{shown}/a")
        assert caught.value.errno == errno.EROFS
