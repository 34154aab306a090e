"""A root that is damaged by hand, found out and mended."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kontti import Engine
from kontti.doctor.base import Finding, Remedy
from kontti.engine.values import Options
from kontti.errors import DataLoss
from kontti.metadata.snapshots import NamespacedSnapshotter
from kontti.namespaces import Scope
from kontti.snapshots.base import Kind
from tests.support import daemons, images, registry
from tests.support.daemons import VENV_BIN
from tests.support.filesystems import ext4, make_ext4

pytestmark = pytest.mark.root
BLOBS = "io.containerd.content.v1.content/blobs/sha256"
DATABASE = "io.containerd.metadata.v1.sqlite/meta.db"
TREES = "io.containerd.snapshotter.v1.{}/snapshots"
IMPORTED = "docker.io/library/imported:1"
RATE = 4 << 20


@dataclass
class Ward:
    """A root with an image from a registry and an imported one, both unpacked."""

    folder: Path
    name: str

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def opened(self) -> Engine:
        return Engine(str(self.root), str(self.folder / "state"))

    def check(self, *, repair: bool = False, deep: bool = True) -> list[Finding]:
        with self.opened() as engine:
            return list(engine.doctor(repair=repair, deep=deep, plain_http=True))

    def blob(self, number: int) -> Path:
        """The pulled image's blobs by size, the largest first."""
        found = [p for p in (self.root / BLOBS).iterdir() if p.name in self.pulled]
        return sorted(found, key=lambda path: -path.stat().st_size)[number]

    @property
    def pulled(self) -> set[str]:
        return {digest.removeprefix("sha256:") for digest in IMAGE.blobs}

    def run(self) -> bytes:
        with self.opened() as engine:
            return engine.run(self.name, ["cat", "/extra/file"]).stdout


IMAGE = images.build(
    [images.base_layer(), images.layer([images.Entry("extra/file", b"extra" * 1000)])]
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry.running(tmp_path_factory.mktemp("registry")) as found:
        registry.push(found, "busybox", "1", IMAGE)
        yield found


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory, address: str) -> Iterator[Path]:
    """A root to be copied, on a file system of its own."""
    folder = tmp_path_factory.mktemp("healthy")
    make_ext4(folder / "image", 512 << 20)
    with ext4(folder / "image", folder / "disk") as disk:
        with Engine(str(disk / "made/root"), str(disk / "made/state")) as engine:
            engine.pull(f"{address}/busybox:1", plain_http=True)
            other = images.build([images.base_layer(), images.second_layer()])
            engine.import_image(io.BytesIO(images.archive(other, IMPORTED)))
            # the archive's own index is nobody's: a rebuild would give it a name
            engine._stores.gc.collect_and_wait()
        yield disk


@pytest.fixture
def ward(healthy: Path, address: str, tmp_path: Path) -> Iterator[Ward]:
    folder = healthy / tmp_path.name
    subprocess.run(["cp", "-a", healthy / "made", folder], check=True)
    yield Ward(folder, f"{address}/busybox:1")
    shutil.rmtree(folder)


def test_a_healthy_root(ward: Ward) -> None:
    assert ward.check() == []
    assert ward.check(deep=False) == []
    assert ward.check(repair=True) == []


def test_a_damaged_blob_is_put_aside_and_fetched(ward: Ward) -> None:
    blob = ward.blob(0)
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    assert ward.check(deep=False) == []
    (finding,) = ward.check()
    assert (finding.kind, finding.name) == ("blob", f"sha256:{blob.name}")
    assert (finding.remedy, finding.mended) == (Remedy.FETCH, False)
    (finding,) = ward.check(repair=True)
    assert finding.mended
    assert (ward.root / "quarantine" / f"sha256-{blob.name}").read_bytes() == data
    assert ward.check() == []
    assert ward.run() == b"extra" * 1000


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_blob_that_is_gone_is_fetched(ward: Ward, number: int) -> None:
    """A layer, and the small documents too."""
    blob = ward.blob(number)
    blob.unlink()
    found = ward.check(deep=False)
    assert f"sha256:{blob.name}" in {finding.name for finding in found}
    assert all(finding.mended for finding in ward.check(repair=True))
    assert ward.check() == []
    assert ward.run() == b"extra" * 1000


def test_what_no_registry_has_is_told_and_can_be_imported_again(ward: Ward) -> None:
    own = [p for p in (ward.root / BLOBS).iterdir() if p.name not in ward.pulled]
    lost = max(own, key=lambda path: path.stat().st_size)
    lost.unlink()
    (finding,) = ward.check(repair=True)
    assert (finding.name, finding.mended) == (f"sha256:{lost.name}", False)
    with ward.opened() as engine:
        other = images.build([images.base_layer(), images.second_layer()])
        engine.import_image(io.BytesIO(images.archive(other, IMPORTED)))
    assert ward.check() == []


