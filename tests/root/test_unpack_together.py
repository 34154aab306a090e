"""Layers unpacked at the same time give the tree that they give one after another."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kontti.diff.applier import LayerApplier
from kontti.diff.base import Ahead
from kontti.diff.lowers import NeedsParents
from kontti.engine.stores import Stores, StoreSettings
from kontti.errors import Error, ResourceExhausted
from kontti.linux.mounts import mounted
from kontti.namespaces import Scope
from kontti.transfer.base import Unpacking
from kontti.transfer.import_ import ImportOptions, ImportResult, import_archive
from kontti.transfer.parts import Parts
from kontti.transfer.together import PARENT_LABEL
from kontti.values import Descriptor, Mount
from tests.root.test_apply import LAYERS
from tests.support import daemons, filesystems
from tests.support.images import Entry, archive, build, directory, layer, symlink
from tests.support.trees import BASE, Seen, hard_link, look, look_at

pytestmark = pytest.mark.root
NAME = "example.org/layers:1"
SCOPE = Scope("default")
KILLS = int(os.environ.get("KONTTI_KILLS", "6"))
TOP = [Entry("var/top", b"t"), Entry("etc/deep/er/top", b"t")]

MORE: dict[str, list[list[Entry]]] = {
    "a root of its own": [[Entry("a")], [directory("./", mode=0o710, uid=7)], [Entry("b")], TOP],
    "what children inherit: a group": [BASE, [Entry("etc/deep/new/x")], TOP],
    "a whiteout in the lowest layer": [[Entry("a/x"), Entry("a/.wh.y"), Entry(".wh.z")], TOP],
    "an opaque lowest layer": [[Entry("a/x"), Entry("a/.wh..wh..opq")], TOP],
    "implied, then described": [
        BASE,
        [Entry("etc/deep/er/x"), directory("etc/deep", mode=0o700, uid=8)],
    ],
    "implied, then replaced": [BASE, [Entry("etc/deep/x"), Entry("etc/deep", b"now a file")]],
    "implied below what was replaced": [
        BASE,
        [Entry("var/cache", b"f"), directory("var/cache"), Entry("var/cache/in/x")],
    ],
    "whiteouts that hide nothing, in what is whose": [
        BASE,
        [directory("etc"), Entry("etc/.wh.no"), Entry("etc/deep/.wh.no"), Entry("own/.wh.no")],
    ],
    "removed, made, removed": [
        BASE,
        [Entry("var/.wh.cache"), Entry("etc/.wh.passwd")],
        [Entry("var/cache/new"), Entry("etc/passwd", b"again")],
        [Entry("var/cache/.wh.new"), Entry("etc/.wh.passwd")],
    ],
    "a chain of links and directories": [
        BASE,
        [symlink("lib", "usr/lib"), directory("usr"), directory("usr/lib")],
        [Entry("lib/through")],
        [directory("lib"), Entry("lib/own")],
        [hard_link("usr/lib/linked", "lib/own")],
    ],
    "files in a parent's file": [BASE, [Entry("etc/passwd/x"), Entry("etc/passwd", b"p")]],
}


@contextmanager
def opened(root: Path, at_once: int) -> Iterator[Stores]:
    with closing(Stores(StoreSettings(str(root), max_concurrent_unpacks=at_once))) as stores:
        yield stores


def image(layers: Sequence[Sequence[Entry]]) -> bytes:
    return archive(build([layer(entries) for entries in layers]), NAME)


def load(parts: Parts, data: bytes, snapshotter: str = "overlayfs") -> ImportResult:
    options = ImportOptions(unpack=Unpacking(snapshotter))
    return import_archive(parts, SCOPE, io.BytesIO(data).read, options)


def tree(stores: Stores, result: ImportResult, snapshotter: str = "overlayfs") -> dict[str, Seen]:
    [unpacked] = result.unpacked
    return look(stores.metadata.snapshots(SCOPE, snapshotter).view("look", unpacked.chain_id))


def outcome(
    root: Path, data: bytes, at_once: int, snapshotter: str = "overlayfs"
) -> dict[str, Seen] | str:
    """The tree, or what is wrong with the image."""
    with opened(root, at_once) as stores:
        try:
            made = tree(stores, load(stores.transfer_parts(), data, snapshotter), snapshotter)
        except Error as error:
            assert_clean(stores)
            return f"{type(error).__name__}: {error}"
        # the root's time is when its snapshot was made
        return {**made, ".": replace(made["."], mtime=0)}


def assert_clean(stores: Stores) -> None:
    """Nothing half-made is there, and what was is collected."""
    stores.metadata.collect()
    assert [i.name for i in stores.metadata.snapshots(SCOPE, "overlayfs").walk()] == []
    assert list(stores.metadata.leases(SCOPE).list()) == []
    assert directories(stores) == set()


def directories(stores: Stores) -> set[str]:
    settings = stores.settings
    root = settings.overlay_root or f"{settings.root}/io.containerd.snapshotter.v1.overlayfs"
    return set(os.listdir(f"{root}/snapshots"))


@pytest.mark.parametrize("name", [*LAYERS, *MORE])
def test_the_tree_is_that_of_one_after_another(tmp_path: Path, name: str) -> None:
    data = image([*(LAYERS | MORE)[name], TOP])
    assert outcome(tmp_path / "together", data, 4) == outcome(tmp_path / "one", data, 1)


PEERS = [
    BASE,
    [Entry("etc/.wh.passwd"), Entry("etc/deep/er/new", b"n"), Entry("var/.wh..wh..opq")],
    [Entry("var/a", b"again"), directory("var/cache")],
    [Entry("own/shadow", b"s"), hard_link("own/shadow2", "own/shadow")],
    [Entry("var/cache", b"a file now"), directory("link"), Entry("link/own", b"o")],
    [directory("new", mode=0o2755, gid=9), Entry("new/x"), Entry("etc/.wh.no"), Entry(".wh.fifo")],
]


def test_the_tree_is_containerds(tmp_path: Path) -> None:
    data = image(PEERS)
    ours = outcome(tmp_path / "ours", data, 4)
    target = tmp_path / "mounted"
    target.mkdir()
    with daemons.running("containerd", tmp_path / "containerd") as daemon:
        assert daemon.ctr("debian", "images", "import", "-", stdin=data).returncode == 0
        done = daemon.ctr("debian", "images", "mount", NAME, str(target))
        assert done.returncode == 0, done.stderr
        try:
            theirs = look_at(str(target))
        finally:
            subprocess.run(["umount", target], check=True)
    assert isinstance(ours, dict)
    assert plain(ours) == plain(theirs)


def plain(seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """Without times: others give now to directories that no layer describes, and without the root,
    of which containerd 1.6 hands on the owner but not the mode."""
    return {path: replace(what, mtime=0) for path, what in seen.items() if path != "."}


OVER = [
    [entry for entry in BASE if entry.name != "var/hard"],
    [Entry("link/through", b"t"), hard_link("etc/shadow2", "etc/shadow"), Entry("var/b", b"new")],
    [symlink("fresh", "var/cache"), Entry("etc/deep/er/implied")],
    [Entry("fresh/through", b"f"), Entry("link/deep/too", b"t"), Entry("link/deep/er/file", b"2")],
    [hard_link("var/linked", "etc/deep/too"), symlink("fifo", "null"), Entry("null", b"a file")],
]


def test_the_tree_is_that_of_gnu_tar(tmp_path: Path) -> None:
    ours = outcome(tmp_path / "ours", image(OVER), 4)
    target = tmp_path / "tar"
    target.mkdir()
    for entries in OVER:
        command = ["tar", "-xp", "--same-owner", "--numeric-owner", "--xattrs-include=*"]
        command += ["--keep-directory-symlink", "-C", str(target)]
        subprocess.run(command, input=layer(entries), check=True, timeout=60)
    assert isinstance(ours, dict)
    theirs = plain(look_at(str(target)))
    assert plain(ours) == theirs


class Meeting(LayerApplier):
    """Goes on when as many layers as ``barrier`` says are being extracted at the same time."""

    barrier: threading.Barrier
    settled = 0

    def apply_ahead(self, *args: object) -> Ahead:  # type: ignore[override]
        self.barrier.wait(30)
        return super().apply_ahead(*args)  # type: ignore[arg-type]

    def settle(self, *args: object) -> tuple[int, ...]:  # type: ignore[override]
        self.settled += 1
        return super().settle(*args)  # type: ignore[arg-type]


def meeting(stores: Stores, count: int) -> tuple[Parts, Meeting]:
    applier = Meeting(stores.metadata.content(SCOPE), stores.workers)
    applier.barrier = threading.Barrier(count)
    return replace(stores.transfer_parts(), applier=lambda scope: applier), applier


def test_layers_are_extracted_at_the_same_time(tmp_path: Path) -> None:
    described = [directory("etc"), Entry("etc/x")]
    with opened(tmp_path, 3) as stores:
        parts, applier = meeting(stores, 3)
        made = tree(stores, load(parts, image([described, [Entry("a")], described])))
        assert {"a", "etc/x"} <= made.keys()
        # nothing hangs on the parents
        assert applier.settled == 0


def test_labels_tell_the_parent_until_it_is_there(tmp_path: Path) -> None:
    with opened(tmp_path, 2) as stores:
        parts, applier = meeting(stores, 2)
        seen: list[Mapping[str, str]] = []
        apply = applier.apply_ahead

        def look_first(*args: object) -> Ahead:
            infos = stores.metadata.snapshots(SCOPE, "overlayfs").walk()
            seen.extend(i.labels for i in infos if i.name.startswith("extract-"))
            return apply(*args)

        applier.apply_ahead = look_first  # type: ignore[method-assign]
        result = load(parts, image([[Entry("a")], [Entry("b")]]))
        snapshots = stores.metadata.snapshots(SCOPE, "overlayfs")
        top = snapshots.stat(result.unpacked[0].chain_id)
        assert top.parent in {labels[PARENT_LABEL] for labels in seen}
        assert top.labels == {"containerd.io/snapshot.ref": top.name}


def test_too_much_that_hangs_on_parents_is_applied_over_them(tmp_path: Path) -> None:
    name = "/".join(["n" * 200] * 15)
    many = [Entry(f"{number:03}/{name}/file") for number in range(30)]
    data = image([[directory("000", mode=0o700)], many])
    with opened(tmp_path, 2) as stores:
        made = tree(stores, load(stores.transfer_parts(), data))
    assert made["000"].mode == "drwx------"
    assert sum(path.endswith("/file") for path in made) == 30


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_a_layer_that_fails_ends_all_and_leaves_nothing(tmp_path: Path, bad: int) -> None:
    tars = [layer([Entry(f"file-{n}", os.urandom(300_000))]) for n in range(5)]
    tars[bad] = b"this is no tar" * 1000
    with opened(tmp_path, 4) as stores:
        parts = stores.transfer_parts()
        with pytest.raises(Error, match=r"^failed to extract layer sha256:\w+: archive/tar"):
            load(parts, archive(build(tars), NAME))
        assert len(parts.flights) == 0
        assert_clean(stores)


@pytest.mark.parametrize("megabytes", [1, 2, 4])
def test_a_full_disk_ends_all_and_leaves_nothing(tmp_path: Path, megabytes: int) -> None:
    rng = random.Random(megabytes)
    layers = [[Entry(f"d{n}/{i}", rng.randbytes(100_000)) for i in range(12)] for n in range(4)]
    with filesystems.tmpfs(tmp_path / "small", f"{megabytes}m") as small:
        settings = StoreSettings(
            str(tmp_path / "root"), overlay_root=str(small), max_concurrent_unpacks=4
        )
        with closing(Stores(settings)) as stores:
            with pytest.raises(ResourceExhausted, match="no space left"):
                load(stores.transfer_parts(), image(layers))
            assert len(stores.transfer_parts().flights) == 0
            assert_clean(stores)


def test_what_is_there_is_built_upon(tmp_path: Path) -> None:
    layers = [BASE, [Entry("var/.wh.a")], [Entry("etc/deep/er/x")], [Entry("var/y")]]
    with opened(tmp_path, 4) as stores:
        parts = stores.transfer_parts()
        load(parts, image(layers[:2]))
        made = tree(stores, load(parts, image(layers)))
    assert {"etc/deep/er/x", "var/y", "var/b"} <= made.keys()
    assert "var/a" not in made
    assert made["."].mode == "drwxr-x--x"
    assert made["etc/deep"].owner == (5, 6)


def test_two_transfers_of_one_image_do_the_work_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted: list[Descriptor] = []

    def counting(function: Any) -> Any:
        def count(self: LayerApplier, layer: Descriptor, *rest: Any) -> Any:
            extracted.append(layer)
            return function(self, layer, *rest)

        return count

    for name in ("apply", "apply_ahead"):
        monkeypatch.setattr(LayerApplier, name, counting(getattr(LayerApplier, name)))
    data = image([[Entry(f"f{n}", os.urandom(100_000))] for n in range(6)])
    with opened(tmp_path, 2) as stores:
        parts = stores.transfer_parts()
        with ThreadPoolExecutor(3) as pool:
            made = [pool.submit(load, parts, data) for _ in range(3)]
            assert len({future.result(60).unpacked[0].chain_id for future in made}) == 1
        stores.gc.collect_and_wait()
        assert len(directories(stores)) == 6
    assert len(extracted) == len({layer.digest for layer in extracted}) == 6


def test_a_snapshotter_that_cannot_rebase_takes_them_in_turn(tmp_path: Path) -> None:
    with opened(tmp_path, 4) as stores:
        result = load(stores.transfer_parts(), image([BASE, [Entry("var/.wh.a")], TOP]), "native")
        [unpacked] = result.unpacked
        with mounted(stores.metadata.snapshots(SCOPE, "native").view("v", unpacked.chain_id)) as at:
            assert (Path(at) / "var/top").exists()
            assert not (Path(at) / "var/a").exists()


def test_only_directories_are_extracted_to_ahead(tmp_path: Path) -> None:
    with opened(tmp_path, 2) as stores:
        applier = stores.applier(SCOPE)
        assert isinstance(applier, LayerApplier)
        with pytest.raises(NeedsParents):
            applier.apply_ahead(
                Descriptor("application/vnd.oci.image.layer.v1.tar", f"sha256:{'0' * 64}", 1),
                [Mount("erofs", "/nothing", ())],
            )


IMPORT = """
import sys
sys.path[:] = {path!r}
from pathlib import Path
from tests.root.test_unpack_together import load, opened
with opened(Path({root!r}), 4) as stores:
    print("open", flush=True)
    load(stores.transfer_parts(), Path({archive!r}).read_bytes())
