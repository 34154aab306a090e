"""Taking over roots that Debian's containerd made."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti import Engine
from kontti.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from kontti.migrate.adopt import Outcome
from kontti.migrate.source import read
from tests.support import daemons, images
from tests.support.daemons import VENV_BIN, Daemon

pytestmark = pytest.mark.root
NAME = "docker.io/library/busybox:migrated"
MANY = 400


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "image.tar"
    path.write_bytes(images.archive(images.build(), NAME))
    return path


def out(daemon: Daemon, *args: str) -> str:
    done = daemon.ctr("debian", *args, timeout=60)
    assert done.returncode == 0, done
    return done.stdout.decode()


@pytest.fixture
def source(tmp_path: Path, archive: Path) -> Path:
    """A root with an image in two namespaces, a stopped container that wrote, and many names."""
    base = tmp_path / "c"
    with daemons.running("containerd", base) as daemon:
        out(daemon, "images", "import", str(archive))
        out(daemon, "-n", "other", "images", "import", str(archive))
        script = "echo kept > /kept; ln -s kept /link; rm /bin/ls; mkdir /d; chmod 700 /d"
        out(daemon, "run", NAME, "wrote", "sh", "-c", script)
        out(daemon, "containers", "label", "wrote", "colour=green")
        names = [f"docker.io/library/name:{number}" for number in range(MANY)]
        out(daemon, "images", "tag", NAME, *names)
    return base / "root"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(str(tmp_path / "k"), str(tmp_path / "s")) as made:
        yield made


def migrate(engine: Engine, source: Path, *, copy: bool = False) -> tuple[Outcome, ...]:
    return engine.migrate(str(source), copy=copy, tell=lambda _: None)


def listing(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every file's inode, links and time of change, but for those of the links we make."""
    found = {}
    for folder, _, files in os.walk(root):
        for name in files:
            status = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


@pytest.mark.parametrize("copy", [False, True])
def test_images_and_stopped_containers_come_over(
    engine: Engine, source: Path, tmp_path: Path, copy: bool
) -> None:
    before = listing(source)
    found = migrate(engine, source, copy=copy)
    assert [o for o in found if o.problem] == []
    assert listing(source) == before
    assert {(o.kind, o.namespace, o.name) for o in found if o.kind == "container"} == {
        ("container", "default", "wrote")
    }
    assert len([o for o in found if o.kind == "image" and o.namespace == "default"]) == MANY + 1
    assert NAME in {image.name for image in engine.images()}
    blobs = sorted((source / "io.containerd.content.v1.content/blobs/sha256").iterdir())
    ours = tmp_path / "k" / "io.containerd.content.v1.content/blobs/sha256"
    assert [path.name for path in blobs] == sorted(path.name for path in ours.iterdir())
    assert all((ours / path.name).samefile(path) is not copy for path in blobs)

    # the image runs, and the container is what it was
    assert engine.run(NAME, ["echo", "hello"]).stdout == b"hello\n"
    assert engine.container("wrote").status == "none"
    record = engine.inspect("wrote")
    assert (record["labels"], record["image"]) == ({"colour": "green"} | labels(record), NAME)
    upper = next(
        (tmp_path / "k").glob("io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs/kept")
    )
    assert upper.read_text() == "kept\n"
    assert os.readlink(upper.parent / "link") == "kept"
    assert (upper.parent / "d").stat().st_mode & 0o777 == 0o700
    assert not os.major((upper.parent / "bin/ls").lstat().st_rdev)
    assert (upper.parent / "bin/ls").is_char_device()

    engine._stores.gc.collect_and_wait()
    again = migrate(engine, source, copy=copy)
    assert all(outcome.present for outcome in again)
    engine.remove("wrote")


def labels(record: dict[str, object]) -> dict[str, str]:
    found = record["labels"]
    assert isinstance(found, dict)
    return {key: value for key, value in found.items() if key.startswith("io.containerd.image")}


def test_a_source_that_is_in_use(engine: Engine, tmp_path: Path) -> None:
    with (
        daemons.running("containerd", tmp_path / "busy") as daemon,
        pytest.raises(FailedPrecondition, match="in use"),
    ):
        migrate(engine, daemon.root)


def test_a_running_container_stays_where_it_is(
    engine: Engine, tmp_path: Path, archive: Path
) -> None:
    base = tmp_path / "c"
    with daemons.running("containerd", base) as daemon:
        out(daemon, "images", "import", str(archive))
        out(daemon, "run", "-d", "--null-io", NAME, "migrate-runs", "sleep", "1000")
        daemon_pid = daemon.pid
        os.kill(daemon_pid, 9)
        os.waitpid(daemon_pid, 0)
        problems = [o for o in migrate(engine, base / "root") if o.problem]
        assert [(o.kind, o.name) for o in problems] == [("container", "migrate-runs")]
        assert "running" in problems[0].problem
        assert engine.containers() == []
        again, process = daemons.start("containerd", base)
        try:
            out(again, "tasks", "kill", "-s", "KILL", "migrate-runs")
            again.ctr("debian", "tasks", "delete", "--force", "migrate-runs")
        finally:
            daemons.stop(process)


def test_a_damaged_blob_is_left_and_told(engine: Engine, source: Path) -> None:
    blobs = sorted(
        (source / "io.containerd.content.v1.content/blobs/sha256").iterdir(),
        key=lambda path: path.stat().st_size,
    )
    damaged = bytearray(blobs[-1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    blobs[-1].write_bytes(damaged)
    found = migrate(engine, source)
    problems = {(o.kind, o.name) for o in found if o.problem and o.namespace == "default"}
    assert ("blob", f"sha256:{blobs[-1].name}") in problems
    assert ("image", NAME) in problems
    problem = next(o.problem for o in found if o.problem and o.kind == "blob")
    assert "damaged" in problem
    assert problem.endswith(DataLoss.wording)


def test_roots_that_are_none(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        migrate(engine, tmp_path / "nowhere")
    folder = tmp_path / "other" / "io.containerd.metadata.v1.bolt"
    folder.mkdir(parents=True)
    (folder / "meta.db").write_bytes(b"")
    with pytest.raises(InvalidArgument):
        read(str(tmp_path / "other"))


def test_the_command(source: Path, tmp_path: Path) -> None:
    def kontti(*args: str) -> subprocess.CompletedProcess[str]:
        where = ("--root", str(tmp_path / "k"), "--state", str(tmp_path / "s"))
        argv = [str(VENV_BIN / "kontti"), *where, *args]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    done = kontti("migrate", str(source))
    assert (done.returncode, done.stderr) == (0, "")
    assert "container default/wrote" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"images: {MANY + 2}, containers: 1, blobs: ")
    done = kontti("migrate", "--format", "json", str(source))
    assert all(outcome["present"] for outcome in json.loads(done.stdout))
    done = kontti("migrate", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("kontti: ")