def committed(ward: Ward, snapshotter: str, name: str) -> Path:
    trees = ward.root / TREES.format(snapshotter)
    # those of removed snapshots are there until they are collected
    return next(path for path in trees.glob(f"[0-9]*/**/{name}"))


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_a_damaged_layer_is_unpacked_again(ward: Ward, snapshotter: str) -> None:
    with ward.opened() as engine:
        engine.run(ward.name, ["true"], Options(snapshotter=snapshotter))
    file = committed(ward, snapshotter, "extra/file")
    before = file.stat()
    file.write_bytes(b"evil!" * 1000)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    (finding,) = ward.check()
    assert (finding.kind, finding.remedy) == (snapshotter, Remedy.UNPACK)
    assert "/extra/file has other bytes" in finding.problem
    (finding,) = ward.check(repair=True)
    assert finding.mended
    assert ward.check() == []
    with ward.opened() as engine:
        options = Options(snapshotter=snapshotter)
        done = engine.run(ward.name, ["cat", "/extra/file"], options)
    assert done.stdout == b"extra" * 1000


def test_a_damaged_image_of_erofs_is_made_again(ward: Ward) -> None:
    options = Options(snapshotter="erofs")
    with ward.opened() as engine:
        assert engine.run(ward.name, ["cat", "/extra/file"], options).exit_code == 0
    for path in (ward.root / TREES.format("erofs")).glob("*/layer.erofs"):
        data = bytearray(path.read_bytes())
        if b"extraextra" in data:
            at = data.index(b"extraextra")
            data[at : at + 4] = b"EVIL"
            path.write_bytes(data)
            break
    found = ward.check()
    assert [f.kind for f in found] == ["erofs"]
    assert all(finding.mended for finding in ward.check(repair=True))
    assert ward.check() == []
    with ward.opened() as engine:
        assert engine.run(ward.name, ["cat", "/extra/file"], options).stdout == b"extra" * 1000


@pytest.mark.parametrize("how", ["directory", "files"])
def test_a_layer_that_is_gone_is_unpacked_again(ward: Ward, how: str) -> None:
    file = committed(ward, "overlayfs", "extra/file")
    if how == "files":
        file.unlink()
    else:
        shutil.rmtree(file.parents[2])
    (finding,) = ward.check(deep=False)
    assert finding.remedy is Remedy.UNPACK
    assert all(finding.mended for finding in ward.check(repair=True))
    assert ward.check() == []
    assert ward.run() == b"extra" * 1000


def test_what_nobody_knows_of_is_removed(ward: Ward) -> None:
    stray = ward.root / BLOBS / ("ab" * 32)
    stray.write_bytes(b"stray")
    with ward.opened() as engine:
        engine._stores.snapshotters["overlayfs"].prepare("default/999/stray")
        found = engine.doctor(deep=False)
        assert {(f.remedy, f.name) for f in found} >= {
            (Remedy.COLLECT, f"sha256:{stray.name}"),
            (Remedy.COLLECT, "default/999/stray"),
        }
        assert all(f.mended for f in engine.doctor(repair=True))
    assert not stray.exists()
    assert ward.check() == []


