"""Lazy pulling through a proxy snapshotter that gets layers by itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kontti.images.identity import chain_ids
from kontti.values import Digest
from tests.support import daemons, images, registry
from tests.support.daemons import Daemon
from tests.support.images import Entry, Image
from tests.support.kontti_cli import KONTTI
from tests.support.leftovers import new_namespace, remove_folders
from tests.support.remote_snapshots import RemoteSnapshots, serving
from tests.support.shims import short_folder

pytestmark = pytest.mark.root
CONFIG = """
[proxy_plugins.remote]
  type = "snapshot"
  address = "{address}"
[proxy_plugins.remote.exports]
  enable_remote_snapshot_annotations = "{told}"
"""
FLAGS = ("--snapshotter", "remote")
TARS = [
    images.base_layer(),
    images.second_layer(),
    images.layer([Entry("etc/third", b"of three\n")]),
]
CHAIN = list(chain_ids([Digest(images.digest_of(tar)) for tar in TARS]))
GONE_SECONDS = 10.0


@dataclass
class Bench:
    """A daemon, a remote snapshotter, and a registry with one image."""

    folder: Path
    image: Image
    name: str
    remote: RemoteSnapshots
    daemon: Daemon
    running: contextlib.ExitStack
    # OCI runtimes know containers by namespace and name: others' tests use the same names
    namespace: str = field(default_factory=new_namespace)

    def ctr(self, *args: str) -> str:
        """What our ctr prints."""
        done = self.daemon.ctr("ours", "-n", self.namespace, *args, timeout=60)
        assert done.returncode == 0, done
        return done.stdout.decode()

    def fails(self, *args: str) -> str:
        """What it says, soon."""
        began = time.monotonic()
        done = self.daemon.ctr("ours", "-n", self.namespace, *args, timeout=60)
        assert done.returncode == 1, done
        assert time.monotonic() - began < GONE_SECONDS
        return done.stderr.decode()

    def kontti(self, *args: str) -> subprocess.CompletedProcess[str]:
        """It works in the daemon."""
        argv = [KONTTI, "-n", self.namespace, "--address", self.daemon.address, *args]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done
        return done

    def pull(self, client: str) -> None:
        """By the Transfer service, or on the client's side."""
        if client == "ctr":
            self.ctr("images", "pull", "--plain-http", *FLAGS, self.name)
        else:
            self.kontti("pull", "--plain-http", *FLAGS, self.name)

    def blobs(self) -> set[str]:
        """What is in the content store."""
        return set(self.ctr("content", "ls", "-q").split())

    def read(self, id: str, path: str) -> str:
        """A file as a new container sees it."""
        return self.ctr("run", "--rm", *FLAGS, self.name, id, "cat", path)

    def snapshots(self) -> list[str]:
        """Keys as the daemon tells them."""
        lines = self.ctr("snapshots", *FLAGS, "ls").splitlines()[1:]
        return sorted(line.split()[0] for line in lines)

    def leave(self) -> None:
        """The snapshotter hangs up, and listens no more."""
        self.running.close()

    def come(self) -> None:
        """It listens."""
        self.running.enter_context(serving(self.remote, str(self.folder / "r.sock")))


@contextlib.contextmanager
def bench(own: tuple[int, ...], told: str = "true") -> Iterator[Bench]:
    """The snapshotter has layers ``own`` by itself."""
    image = images.build(TARS)
    layers = {image.layer_digests[number]: TARS[number] for number in own}
    with short_folder() as folder, contextlib.ExitStack() as stack:
        (folder / "registry").mkdir()
        address = stack.enter_context(registry.running(folder / "registry"))
        registry.push(address, "busy", "lazy", image)
        remote = RemoteSnapshots(folder / "remote", layers)
        running = stack.enter_context(contextlib.ExitStack())
        config = CONFIG.format(address=folder / "r.sock", told=told)
        running.enter_context(serving(remote, str(folder / "r.sock")))
        daemon = stack.enter_context(daemons.running("kontti", folder / "k", config))
        made = Bench(folder, image, f"{address}/busy:lazy", remote, daemon, running)
        try:
            yield made
        finally:
            remove_folders(made.namespace)


@contextlib.contextmanager
def sleeping(it: Bench, id: str) -> Iterator[None]:
    """A container that runs until the block ends."""
    it.ctr("run", "-d", *FLAGS, it.name, id, "sleep", "1000")
    row = next(r for r in it.ctr("tasks", "ls").splitlines() if r.startswith(id))
    try:
        yield
        assert row in it.ctr("tasks", "ls")
    finally:
        # whether there is a daemon or not
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(row.split()[1]), signal.SIGKILL)
        it.daemon.ctr("ours", "-n", it.namespace, "tasks", "rm", "-f", id)


