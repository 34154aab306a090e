"""What cannot be run, and names that are taken or unknown: containerd's words, and nothing left."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.client.stores import RemoteStores
from kontti.engine.values import Options
from kontti.errors import AlreadyExists, Error, InvalidArgument, NotFound, Unavailable
from kontti.namespaces import Scope
from tests.support import daemons, images
from tests.support.leftovers import SETTLE_SECONDS, Embedded, Place, embedded, place, unchanged
from tests.support.shims import short_folder
from tests.support.trees import device

pytestmark = pytest.mark.root
IMAGE = "docker.io/library/busybox:test"
ABSENT = "sha256:" + "0" * 64
MEM, LOOP = device("mem", 1, 1), device("loop", 7, 0, kind=b"4")


@pytest.fixture(scope="module")
def archive() -> bytes:
    layers = [images.base_layer(), images.layer([MEM, LOOP])]
    return images.archive(images.build(layers), IMAGE)


@pytest.fixture(scope="module", params=(("kontti", "ours"), ("containerd", "debian")))
def at(request: pytest.FixtureRequest, archive: bytes) -> Iterator[Place]:
    """A daemon with an image, which has run a container: what it makes once it has made."""
    with place(*request.param) as made:
        assert made.import_bytes(archive).returncode == 0
        made.out("run", "--rm", IMAGE, f"{made.namespace}w", "true")
        yield made


@pytest.fixture(scope="module")
def engine(archive: bytes) -> Iterator[Embedded]:
    with embedded() as made:
        made.engine.import_image(io.BytesIO(archive))
        made.engine.run(IMAGE, ["true"])
        made.engine.start(IMAGE, ["true"], Options("warm"))
        made.engine.remove("warm", force=True)
        yield made


NO_RUNTIME = r'binary not installed "containerd-shim-nosuch-v1": file does not exist'
# name: arguments (ID is a new container's, NAME its image), what is complained of
FAILURES: dict[str, tuple[str, str]] = {
    "unknown snapshotter": (
        "run --rm --snapshotter nosuch NAME ID true",
        r"snapshotter not loaded: nosuch: invalid argument",
    ),
    "unknown snapshotter to list": (
        "snapshots --snapshotter nosuch ls",
        r"snapshotter not loaded: nosuch: invalid argument",
    ),
    "unknown snapshotter to prepare": (
        "snapshots --snapshotter nosuch prepare k",
        r"snapshotter not loaded: nosuch: invalid argument",
    ),
    "unknown runtime": (
        "run --rm --runtime io.containerd.nosuch.v1 NAME ID true",
        rf"failed to start shim: failed to resolve runtime path: .* {NO_RUNTIME}",
    ),
    "runtime without a version": (
        "run --rm --runtime nosuch NAME ID true",
        r"failed to resolve runtime path: invalid runtime name nosuch, correct runtime name",
    ),
    "runtime by a path to nothing": (
        "run --rm --runtime /no/such/shim NAME ID true",
        r"invalid custom binary path: stat /no/such/shim: no such file or directory",
    ),
    "runtime by a path to a directory": (
        "run --rm --runtime /tmp NAME ID true",
        r"failed to start shim: start failed: .*[Pp]ermission denied",
    ),
    "OCI runtime that is not there": (
        "run --rm --runc-binary /no/such/runc NAME ID true",
        r"failed to create shim task: .*/no/such/runc: no such file or directory",
    ),
    "unknown image": (
        "run --rm docker.io/library/none:1 ID true",
        r'image "docker.io/library/none:1": not found',
    ),
    "id that is a path": (
        "run --rm NAME ../../x true",
        r'container\.ID: identifier "../../x" must match .*: invalid argument',
    ),
    "id that is too long": (
        f"run --rm NAME {'x' * 77} true",
        r'identifier "x{77}" greater than maximum length \(76 characters\): invalid argument',
    ),
    "namespace that is a path": (
        "--namespace ../x images ls",
        r'namespace validation: identifier "../x" must match .*: invalid argument',
    ),
    "unknown command": (
        "run --rm NAME ID /no/such",
        r"failed to create shim task: OCI runtime create failed: .*/no/such.*(?i:no such file)",
    ),
    "command that is a directory": (
        "run --rm NAME ID /etc",
        r"OCI runtime create failed: .*(?i:permission denied|not permitted).*: unknown",
    ),
    "directory that is a file": (
        "run --rm --cwd /etc/passwd/x NAME ID true",
        r"failed to create shim task: OCI runtime create failed: .*(?i:not a directory)",
    ),
    "mount of nothing": (
        "run --rm --mount type=bind,src=/no/such,dst=/mnt,options=rbind NAME ID true",
        r"failed to create shim task: OCI runtime create failed: .*/no/such",
    ),
    "mount that is none": (
        "run --rm --mount nonsense NAME ID true",
        r"invalid mount specification: expected key=val",
    ),
    "device that is not there": (
        "run --rm --device /dev/nosuch NAME ID true",
        r"/dev/nosuch'?: (not found|no such file or directory)",
    ),
    "label that is too long": (
        f"run --rm --label a={'b' * 5000} NAME ID true",
        r"greater than maximum size \(4096 bytes\), key: a: invalid argument",
    ),
    "unknown task": ("tasks start ID", r'container "ID" in namespace ".*": not found'),
    "unknown task to kill": ("tasks kill ID", r'container "ID" in namespace ".*": not found'),
    "unknown container": ("containers info ID", r'container "ID" in namespace ".*": not found'),
    "unknown parent": (
        "snapshots prepare k none",
        r"parent snapshot none does not exist: not found",
    ),
    "unknown snapshot to remove": ("snapshots rm none", r"snapshot none does not exist: not found"),
    "unknown snapshot to commit": ("snapshots commit a none", r"snapshot none does not exist: not"),
    "short digest": ("content get sha256:abc", r"invalid checksum digest length"),
    "digest that is a path": ("content get sha256:../../../etc/passwd", r"invalid checksum digest"),
    "unknown digest": (f"content get {ABSENT}", rf"content digest {ABSENT}: not found"),
    "unknown lease": ("leases rm none", r'lease "none": not found'),
    "unknown image to tag": ("images tag none x", r'image "none": not found'),
    "archive that is not there": ("images import /no/such", r"open /no/such: no such file or dir"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_done(at: Place, name: str) -> None:
    words, complaint = FAILURES[name]
    with unchanged(at):
        fails(at, words, complaint, f"{at.namespace}c")


def detached(at: Place, id: str) -> None:
    at.out("run", "--detach", IMAGE, id, "sleep", "60")


def gone(at: Place, id: str) -> None:
    at.out("tasks", "rm", "--force", id)
    at.out("containers", "rm", id)


TAKEN: dict[str, tuple[str, str]] = {
    "run": ("run --detach NAME ID sleep 60", r'snapshot "ID": already exists'),
    "create": ("containers create NAME ID", r'"ID": already exists'),
    "start": ("tasks start --detach ID", r"task ID: already exists"),
    "remove": ("containers rm ID", r"cannot delete a non stopped container: \{running 0 "),
    "exec": ("tasks exec --exec-id x ID /no/such", r"OCI runtime exec failed: .*/no/such"),
}


def fails(at: Place, words: str, complaint: str, new: str) -> None:
    """That command fails with that complaint; both name the container ``new`` ID."""
    swap = {"ID": new, "NAME": IMAGE}
    message = at.fails(*(swap.get(word, word) for word in words.split()))
    assert re.search(re.sub(r"(?<!\.)\bID\b", new, complaint), message), message


@pytest.mark.parametrize("name", TAKEN)
def test_what_cannot_be_done_beside_a_running_container(at: Place, name: str) -> None:
    words, complaint = TAKEN[name]
    id = f"{at.namespace}d"
    with unchanged(at):
        detached(at, id)
        try:
            with unchanged(at):
                fails(at, words, complaint, id)
            assert f"{id} " in at.out("tasks", "ls")
            assert "RUNNING" in at.out("tasks", "ls")
        finally:
            gone(at, id)


def test_names_that_are_taken(at: Place) -> None:
    with unchanged(at):
        at.out("leases", "create", "--id", "l")
        assert 'lease "l": already exists' in at.fails("leases", "create", "--id", "l")
        at.out("leases", "rm", "l")
        for key in ("k", "../../k"):
            at.out("snapshots", "prepare", key)
            assert f'snapshot "{key}": already exists' in at.fails("snapshots", "prepare", key)
            at.out("snapshots", "rm", key)
        assert f'image "{IMAGE}": already exists' in at.fails("images", "tag", IMAGE, IMAGE)


def test_content_that_is_not_what_was_said(at: Place) -> None:
    with unchanged(at):
        said = ("--expected-digest", "sha256:abc")
        message = at.fails("content", "ingest", *said, "short", stdin=b"hello")
        assert "invalid checksum digest length" in message
    # a ref is its client's to go on with: what failed is kept for a day, as in the original
    with unchanged(at, frozenset(("ingests", "files"))):
        message = at.fails("content", "ingest", "--expected-digest", ABSENT, "bad", stdin=b"hello")
        assert re.search(rf"unexpected commit digest .*, expected {ABSENT}: failed pre", message)
    assert list(at.picture()["ingests"]) == ["bad"]
    at.abort("bad")


@pytest.mark.parametrize("node", ["/mem", "/loop"])
def test_devices_of_an_image_cannot_be_opened(at: Place, node: str) -> None:
    """A layer may have the node: the container's cgroup says who may open it."""
    with unchanged(at):
        done = at.ctr("run", "--rm", IMAGE, f"{at.namespace}n", "head", "-c", "1", node)
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"Operation not permitted" in done.stderr


