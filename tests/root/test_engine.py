"""The Python API: containers in this process."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti import Engine
from kontti.engine.values import ExecOptions, Options
from kontti.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, NotFound
from tests.support import images
from tests.support.shims import short_folder

pytestmark = pytest.mark.root
IMAGE = "docker.io/library/busybox:test"
REPOSITORY = Path(__file__).resolve().parents[2]
LOOP = ["sh", "-c", "while true; do echo tick; sleep 0.1; done"]
# a first process without a handler does not see TERM
OBEDIENT = ["sh", "-c", "trap 'exit 9' TERM; echo up; while true; do sleep 0.05; done"]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Engine]:
    """An engine below ``folder``; at the end all its containers go."""
    with Engine(str(folder / "root"), str(folder / "state")) as engine:
        try:
            yield engine
        finally:
            for container in engine.containers():
                engine.remove(container.id, force=True)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with opened(folder) as made:
        made.import_image(io.BytesIO(images.archive(images.build(), IMAGE)))
        yield made


@pytest.fixture(autouse=True)
def nothing_left(engine: Engine, folder: Path) -> Iterator[None]:
    """Each test takes away what it made: containers, snapshots, logs, FIFOs, bundles."""
    snapshots = count_snapshots(engine)
    assert snapshots > 0
    yield
    assert engine.containers() == []
    assert count_snapshots(engine) == snapshots
    for name in ("root/logs/default", "state/fifo"):
        assert not (folder / name).exists() or os.listdir(folder / name) == []
    task_folder = folder / "state" / "io.containerd.runtime.v2.task" / "default"
    assert not task_folder.exists() or os.listdir(task_folder) == []


def count_snapshots(engine: Engine) -> int:
    return len(list(engine._stores.metadata.snapshots(engine._scope, "overlayfs").walk()))


def test_image_is_listed(engine: Engine) -> None:
    [image] = engine.images()
    assert image.name == IMAGE
    assert image.digest.startswith("sha256:")
    assert image.size > 100_000
    assert image.platforms == ("linux/amd64",) or image.platforms == ("linux/arm64",)


def test_run_gives_output_and_exit_code(engine: Engine) -> None:
    result = engine.run("busybox:test", ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"out\n", b"err\n")


def test_run_feeds_input_and_ends_it(engine: Engine) -> None:
    data = os.urandom(1 << 20)
    assert engine.run(IMAGE, ["cat"], input=data).stdout == data


def test_much_output_is_complete(engine: Engine) -> None:
    total = 0

    def count(data: bytes) -> None:
        nonlocal total
        total += len(data)

    script = "dd if=/dev/zero bs=65536 count=512 2>/dev/null"
    assert engine.run(IMAGE, ["sh", "-c", script], stdout=count).exit_code == 0
    assert total == 512 * 65536


def test_options_reach_the_process(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("from the host\n")
    tmp_path.chmod(0o755)
    options = Options(
        name="opt",
        env={"COLOUR": "red"},
        cwd="/tmp",
        user="1000:1001",
        mounts=[f"{tmp_path}:/mnt:ro"],
        hostname="box",
        memory=64 << 20,
        cpus=0.5,
    )
    script = "echo $COLOUR; pwd; id -u; id -g; hostname; cat /mnt/note; touch /mnt/x; echo $?"
    result = engine.run(IMAGE, ["sh", "-c", script], options)
    wanted = ["red", "/tmp", "1000", "1001", "box", "from the host", "1"]
    assert result.stdout.decode().split("\n")[:-1] == wanted
    assert result.id == "opt"


def test_seccomp_is_in_force_unless_privileged(engine: Engine) -> None:
    command = ["grep", "Seccomp:", "/proc/self/status"]
    assert engine.run(IMAGE, command).stdout.split() == [b"Seccomp:", b"2"]
    privileged = engine.run(IMAGE, command, Options(privileged=True))
    assert privileged.stdout.split() == [b"Seccomp:", b"0"]


def test_read_only_root(engine: Engine) -> None:
    result = engine.run(IMAGE, ["touch", "/x"], Options(read_only=True))
    assert result.exit_code == 1
    assert b"Read-only" in result.stderr


def test_a_kept_run_has_status_and_log(engine: Engine) -> None:
    result = engine.run(IMAGE, ["sh", "-c", "echo one; echo two; exit 4"], remove=False)
    info = engine.container(result.id)
    assert (info.status, info.exit_code, info.pid) == ("stopped", 4, 0)
    assert b"".join(engine.logs(result.id)) == b"one\ntwo\n"
    assert b"".join(engine.logs(result.id, tail=1)) == b"two\n"
    assert engine.containers(all=False) == []
    engine.remove(result.id)


def test_background_container(engine: Engine) -> None:
    started = engine.start(IMAGE, OBEDIENT, Options(name="bg"))
    assert started.status == "running"
    assert next(engine.logs("bg", follow=True)) == b"up\n"
    assert [c.id for c in engine.containers(all=False)] == ["bg"]
    result = engine.exec("bg", ["sh", "-c", "cat; echo $N; exit 6"], input=b"in ")
    assert (result.stdout, result.exit_code) == (b"in \n", 6)
    result = engine.exec(
        "bg", ["sh", "-c", "echo $N; pwd; id -u"], ExecOptions({"N": "5"}, "/tmp", "7")
    )
    assert result.stdout == b"5\n/tmp\n7\n"
    with pytest.raises(FailedPrecondition, match="bg is running"):
        engine.remove("bg")
    assert engine.stop("bg") == 9
    assert engine.wait("bg") == 9
    assert engine.stop("bg") == 9
    engine.remove("bg")


def test_stop_makes_one_that_does_not_listen(engine: Engine) -> None:
    engine.start(IMAGE, LOOP, Options(name="deaf"))
    assert engine.stop("deaf", timeout=0.1) == 137
    engine.remove("deaf")


def test_remove_by_force(engine: Engine) -> None:
    engine.start(IMAGE, LOOP, Options(name="gone"))
    engine.remove("gone", force=True)
    with pytest.raises(NotFound):
        engine.container("gone")


def test_follow_goes_on_to_the_end(engine: Engine) -> None:
    engine.start(IMAGE, ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"], Options("f"))
    assert b"".join(engine.logs("f", follow=True)) == b"1\n2\n3\n"
    engine.remove("f")


def test_inspect(engine: Engine) -> None:
    engine.start(IMAGE, LOOP, Options("look"))
    found = engine.inspect("look")
    assert (found["id"], found["image"], found["status"]) == ("look", IMAGE, "running")
    spec = found["spec"]
    assert isinstance(spec, dict)
    assert spec["process"]["args"] == LOOP
    engine.remove("look", force=True)


def test_command_that_does_not_exist(engine: Engine) -> None:
    with pytest.raises(Error, match="not found"):
        engine.run(IMAGE, ["/no/such"])


def test_exec_that_does_not_exist(engine: Engine) -> None:
    engine.start(IMAGE, LOOP, Options("e"))
    with pytest.raises(Error, match=r"not found|no such file"):
        engine.exec("e", ["/no/such"])
    with pytest.raises(InvalidArgument):
        engine.exec("e", [])
    assert engine.exec("e", ["true"]).exit_code == 0
    engine.remove("e", force=True)


def test_same_name_twice(engine: Engine) -> None:
    engine.start(IMAGE, LOOP, Options("twin"))
    with pytest.raises(AlreadyExists):
        engine.start(IMAGE, LOOP, Options("twin"))
    assert engine.container("twin").status == "running"
    engine.remove("twin", force=True)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (Options(mounts=["nonsense"]), InvalidArgument),
        (Options(network="bridge"), InvalidArgument),
        (Options(name="../up"), InvalidArgument),
        (Options(user="nobody-of-that-name"), NotFound),
        (Options(snapshotter="nosuch"), Error),
        (Options(runtime="io.containerd.nosuch.v1"), Error),
    ],
)
def test_options_that_are_wrong(engine: Engine, options: Options, wanted: type[Error]) -> None:
    with pytest.raises(wanted):
        engine.run(IMAGE, ["true"], options)


def test_image_that_is_not_there(engine: Engine) -> None:
    with pytest.raises(NotFound):
        engine.run("nosuch", ["true"])


def test_runs_from_several_threads(engine: Engine) -> None:
    codes: list[int] = []

    def one(code: int) -> None:
        codes.append(engine.run(IMAGE, ["sh", "-c", f"exit {code}"]).exit_code)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == list(range(8))


def test_one_root_one_owner(engine: Engine, folder: Path) -> None:
    with pytest.raises(
        FailedPrecondition, match=rf"in use by an embedded engine.*pid {os.getpid()}"
    ):
        Engine(str(folder / "root"), str(folder / "other"))
    assert engine.run(IMAGE, ["true"]).exit_code == 0


def test_containers_outlive_the_engine(tmp_path: Path) -> None:
    with short_folder() as folder:
        root, state = str(folder / "root"), str(folder / "state")
        with Engine(root, state) as first:
            first.import_image(io.BytesIO(images.archive(images.build(), IMAGE)))
            pid = first.start(IMAGE, OBEDIENT, Options("on")).pid
            first.start(IMAGE, ["sh", "-c", "sleep 0.2; echo bye; exit 8"], Options("brief"))
        os.kill(pid, 0)
        with opened(folder) as second:
            assert second.container("on").pid == pid
            assert second.exec("on", ["echo", "hi"]).stdout == b"hi\n"
            # its end was seen by nobody but its shim
            assert second.wait("brief") == 8
            assert b"".join(second.logs("brief")) == b"bye\n"
            assert second.stop("on") == 9


def test_the_example(tmp_path: Path) -> None:
    archive = tmp_path / "busybox.tar"
    archive.write_bytes(images.archive(images.build(), IMAGE))
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "run_container.py"), str(archive)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "hello and exit code 3",
        "it counted 12 bytes",
        "exec says clock",
        "clock is running",
        "stopped with exit code 137",
        "it had written tick",
        "0 images are left",
    ]