@pytest.mark.parametrize("client", ["ctr", "kontti"])
@pytest.mark.parametrize("own", [(0, 1, 2), (0,), ()], ids=["all", "some", "none"])
def test_a_container_of_layers_that_were_not_fetched(client: str, own: tuple[int, ...]) -> None:
    with bench(own) as it:
        it.pull(client)
        fetched = {digest for n, digest in enumerate(it.image.layer_digests) if n not in own}
        assert it.blobs() == {it.image.digest, it.image.config_digest} | fetched
        assert it.snapshots() == sorted(CHAIN)
        assert it.read("a", "/etc/greeting") == "hello\n"
        assert it.read("a", "/etc/third") == "of three\n"
        assert "motd" not in it.ctr("run", "--rm", *FLAGS, it.name, "a", "ls", "/etc")
        # a second pull has nothing to do
        it.pull(client)
        assert it.blobs() == {it.image.digest, it.image.config_digest} | fetched
        it.ctr("images", "rm", "--sync", it.name)
        assert it.snapshots() == it.remote.names() == []
        assert it.blobs() == set()


def test_two_namespaces() -> None:
    with bench((0, 1, 2)) as it:
        other = replace(it, namespace=new_namespace())
        it.pull("ctr")
        other.pull("ctr")
        # what was prepared for a layer that was there is not left over its parents
        assert sorted(it.remote.names()) == sorted(CHAIN)
        it.ctr("images", "rm", "--sync", it.name)
        assert other.read("a", "/etc/third") == "of three\n"
        other.ctr("images", "rm", "--sync", it.name)
        assert it.remote.names() == []
        remove_folders(other.namespace)


def test_what_is_told_of_an_image_whose_layers_are_elsewhere() -> None:
    with bench((0, 1, 2)) as it:
        it.pull("ctr")
        row = it.ctr("images", "check", *FLAGS).splitlines()[1]
        assert row.split()[3:5] == ["incomplete", "(1/4)"]
        assert row.split()[-1] == "true"
        assert it.ctr("images", "check", "-q", *FLAGS) == ""
        listed = it.ctr("images", "ls").splitlines()[1]
        expected = it.daemon.ctr("debian", "-n", it.namespace, "images", "ls").stdout.decode()
        assert listed.split() == expected.splitlines()[1].split()
        info = json.loads(it.ctr("snapshots", *FLAGS, "info", CHAIN[1]))
        assert info["Labels"]["containerd.io/snapshot/remote"] == "remote snapshot"
        assert info["Labels"]["containerd.io/snapshot/cri.image-ref"] == it.name
        assert it.ctr("snapshots", *FLAGS, "tree").split() == [
            CHAIN[0], "\\_", CHAIN[1], "\\_", CHAIN[2]
        ]  # fmt: skip
        assert "remote" in it.kontti("df").stdout


@pytest.mark.parametrize("client", ["ctr", "kontti"])
def test_who_does_not_export_it_is_told_nothing(client: str) -> None:
    with bench((0, 1, 2), told="false") as it:
        it.pull(client)
        assert it.blobs() == set(it.image.blobs)
        keys = {key for labels in it.remote.asked for key in labels}
        assert keys == {"containerd.io/snapshot.ref"}


def test_one_that_never_had_a_snapshot() -> None:
    with bench(()) as it:
        assert it.snapshots() == []
        assert it.kontti("df").stderr == ""
        assert "bucket does not exist" not in it.daemon.log.read_text()


def test_one_that_goes_and_comes() -> None:
    with bench((0, 1, 2)) as it:
        it.pull("ctr")
        with sleeping(it, "stays"):
            it.leave()
            check_gone(it)
            done = it.daemon.ctr("ours", "-n", it.namespace, "images", "check", *FLAGS)
            assert done.returncode == 1
            assert done.stdout.decode().split()[-1] == "false"
            assert f"unable to check unpack for {it.name}: proxy" in done.stderr.decode()
            assert it.ctr("tasks", "exec", "--exec-id", "e", "stays", "cat", "/etc/third")
            it.ctr("images", "pull", "--plain-http", it.name)
            usage = it.kontti("df")
            assert "snapshotter remote is left out: proxy plugin" in usage.stderr
            assert "overlayfs" in usage.stdout
            it.come()
            assert it.snapshots() == sorted([*CHAIN, "stays"])
            assert it.read("again", "/etc/greeting") == "hello\n"


def check_gone(it: Bench) -> None:
    """What needs the snapshotter fails, and says why."""
    for args in (
        ("snapshots", *FLAGS, "ls"),
        ("run", "--rm", *FLAGS, it.name, "never", "true"),
        ("images", "pull", "--plain-http", *FLAGS, it.name),
    ):
        problem = it.fails(*args)
        assert f'proxy plugin remote: failed to dial "{it.folder}/r.sock"' in problem
        assert "is containerd running" not in problem


def test_a_daemon_that_starts_without_it() -> None:
    with bench((0, 1, 2)) as it:
        it.pull("ctr")
        with contextlib.ExitStack() as stack, sleeping(it, "lives"):
            it.leave()
            kill(it.daemon)
            _, process = daemons.start("kontti", it.folder / "k")
            stack.callback(daemons.stop, process)
            check_gone(it)
            it.come()
            assert it.snapshots() == sorted([*CHAIN, "lives"])
            assert it.read("new", "/etc/third") == "of three\n"


def kill(daemon: Daemon) -> None:
    """By its own pid; its parent reaps it later."""
    os.kill(daemon.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while daemons.ctr("ours", daemon.address, "version").returncode == 0:
        assert time.monotonic() < deadline