@pytest.mark.parametrize(
    ("image", "command", "options", "wanted", "complaint"),
    [
        (IMAGE, ["true"], Options(snapshotter="nosuch"), InvalidArgument, "not loaded: nosuch"),
        (IMAGE, ["true"], Options(runtime="io.containerd.nosuch.v1"), Error, NO_RUNTIME),
        (IMAGE, ["true"], Options(name="../x"), InvalidArgument, "must match"),
        (IMAGE, ["/no/such"], None, Error, "OCI runtime create failed: .*/no/such"),
        (IMAGE, ["true"], Options(user="nobodyhere"), NotFound, "no users found: not found"),
        (IMAGE, ["true"], Options(mounts=["/no/such:/mnt"]), Error, "/no/such"),
        ("none", ["true"], None, NotFound, 'image "docker.io/library/none:latest": not found'),
    ],
)
def test_what_an_engine_cannot_run(
    engine: Embedded,
    image: str,
    command: list[str],
    options: Options | None,
    wanted: type[Error],
    complaint: str,
) -> None:
    with unchanged(engine), pytest.raises(wanted, match=complaint):
        engine.engine.run(image, command, options)


def test_a_second_container_of_a_name_in_an_engine(engine: Embedded) -> None:
    with unchanged(engine):
        engine.engine.start(IMAGE, ["sleep", "60"], Options("twin"))
        with unchanged(engine), pytest.raises(AlreadyExists, match=r'"twin": already exists'):
            engine.engine.run(IMAGE, ["true"], Options("twin"))
        assert engine.engine.container("twin").status == "running"
        engine.engine.remove("twin", force=True)


