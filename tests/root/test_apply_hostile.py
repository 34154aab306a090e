"""Layers that attack, are damaged, or cannot be applied: clear errors, and nothing left behind."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from kontti.content.local import LocalStore
from kontti.diff.applier import LayerApplier
from kontti.diff.base import Limits
from kontti.diff.job import ApplyJob, encode
from kontti.diff.plan import tree
from kontti.diff.workers import Worker, Workers
from kontti.errors import (
    Canceled,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unimplemented,
)
from kontti.linux.mounts import mounted
from kontti.values import Mount
from tests.support.images import Entry, directory, layer, symlink
from tests.support.trees import (
    BASE,
    Chain,
    apply_all,
    blob_file,
    children_of_this_process,
    gzipped,
    hard_link,
    put,
)

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def others() -> set[str]:
    """Processes that other tests keep for the whole session."""
    return children_of_this_process()


PLAIN = "application/vnd.oci.image.layer.v1.tar"
GZIP, ZSTD = f"{PLAIN}+gzip", f"{PLAIN}+zstd"


@pytest.fixture(params=["direct", "mounted"])
def direct(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "direct")


HOSTILE: dict[str, tuple[list[Entry], type[Error], str]] = {
    "hard link out": ([hard_link("x", "../../etc/passwd")], InvalidArgument, "invalid hardlink"),
    "hard link to nothing": ([hard_link("x", "none")], InvalidArgument, "invalid hardlink"),
    "hard link to a directory": (
        [directory("d"), hard_link("x", "d")],
        InvalidArgument,
        "hardlink",
    ),
    "hard link from a file's child": (
        [Entry("f"), hard_link("f/x", "f")],
        InvalidArgument,
        "hardlink",
    ),
    "below a file": ([Entry("f"), Entry("f/x")], InvalidArgument, "not a directory"),
    "symlink loop": (
        [symlink("a", "b"), symlink("b", "a"), Entry("a/x")],
        InvalidArgument,
        "symbolic",
    ),
    "root as a file": ([Entry("./")], InvalidArgument, "root of a layer"),
    "whiteout of nothing named": ([Entry("d/.wh.")], InvalidArgument, "invalid whiteout"),
    "whiteout of here": ([Entry("d/.wh..")], InvalidArgument, "invalid whiteout"),
    "whiteout of the parent": ([Entry("d/.wh...")], InvalidArgument, "invalid whiteout"),
    "long component": ([Entry("n" * 256)], InvalidArgument, "file name too long"),
    "long path": ([Entry("n/" * 2048 + "n")], InvalidArgument, "file name too long"),
    "long symlink": ([symlink("s", "t" * 4096)], InvalidArgument, "file name too long"),
    "unknown type": ([Entry("x", kind=b"V")], InvalidArgument, "unhandled tar header type"),
    "sparse": ([Entry("x", kind=b"S")], InvalidArgument, "sparse"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layers_are_refused_by_name(
    tmp_path: Path, name: str, direct: bool, others: set[str]
) -> None:
    entries, error, message = HOSTILE[name]
    chain = apply_all(tmp_path, [BASE], direct=direct)
    with pytest.raises(error, match=message):
        chain.apply(entries)
    assert children_of_this_process() == others


def test_nothing_leaves_the_root(tmp_path: Path, direct: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    target = str(outside)
    attacks = [
        symlink("abs", target),
        Entry("abs/victim", b"owned"),
        symlink("rel", "../" * 30 + target.lstrip("/")),
        Entry("rel/victim", b"owned"),
        Entry("../" * 30 + target.lstrip("/") + "/victim", b"owned"),
        symlink("victim", f"{target}/victim"),
        Entry("victim", b"owned"),
        Entry("abs/.wh.victim"),
        Entry("rel/.wh..wh..opq"),
    ]
    before = {path: path.lstat().st_mtime_ns for path in (outside, outside / "victim")}
    chain = apply_all(tmp_path, [BASE, attacks], direct=direct)
    assert (outside / "victim").read_text() == "untouched"
    assert {path: path.lstat().st_mtime_ns for path in before} == before
    assert chain.tree()["victim"].data == b"owned"


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGE: dict[str, tuple[bytes, str, type[Error]]] = {
    "truncated gzip": (truncated(gzipped(BASE)), GZIP, InvalidArgument),
    "gzip without its end": (gzipped(BASE)[:-3], GZIP, InvalidArgument),
    "junk behind gzip": (gzipped(BASE) + b"junk", GZIP, InvalidArgument),
    "truncated tar": (layer(BASE)[:700], PLAIN, InvalidArgument),
    "truncated data": (layer([Entry("x", b"x" * 9000)])[:4000], PLAIN, InvalidArgument),
    "no tar": (b"hello world" * 1000, PLAIN, InvalidArgument),
    "truncated zstd": (zstandard.compress(layer(BASE))[:-5], ZSTD, InvalidArgument),
    "junk behind zstd": (zstandard.compress(layer(BASE)) + b"junk" * 9, ZSTD, InvalidArgument),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_layers_are_refused(tmp_path: Path, name: str, others: set[str]) -> None:
    data, media_type, error = DAMAGE[name]
    chain = apply_all(tmp_path, [])
    with pytest.raises(error):
        chain.applier.apply(put(chain.store, data, media_type), chain.mounts())
    assert children_of_this_process() == others


def test_unknown_media_types_are_refused(tmp_path: Path) -> None:
    chain = apply_all(tmp_path, [])
    with pytest.raises(Unimplemented, match="currently unsupported media type"):
        chain.applier.apply(put(chain.store, b"x", "text/html"), chain.mounts())


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    chain = apply_all(tmp_path, [], limits=Limits(size=1 << 20))
    with pytest.raises(ResourceExhausted, match="more than 1048576 bytes"):
        chain.apply([Entry("zeros", bytes(4 << 20))])


def test_a_bomb_is_known_by_its_ratio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kontti.diff.base.RATIO_FROM", 1 << 20)
    chain = apply_all(tmp_path, [], limits=Limits(ratio=300))
    bomb = zstandard.compress(layer([Entry("zeros", bytes(64 << 20))]))
    with pytest.raises(ResourceExhausted, match=f"more than {max(1 << 20, 300 * len(bomb))} bytes"):
        chain.applier.apply(put(chain.store, bomb, ZSTD), chain.mounts())
    honest = gzipped([Entry("text", os.urandom(1 << 20))])
    (tmp_path / "other").mkdir()
    target = Mount("bind", str(tmp_path / "other"), ("rbind", "rw"))
    chain.applier.apply(put(chain.store, honest), [target])


def test_a_layer_of_too_many_entries(tmp_path: Path, direct: bool) -> None:
    chain = apply_all(tmp_path, [], limits=Limits(entries=10), direct=direct)
    chain.apply([Entry(f"{number}") for number in range(10)])
    with pytest.raises(ResourceExhausted, match="more than 10 entries"):
        chain.apply([Entry(f"{number}") for number in range(11)])


def test_damaged_content_is_noticed(tmp_path: Path) -> None:
    chain = apply_all(tmp_path, [])
    good, other = put(chain.store, gzipped(BASE)), put(chain.store, gzipped([Entry("x")]))
    path = blob_file(chain.store, good)
    path.unlink()
    path.write_bytes(blob_file(chain.store, other).read_bytes())
    with pytest.raises(FailedPrecondition, match="unexpected layer digest"):
        chain.applier.apply(good, chain.mounts())


def test_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    chain = apply_all(tmp_path, [])
    blob = put(chain.store, gzipped([Entry("big", os.urandom(2 << 20))]))
    with mounted([Mount("tmpfs", "tmpfs", ("size=1m",))]) as small:
        target = Path(small) / "fs"
        target.mkdir()
        with pytest.raises(ResourceExhausted, match="no space left"):
            chain.applier.apply(blob, [Mount("bind", str(target), ("rbind", "rw"))])


def test_a_deadline_ends_the_worker(tmp_path: Path, others: set[str]) -> None:
    chain = apply_all(tmp_path, [], deadline=0.0)
    with pytest.raises(DeadlineExceeded):
        chain.apply(BASE)
    assert children_of_this_process() == others


def test_a_worker_that_nobody_waits_for_is_ended(tmp_path: Path, others: set[str]) -> None:
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    job: ApplyJob = {
        "task": "apply",
        "blob": str(endless),
        "grows": False,
        "size": 1,
        "algorithm": "sha256",
        "compression": "",
        "limit": 0,
        "entries": 0,
        "tree": tree("plain", str(tmp_path)),
        "ahead": False,
        "sync": False,
    }
    with open(endless, "r+b", buffering=0), Worker() as worker:
        worker.stopped = lambda: True
        with pytest.raises(Canceled):
            worker.ask(encode(job), time.monotonic() + 60)
    assert children_of_this_process() == others


def test_warm_workers_are_used_and_ended(tmp_path: Path, others: set[str]) -> None:
    store = LocalStore(str(tmp_path / "content"))
    workers = Workers(warm=1)
    chain = Chain(tmp_path / "layers", LayerApplier(store, workers), store)
    chain.apply(BASE)
    chain.apply([Entry("x")])
    assert len(children_of_this_process() - others) == 1
    workers.close()
    assert children_of_this_process() == others


def test_warm_workers_end_when_nobody_needs_them(tmp_path: Path, others: set[str]) -> None:
    store = LocalStore(str(tmp_path / "content"))
    workers = Workers(warm=1, idle_seconds=0.3)
    chain = Chain(tmp_path / "layers", LayerApplier(store, workers), store)
    chain.apply(BASE)
    deadline = time.monotonic() + 30
    while children_of_this_process() != others:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # and there is another one when there is work again
    chain.apply([Entry("x")])
    workers.close()
    assert children_of_this_process() == others


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    script = PARENT.format(path=sys.path, blob=str(endless), root=str(tmp_path))
    with open(endless, "r+b", buffering=0):
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            worker = int(parent.stdout.readline())
            watched = os.pidfd_open(worker)
            parent.kill()
        try:
            assert select.select([watched], [], [], 30)[0], "the worker lives on"
        finally:
            os.close(watched)


PARENT = """
import sys, time
sys.path[:] = {path!r}
from kontti.diff.job import encode
from kontti.diff.plan import tree
from kontti.diff.workers import Worker

worker = Worker()
job = dict(task="apply", blob={blob!r}, grows=False, size=1, algorithm="sha256",
           compression="", limit=0, entries=0, ahead=False,
           tree=tree("plain", {root!r}), sync=False)
worker.send(encode(job), (), time.monotonic() + 60)
print(worker._pid, flush=True)
time.sleep(60)
"""
