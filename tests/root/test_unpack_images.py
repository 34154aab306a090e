"""Images of several layers that are unpacked as EROFS images: by transfers, and by clients."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.engine.stores import Stores
from kontti.snapshots.erofs import ErofsSnapshotter
from tests.root.test_apply import LAYERS
from tests.root.test_unpack_together import (
    KILLS,
    MORE,
    NAME,
    PEERS,
    SCOPE,
    TOP,
    image,
    load,
    opened,
    outcome,
)
from tests.support import daemons
from tests.support.filesystems import mount_points
from tests.support.images import Entry, archive, base_layer, build, directory, layer, symlink

pytestmark = pytest.mark.root
TREES = "io.containerd.snapshotter.v1.erofs/snapshots"
MARKED = Entry("d", kind=b"5", pax={"SCHILY.xattr.user.k": "v"}, mode=0o710)
IMAGES: dict[str, list[list[Entry]]] = {
    "attributes of implied directories": [[MARKED, Entry("d/a")], [Entry("d/e/b")], TOP],
    "implied directories of many layers": [
        [directory("a/b", mode=0o700, uid=4), Entry("a/b/1")],
        [directory("a", mode=0o711), Entry("a/b/c/2")],
        [Entry("a/b/c/d/3"), Entry("a/.wh.x")],
    ],
}


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("name", [*LAYERS, *MORE, *IMAGES])
def test_erofs_images_show_the_tree_of_directories(tmp_path: Path, name: str, at_once: int) -> None:
    data = image([*(LAYERS | MORE | IMAGES)[name], TOP])
    wanted = outcome(tmp_path / "one", data, 1)
    assert outcome(tmp_path / "images", data, at_once, "erofs") == wanted


def test_erofs_images_are_whole_and_made_of_tars(tmp_path: Path) -> None:
    layers = [layer(entries) for entries in PEERS]
    with opened(tmp_path, 4) as stores:
        load(stores.transfer_parts(), archive(build(layers), NAME), "erofs")
        snapshotter = stores.snapshotters["erofs"]
        assert isinstance(snapshotter, ErofsSnapshotter)
        names = [info.name for info in snapshotter.walk()]
        assert [snapshotter.damage(name) for name in names] == [""] * len(PEERS)
        made = [Path(snapshotter.image(n)).read_bytes() for n in snapshotter.records.ids()]
        # all but the one that replaces a directory of its parents' after going through it
        straight = [data[4096 : 4096 + len(tar)] == tar for data in made for tar in layers]
        assert straight.count(True) == len(PEERS)


SCRIPT = """
import sys
sys.path[:] = {path!r}
from pathlib import Path
from tests.root.test_unpack_together import load, opened
with opened(Path({root!r}), 4) as stores:
    print("open", flush=True)
    load(stores.transfer_parts(), Path({archive!r}).read_bytes(), "erofs")
"""


def test_a_killed_unpack_leaves_no_half_image(tmp_path: Path) -> None:
    rng = random.Random(11)
    entries = [
        [Entry(f"d{n}/{i}", rng.randbytes(3000)) for i in range(600)]
        + [Entry("shared/deep/x", b"x"), Entry("d0/.wh.0")]
        for n in range(5)
    ]
    data = image(entries)
    file = tmp_path / "image.tar"
    file.write_bytes(data)
    root = tmp_path / "root"
    script = SCRIPT.format(path=sys.path, root=str(root), archive=str(file))
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0.02, 0.6))
            child.send_signal(signal.SIGKILL)
        with opened(root, 4) as stores:
            assert_whole(stores)
            for lease in stores.metadata.leases(SCOPE).list():
                stores.metadata.leases(SCOPE).delete(lease.id)
            for record in stores.metadata.images(SCOPE).list():
                stores.metadata.images(SCOPE).delete(record.name)
            stores.metadata.collect()
            assert os.listdir(root / TREES) == []
    assert outcome(root, data, 4, "erofs") == outcome(tmp_path / "expected", data, 1)


def assert_whole(stores: Stores) -> None:
    snapshotter = stores.snapshotters["erofs"]
    assert isinstance(snapshotter, ErofsSnapshotter)
    for info in snapshotter.walk(["kind==committed"]):
        assert snapshotter.damage(info.name) == ""
    for folder in (stores_root := Path(snapshotter.trees)).iterdir():
        named = {name for name in os.listdir(folder) if name.endswith(".erofs")}
        assert named <= {"layer.erofs", "applied.erofs"}, stores_root


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemons.Daemon]:
    base = tmp_path_factory.mktemp("daemon")
    with daemons.running("kontti", base) as running:
        yield running
    assert not [point for point in mount_points() if point.startswith(str(base))]


def straight(daemon: daemons.Daemon, tars: list[bytes]) -> int:
    """How many of the layers there are made of these tars as they are."""
    made = [path.read_bytes() for path in Path(daemon.root, TREES).glob("*/layer.erofs")]
    return sum(data[4096 : 4096 + len(tar)] == tar for data in made for tar in tars)


@pytest.mark.parametrize("client", ["ours", "debian"])
def test_clients_unpack_to_images_and_run(
    daemon: daemons.Daemon, tmp_path: Path, client: str
) -> None:
    """Whiteouts, opaque directories, and layers that need files: through a parent's symlink."""
    name = f"docker.io/library/images:{client}"
    seed = Entry("seed", client.encode())
    entries = [
        [seed, directory("old"), Entry("old/a", b"1"), directory("dir"), Entry("dir/gone")],
        [seed, Entry("old/.wh..wh..opq"), Entry("old/b", b"2"), Entry("dir/.wh.gone")],
        [seed, symlink("way", "dir")],
        [seed, Entry("way/through", b"3")],
    ]
    tars = [base_layer(), *map(layer, entries)]
    file = tmp_path / "image.tar"
    file.write_bytes(archive(build(tars), name))

    def out(*args: str) -> str:
        done = daemon.ctr(client, *args, timeout=60)
        assert done.returncode == 0, done
        return done.stdout.decode()

    flags = ("--snapshotter", "erofs")
    out("images", "import", *flags, str(file))
    assert straight(daemon, tars) == len(tars) - 1
    script = (
        "ls /old /dir; cat /old/b /dir/through /seed; echo w > /old/c; rm /dir/through; ls /dir"
    )
    said = out("run", "--rm", *flags, name, f"images-{client}", "sh", "-c", script)
    assert said == f"/dir:\nthrough\n\n/old:\nb\n23{client}"
    usage = out("snapshots", *flags, "usage").splitlines()[1:]
    assert len(usage) == len(tars)
    out("images", "rm", "--sync", name)
    assert out("snapshots", *flags, "ls").splitlines()[1:] == []