SECOND: dict[str, tuple[frozenset[str], str]] = {
    "root": (
        frozenset(("root",)),
        r"root .*/root is in use by the daemon at .*c\.sock \(pid \d+\)",
    ),
    "state": (frozenset(("state",)), r"state .*/state is in use by the daemon at .*c\.sock"),
    "address": (frozenset(("c.sock",)), r"c\.sock(\.ttrpc)? is in use by another daemon"),
    "everything": (frozenset(("root", "state", "c.sock")), r"/root is in use by the daemon at"),
}


@pytest.mark.parametrize("name", SECOND)
def test_a_second_daemon(name: str, first: Place) -> None:
    same, complaint = SECOND[name]
    with short_folder() as other, unchanged(first):
        where = [str((first.base if part in same else other) / part) for part in PARTS]
        argv = daemons.command("kontti", first.base)
        for flag, value in zip(("--root", "--state", "--address"), where, strict=True):
            argv[argv.index(flag) + 1] = value
        done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
        assert not list(other.glob("*.sock*"))
    assert done.returncode == 1
    last = done.stderr.decode().splitlines()[-1]
    assert re.search(f"^containerd: .*{complaint}.*: failed precondition$", last), last
    assert first.ctr("version").returncode == 0


PARTS = ("root", "state", "c.sock")


@pytest.fixture(scope="module")
def first(archive: bytes) -> Iterator[Place]:
    with place("kontti", "ours") as made:
        yield made


def test_a_daemon_after_one_that_was_killed(archive: bytes) -> None:
    """Its lock goes with it, and its socket is nobody's."""
    with short_folder() as base:
        (base / "config.toml").write_text(daemons.config("kontti"))
        _, process = daemons.start("kontti", base)
        process.kill()
        process.wait(10)
        assert (base / "c.sock").exists()
        again, process = daemons.start("kontti", base)
        assert again.ctr("ours", "version").returncode == 0
        daemons.stop(process)
        assert not (base / "c.sock").exists()
        daemons.clean(base)


def test_roots_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    argv = daemons.command("kontti", tmp_path)
    (tmp_path / "config.toml").write_text(daemons.config("kontti"))
    argv[argv.index("--root") + 1] = str(tmp_path / "file" / "root")
    done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
    assert done.returncode == 1
    assert re.search(r"^containerd: .*[Nn]ot a directory", done.stderr.decode(), re.MULTILINE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.toml", "file"]


def test_clients_that_hang_up_let_go_of_what_they_wrote(first: Place) -> None:
    with unchanged(first):
        for number in range(20):
            with contextlib.closing(RemoteStores(first.daemon.address)) as stores:
                content = stores.content(Scope.of(first.namespace))
                content.writer(f"ref{number}", 100).write(b"some of it")
        deadline = time.monotonic() + SETTLE_SECONDS
        for number in range(20):
            while not let_go(first, f"ref{number}"):
                assert time.monotonic() < deadline, number
                time.sleep(0.02)


def let_go(at: Place, ref: str) -> bool:
    """Throw an ingest away, unless somebody writes it."""
    try:
        at.abort(ref)
    except Unavailable:
        return False
    return True
