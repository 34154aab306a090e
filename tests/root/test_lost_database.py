"""The database is gone while backends of other processes are away: nothing of theirs is garbage."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kontti.images.identity import chain_ids
from kontti.values import Digest
from tests.support import daemons, images
from tests.support.daemons import Daemon
from tests.support.leftovers import new_namespace, remove_folders
from tests.support.remote_snapshots import RemoteSnapshots, serving
from tests.support.shims import short_folder

pytestmark = pytest.mark.root
CONFIG = """
[proxy_plugins.remote]
  type = "snapshot"
  address = "{address}"
"""
FLAGS = ("--snapshotter", "remote")
NAME = "docker.io/library/busybox:kept"
TARS = [images.base_layer(), images.second_layer()]
IMAGE = images.build(TARS)
CHAIN = list(chain_ids([Digest(images.digest_of(tar)) for tar in TARS]))
Away = Callable[[str], AbstractContextManager[None]]
SOON = 10.0
"""Seconds: less than any deadline of a call to a proxy."""


@dataclass
class Root:
    """A daemon that comes and goes, with a snapshotter that does too."""

    folder: Path
    remote: RemoteSnapshots
    namespace: str = field(default_factory=new_namespace)
    peer: ExitStack = field(default_factory=ExitStack)

    @property
    def base(self) -> Path:
        return self.folder / "k"

    @property
    def address(self) -> str:
        return str(self.folder / "r.sock")

    def come(self) -> None:
        """The snapshotter listens."""
        self.peer.enter_context(serving(self.remote, self.address))

    def leave(self) -> None:
        """It listens no more."""
        self.peer.close()

    @contextlib.contextmanager
    def daemon(self) -> Iterator[Daemon]:
        found, process = daemons.start("kontti", self.base)
        try:
            yield found
        finally:
            daemons.stop(process)

    def ctr(self, daemon: Daemon, *args: str) -> str:
        done = daemon.ctr("ours", "-n", self.namespace, *args, timeout=60)
        assert done.returncode == 0, done
        return done.stdout.decode()

    def fails(self, daemon: Daemon, *args: str) -> str:
        done = daemon.ctr("ours", "-n", self.namespace, *args, timeout=60)
        assert done.returncode == 1, done
        assert b"Traceback" not in done.stderr
        return done.stderr.decode()

    def collect(self, daemon: Daemon) -> None:
        """Have garbage collected, now."""
        self.ctr(daemon, "leases", "create", "--id", "now")
        self.ctr(daemon, "leases", "delete", "--sync", "now")

    def keys(self, daemon: Daemon) -> set[str]:
        """Snapshots as the daemon tells them."""
        lines = self.ctr(daemon, "snapshots", *FLAGS, "ls").splitlines()[1:]
        return {line.split()[0] for line in lines}

    def image(self, daemon: Daemon) -> str:
        """By its name; where that is lost, by the name that the archive's index got."""
        names = self.ctr(daemon, "images", "ls", "-q").split()
        if NAME in names:
            return NAME
        (recovered,) = names
        assert recovered.startswith("recovered@sha256:")
        return recovered

    def chain(self) -> set[str]:
        """The image's layers as the snapshotter has them."""
        return {name for name in self.remote.names() if name.rpartition("/")[2] in CHAIN}

    def lose(self, *, copy: bool) -> None:
        """The database goes, and its copy where that is to go."""
        for path in self.base.glob("root/io.containerd.metadata.v1.sqlite/meta.db*"):
            if path.suffix != ".backup" or copy:
                path.unlink()


@pytest.fixture
def root() -> Iterator[Root]:
    """The image is unpacked into the snapshotter."""
    with short_folder() as folder:
        made = Root(folder, RemoteSnapshots(folder / "remote", {}))
        made.base.mkdir()
        text = daemons.config("kontti") + CONFIG.format(address=made.address)
        (made.base / "config.toml").write_text(text)
        (folder / "image.tar").write_bytes(images.archive(IMAGE, NAME))
        made.come()
        with made.daemon() as daemon:
            made.ctr(daemon, "images", "import", *FLAGS, str(folder / "image.tar"))
            assert made.keys(daemon) == set(CHAIN)
        try:
            yield made
        finally:
            made.leave()
            daemons.clean(made.base)
            remove_folders(made.namespace)


@contextlib.contextmanager
def nobody(_address: str) -> Iterator[None]:
    """Nobody listens."""
    yield