def test_a_commit_that_was_cut_short_is_finished(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with ward.opened() as engine:
        snapshots = engine._stores.metadata.snapshots(Scope("default"), "overlayfs")
        snapshots.prepare("work", "", {"containerd.io/gc.root": "yes"})
        with monkeypatch.context() as patch:
            patch.setattr(NamespacedSnapshotter, "_record_commit", killed)
            with pytest.raises(Killed):
                snapshots.commit("made", "work", {"containerd.io/gc.root": "yes"})
        (found,) = [f for f in engine.doctor(deep=False) if f.kind == "overlayfs"]
        said = (found.name, found.remedy, found.problem)
        assert said == ("work", Remedy.COLLECT, "its commit to made was cut short")
        assert all(finding.mended for finding in engine.doctor(repair=True, deep=False))
        assert engine.doctor(deep=False) == ()
        assert snapshots.stat("made").kind is Kind.COMMITTED
        # one that nothing is noted of: its record can only be forgotten
        snapshots.prepare("lost")
        (row,) = [r for r in engine._stores.metadata.snapshot_rows("overlayfs") if r.key == "lost"]
        engine._stores.snapshotters["overlayfs"].remove(row.backend)
        (found,) = engine.doctor(deep=False)
        assert (found.name, found.remedy) == ("lost", Remedy.FORGET)
        assert all(finding.mended for finding in engine.doctor(repair=True, deep=False))
        assert engine.doctor(deep=False) == ()


def remove_database(ward: Ward) -> None:
    for suffix in ("", "-wal", "-shm"):
        ward.root.joinpath(DATABASE + suffix).unlink(missing_ok=True)


def test_a_database_that_is_gone_is_made_again_of_its_copy(ward: Ward) -> None:
    with ward.opened() as engine:
        engine.run(ward.name, ["sh", "-c", "echo kept > /kept"], Options(name="kept"), remove=False)
        before = [engine.images(), engine.inspect("kept")]
    assert ward.root.joinpath(f"{DATABASE}.backup").exists()
    # the copy is from before: the one that an hour later would have been made
    with ward.opened() as engine:
        engine._stores.metadata.back_up()
    remove_database(ward)
    with ward.opened() as engine:
        assert [engine.images(), engine.inspect("kept")] == before
        engine._stores.gc.collect_and_wait()
        assert engine.doctor() == ()
        engine.remove("kept")
    assert ward.run() == b"extra" * 1000


def test_a_database_that_is_gone_with_its_copy(ward: Ward) -> None:
    """What runs is not lost to the collector: images come back under names by digest."""
    remove_database(ward)
    ward.root.joinpath(f"{DATABASE}.backup").unlink()
    blobs = sorted(path.name for path in (ward.root / BLOBS).iterdir())
    with ward.opened() as engine:
        engine._stores.gc.collect_and_wait()
        assert sorted(path.name for path in (ward.root / BLOBS).iterdir()) == blobs
        names = {image.name for image in engine.images()}
        assert f"recovered@{IMAGE.digest}" in names
        assert len(names) == 2
        assert engine.doctor() == ()
        done = engine.run(f"recovered@{IMAGE.digest}", ["cat", "/extra/file"])
        assert done.stdout == b"extra" * 1000


def kontti(ward: Ward, *args: str) -> subprocess.CompletedProcess[str]:
    where = ("--root", str(ward.root), "--state", str(ward.folder / "state"))
    argv = [str(VENV_BIN / "kontti"), *where, "doctor", "--plain-http", *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)


def test_the_command(ward: Ward) -> None:
    done = kontti(ward)
    assert (done.returncode, done.stdout) == (0, "all is well\n")
    ward.blob(0).unlink()
    done = kontti(ward, "--format", "json")
    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)
    assert (finding["kind"], finding["remedy"], finding["mended"]) == ("blob", "fetch", False)
    done = kontti(ward, "--repair")
    assert done.returncode == 0, done
    assert done.stdout.endswith("all is well again\n")


def test_a_database_that_is_damaged(ward: Ward) -> None:
    ward.root.joinpath(DATABASE).write_bytes(b"garbage" * 5000)
    with pytest.raises(DataLoss):
        ward.opened()
    done = kontti(ward)
    assert done.returncode == 1
    assert "damaged" in done.stderr or "not a database" in done.stderr
    done = kontti(ward, "--repair")
    assert done.returncode == 0, done
    assert "made anew" in done.stdout
    assert list((ward.root / "quarantine").glob("metadata-*/meta.db"))
    assert ward.run() == b"extra" * 1000


def test_a_daemon_looks_after_a_crash(ward: Ward) -> None:
    file = committed(ward, "overlayfs", "extra/file")
    file.unlink()
    (ward.root / "open").touch()
    gone = ward.blob(0)
    gone.unlink()
    base = ward.folder
    (base / "config.toml").write_text(daemons.config("kontti"))
    daemon, process = daemons.start("kontti", base)
    try:
        deadline = time.monotonic() + 30
        while "looked through" not in daemon.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        daemons.stop(process)
        daemons.clean(base)
    log = daemon.log.read_text()
    assert "did not stop in order" in log
    assert f"blob sha256:{gone.name}: its file is gone: see kontti doctor" in log
    assert file.read_bytes() == b"extra" * 1000
    assert not (ward.root / "open").exists()


@pytest.mark.parametrize("kind", ["kontti", "containerd"])
def test_content_verify(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(images.archive(IMAGE, IMPORTED))
    with daemons.running(kind, tmp_path / "d") as daemon:
        assert daemon.ctr("ours", "images", "import", str(archive)).returncode == 0
        done = daemon.ctr("ours", "content", "verify")
        assert (done.returncode, done.stderr) == (0, b"")
        assert set(done.stdout.decode().split()) >= set(IMAGE.blobs)
        blob = next(daemon.root.glob(f"**/blobs/sha256/{IMAGE.digest.removeprefix('sha256:')}"))
        blob.chmod(0o644)
        blob.write_bytes(b"x" * blob.stat().st_size)
        done = daemon.ctr("ours", "content", "verify", "-q")
        assert done.returncode == 1
        assert done.stdout == b""
        assert f"failed to verify {IMAGE.digest}" in done.stderr.decode()
        done = daemon.ctr("ours", "content", "verify", f"sha256:{'0' * 64}")
        assert b"not found" in done.stderr


def test_a_limited_rate(ward: Ward) -> None:
    size = sum(path.stat().st_size for path in (ward.root / BLOBS).iterdir())
    with ward.opened() as engine:
        began = time.monotonic()
        engine.doctor(rate=size)
        # never quicker than the rate lets it
        assert time.monotonic() - began >= 0.9
