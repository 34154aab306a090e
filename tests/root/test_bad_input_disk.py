"""Disks that are full: it is said so, what was begun goes, and all works again with room."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import daemons
from tests.support.hostile import GOOD, NAME, Draft, image
from tests.support.images import Entry, base_layer, layer
from tests.support.leftovers import Place, embedded_in, left, placed, unchanged
from tests.support.shims import short_folder
from tests.support.web import serving

pytestmark = pytest.mark.root
ROOT_SIZE, STATE_SIZE = "16m", "1m"
IMAGE = "kept:1"
FULL = r"no space left on device|database or disk is full"
KINDS = (("kontti", "ours"), ("containerd", "debian"))


@contextlib.contextmanager
def small_disks(base: Path) -> Iterator[None]:
    """Root and state on file systems of a few mebibytes."""
    with contextlib.ExitStack() as stack:
        for name, size in (("root", ROOT_SIZE), ("state", STATE_SIZE)):
            (base / name).mkdir()
            where = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "small"]
            subprocess.run([*where, str(base / name)], check=True)
            stack.callback(unmount, base / name)
        yield


def unmount(path: Path) -> None:
    """Unless that is done already."""
    if path.is_mount():
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(scope="module", params=KINDS)
def at(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A daemon on small disks with an image that has run."""
    kind, client = request.param
    with short_folder() as base, small_disks(base), placed(kind, client, base) as made:
        assert made.import_bytes(image(base_layer()).archive(IMAGE)).returncode == 0
        made.out("run", "--rm", IMAGE, f"{made.namespace}w", "true")
        yield made


@pytest.fixture(scope="module")
def noise() -> Draft:
    """An image that is too large as it comes."""
    return image(layer([Entry("noise", os.urandom(18 << 20))]))


@pytest.fixture(scope="module")
def zeros() -> Draft:
    """An image that is too large unpacked."""
    return image(layer([Entry("zeros", bytes(24 << 20))]))


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Not a byte is free in the block."""
    path = folder / "filler"
    try:
        with path.open("wb", buffering=0) as filler:
            for count in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        filler.write(bytes(count))
        yield
    finally:
        path.unlink()


def is_full(at: Place, message: str) -> None:
    """The complaint, and in ours its class."""
    assert re.search(FULL, message, re.IGNORECASE), message
    assert at.client == "debian" or message.rstrip().endswith(": resource exhausted"), message


def test_content_of_an_import(at: Place, noise: Draft) -> None:
    with unchanged(at):
        is_full(at, at.import_error(noise.archive()))


def test_content_of_a_pull(at: Place, noise: Draft) -> None:
    with serving(noise.registry()) as web, unchanged(at):
        is_full(at, at.pull_error(f"{web.host}/a/b:1"))


def test_layers_of_an_import(at: Place, zeros: Draft) -> None:
    with unchanged(at):
        is_full(at, at.import_error(zeros.archive()))


def test_layers_of_a_pull(at: Place, zeros: Draft) -> None:
    with serving(zeros.registry()) as web, unchanged(at):
        is_full(at, at.pull_error(f"{web.host}/a/b:1"))


def test_nothing_at_all_is_free(at: Place) -> None:
    """The original leaves the directory of an ingest that it could not describe."""
    allowed = frozenset(("files",)) if at.client == "debian" else frozenset[str]()
    small = image(layer(GOOD))
    with unchanged(at, allowed):
        with filled(at.base / "root"):
            is_full(at, at.import_error(small.archive()))
        with serving(small.registry()) as web, filled(at.base / "root"):
            is_full(at, at.pull_error(f"{web.host}/a/b:1"))
        assert at.import_error(small.archive()) == ""


MADE: dict[str, tuple[Callable[[int], list[str]], Callable[[int], list[str]]]] = {
    "lease": (
        lambda n: ["leases", "create", "--id", f"l{n}"],
        lambda n: ["leases", "rm", f"l{n}"],
    ),
    "label": (
        lambda n: ["images", "label", IMAGE, f"l{n}={'x' * 3000}"],
        lambda n: ["images", "label", IMAGE, f"l{n}="],
    ),
}


@pytest.mark.parametrize("kind", MADE)
def test_metadata(at: Place, kind: str) -> None:
    """Records are made as long as the database has room, and then not in half."""
    make, unmake = MADE[kind]
    with unchanged(at):
        made = 0
        with filled(at.base / "root"):
            while (done := at.ctr(*make(made))).returncode == 0:
                made += 1
                assert made < 200
            before = at.picture()
            is_full(at, done.stderr.decode())
            assert at.ctr(*make(made)).returncode == 1
            assert left(before, at.picture(), frozenset()) == {}
            assert IMAGE in at.out("images", "ls", "-q")
        for number in range(made):
            at.out(*unmake(number))
        at.out(*make(made))
        at.out(*unmake(made))


def test_room_is_made_by_removing(at: Place) -> None:
    """The log has room of its own: a disk that others filled can be emptied."""
    with unchanged(at):
        assert at.import_bytes(image(layer([Entry("a", bytes(2 << 20))])).archive()).returncode == 0
        taken = free(at.base / "root")
        with filled(at.base / "root"):
            assert free(at.base / "root") == 0
            at.out("images", "rm", "--sync", NAME)
            assert free(at.base / "root") > 1 << 20
        assert free(at.base / "root") > taken + (1 << 20)


def free(path: Path) -> int:
    """Bytes that can be written."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def test_state(at: Place) -> None:
    with unchanged(at):
        with filled(at.base / "state"):
            message = at.fails("run", "--rm", IMAGE, f"{at.namespace}c", "true")
        is_full(at, message)
        at.out("run", "--rm", IMAGE, f"{at.namespace}c", "true")


def test_a_container_that_fills_the_disk(at: Place) -> None:
    """It hears of it itself; what it wrote goes with it."""
    with unchanged(at):
        fill = ("dd", "if=/dev/zero", "of=/zeros", "bs=65536")
        done = at.ctr("run", "--rm", IMAGE, f"{at.namespace}c", *fill)
        assert done.returncode == 1
        assert b"No space left on device" in done.stderr


def test_a_daemon_on_a_full_disk() -> None:
    """It says why it does not start, and leaves no socket; with room it starts."""
    with short_folder() as base, small_disks(base):
        (base / "config.toml").write_text(daemons.config("kontti"))
        with filled(base / "root"):
            argv = daemons.command("kontti", base)
            done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
            assert done.returncode == 1
            last = done.stderr.decode().splitlines()[-1]
            assert re.search(rf"^containerd: .*({FULL})", last, re.IGNORECASE), last
        assert list(base.glob("*.sock*")) == []
        with placed("kontti", "ours", base) as at:
            assert at.out("images", "ls", "-q") == ""


def test_an_engine(zeros: Draft, noise: Draft) -> None:
    with short_folder() as base, small_disks(base), embedded_in(base) as at:
        for draft in (zeros, noise):
            with unchanged(at):
                message = at.import_error(draft.archive())
            assert re.search(FULL, message, re.IGNORECASE), message
            assert message.endswith(": resource exhausted")