@contextlib.contextmanager
def silent(address: str) -> Iterator[None]:
    """Somebody listens, and answers nothing."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.bind(address)
        peer.listen()
        yield
    Path(address).unlink()


@pytest.mark.parametrize("away", [nobody, silent])
@pytest.mark.parametrize("copy", [True, False], ids=["and its copy", "but for its copy"])
def test_a_snapshotter_that_is_away(root: Root, away: Away, copy: bool) -> None:
    root.leave()
    root.lose(copy=copy)
    before = set(root.remote.names())
    assert root.chain()
    with ExitStack() as absence:
        absence.enter_context(away(root.address))
        began = time.monotonic()
        with root.daemon() as daemon:
            assert time.monotonic() - began < SOON
            if not copy:
                assert root.image(daemon) == NAME
            if away is nobody:
                said = root.fails(daemon, "snapshots", *FLAGS, "ls")
                assert root.address in said
                root.collect(daemon)
            absence.close()
            root.come()
            # once before anybody has used it, and once after
            root.collect(daemon)
            assert root.chain() == {n for n in before if n.rpartition("/")[2] in CHAIN}
            assert root.keys(daemon) == set(CHAIN)
            root.collect(daemon)
            assert root.keys(daemon) == set(CHAIN)
            # nothing is unpacked again
            name = root.image(daemon)
            assert name == NAME or copy
            asked = len(root.remote.asked)
            words = ("run", "--rm", *FLAGS, name, "again", "cat", "/etc/greeting")
            assert root.ctr(daemon, *words) == "hello\n"
            assert len(root.remote.asked) == asked + 1


def test_what_came_back_is_known_before_it_is_used(root: Root) -> None:
    root.leave()
    root.lose(copy=True)
    with root.daemon() as daemon:
        said = root.fails(daemon, "snapshots", *FLAGS, "prepare", "new", CHAIN[1])
        assert root.address in said
        root.come()
        root.ctr(daemon, "snapshots", *FLAGS, "prepare", "new", CHAIN[1])
        assert root.keys(daemon) == {*CHAIN, "new"}
        # numbers of names go on above those that are taken
        numbers = [int(name.split("/")[1]) for name in root.remote.names()]
        assert len(set(numbers)) == len(numbers)


def test_the_image_goes_with_its_snapshots_as_ever(root: Root) -> None:
    root.lose(copy=True)
    with root.daemon() as daemon:
        assert root.keys(daemon) == set(CHAIN)
        for name in root.ctr(daemon, "images", "ls", "-q").split():
            root.ctr(daemon, "images", "rm", "--sync", name)
        root.collect(daemon)
        assert root.remote.names() == []


def test_a_daemon_without_the_proxy_does_not_forget_it(root: Root) -> None:
    """As the doctor, which knows of no proxies, and makes a damaged database anew."""
    text = (root.base / "config.toml").read_text()
    (root.base / "config.toml").write_text(daemons.config("kontti"))
    root.lose(copy=True)
    with root.daemon() as daemon:
        root.collect(daemon)
    (root.base / "config.toml").write_text(text)
    before = root.chain()
    with root.daemon() as daemon:
        root.collect(daemon)
        assert root.chain() == before
        assert root.keys(daemon) == set(CHAIN)


PEER = """
[plugins."io.containerd.gc.v1.scheduler"]
  deletion_threshold = 0
  mutation_threshold = 0
  startup_delay = "24h"
"""
CONTENT = """
disabled_plugins = ["io.containerd.content.v1.content"]
[proxy_plugins.remote]
  type = "content"
  address = "{address}"
"""


def test_a_content_store_that_is_away(tmp_path: Path) -> None:
    """Debian's containerd has the blobs."""
    with short_folder() as folder:
        peer, process = daemons.start("containerd", prepared(folder / "c", "containerd", PEER))
        base = prepared(folder / "k", "kontti", CONTENT.format(address=peer.address))
        path = tmp_path / "image.tar"
        path.write_bytes(images.archive(IMAGE, NAME))
        root = Root(folder, RemoteSnapshots(folder / "remote", {}))
        try:
            with root.daemon() as daemon:
                root.ctr(daemon, "images", "import", str(path))
                blobs = set(root.ctr(daemon, "content", "ls", "-q").split())
            daemons.stop(process)
            for file in base.glob("root/io.containerd.metadata.v1.sqlite/meta.db*"):
                file.unlink()
            with root.daemon() as daemon:
                assert root.ctr(daemon, "content", "ls", "-q") == ""
                root.collect(daemon)
                _, process = daemons.start("containerd", folder / "c")
                root.collect(daemon)
                assert set(root.ctr(daemon, "content", "ls", "-q").split()) == blobs
                name = root.image(daemon)
                root.collect(daemon)
                said = root.ctr(daemon, "run", "--rm", name, "again", "echo", "hi")
                assert said == "hi\n"
        finally:
            daemons.stop(process)
            daemons.clean(folder / "c")
            daemons.clean(base)
            remove_folders(root.namespace)


def prepared(base: Path, kind: str, more: str) -> Path:
    base.mkdir()
    (base / "config.toml").write_text(daemons.config(kind) + more)
    return base