"""


def test_a_killed_unpack_leaves_nothing_and_can_be_done_again(tmp_path: Path) -> None:
    rng = random.Random(7)
    entries = [
        [Entry(f"d{n}/{i}", rng.randbytes(2000)) for i in range(400)]
        + [Entry("shared/deep/x", b"x"), Entry("d0/.wh.0")]
        for n in range(5)
    ]
    data = image(entries)
    file = tmp_path / "image.tar"
    file.write_bytes(data)
    expected = outcome(tmp_path / "expected", data, 1)
    root = tmp_path / "root"
    script = IMPORT.format(path=sys.path, root=str(root), archive=str(file))
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0.02, 0.6))
            child.send_signal(signal.SIGKILL)
        with opened(root, 4) as stores:
            assert_only_whole_layers(stores, expected)
            for lease in stores.metadata.leases(SCOPE).list():
                stores.metadata.leases(SCOPE).delete(lease.id)
            for record in stores.metadata.images(SCOPE).list():
                stores.metadata.images(SCOPE).delete(record.name)
            assert_clean(stores)
    assert outcome(root, data, 4) == expected


def assert_only_whole_layers(stores: Stores, expected: dict[str, Seen] | str) -> None:
    """What is committed after a crash is a part of the whole, each layer complete."""
    snapshots = stores.metadata.snapshots(SCOPE, "overlayfs")
    assert isinstance(expected, dict)
    for number, info in enumerate(list(snapshots.walk(["kind==committed"]))):
        seen = look(snapshots.view(f"look-{number}", info.name, {"containerd.io/gc.root": "now"}))
        folders = {path for path in seen if path.startswith("d") and "/" not in path}
        for folder in folders:
            there = {p for p in seen if p.startswith(f"{folder}/")}
            missing = {p for p in expected if p.startswith(f"{folder}/")} - there
            assert not missing
        snapshots.remove(f"look-{number}")
