"""Proxy plugins that listen and do not answer: who does not need them waits for nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.support import daemons, images
from tests.support.daemons import Daemon
from tests.support.shims import short_folder

pytestmark = pytest.mark.root
NAME = "docker.io/library/busybox:hung"
PEER = """
[plugins."io.containerd.gc.v1.scheduler"]
  deletion_threshold = 0
  mutation_threshold = 0
  startup_delay = "24h"
"""
SNAPSHOTS = """
disabled_plugins = ["io.containerd.snapshotter.v1.native"]
[proxy_plugins.native]
  type = "snapshot"
  address = "{address}"
"""
CONTENT = """
disabled_plugins = ["io.containerd.content.v1.content"]
[proxy_plugins.remote]
  type = "content"
  address = "{address}"
"""
FLAGS = ("--snapshotter", "native")
SOON = 5.0


@dataclass(frozen=True)
class Pair:
    """A daemon of ours, and Debian's, whose stores it has."""

    daemon: Daemon
    peer: Daemon

    def ctr(self, *args: str) -> str:
        done = self.daemon.ctr("ours", *args, timeout=60)
        assert done.returncode == 0, done
        return done.stdout.decode(errors="replace")

    def begin(self, *args: str) -> subprocess.Popen[bytes]:
        argv = [daemons.client_path("ours"), "--address", self.daemon.address, *args]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """The peer does nothing during the block."""
        os.kill(self.peer.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.peer.pid, signal.SIGCONT)


@contextlib.contextmanager
def pair(more: str) -> Iterator[Pair]:
    with (
        short_folder() as folder,
        daemons.running("containerd", folder / "c", PEER) as peer,
        daemons.running("kontti", folder / "k", more.format(address=peer.address)) as daemon,
    ):
        path = folder / "image.tar"
        path.write_bytes(images.archive(images.build(), NAME))
        made = Pair(daemon, peer)
        made.ctr("images", "import", *(FLAGS if "snapshot" in more else ()), str(path))
        yield made


@pytest.fixture(scope="module")
def snapshots() -> Iterator[Pair]:
    with pair(SNAPSHOTS) as made:
        made.ctr("snapshots", *FLAGS, "prepare", "mine")
        yield made


@pytest.fixture(scope="module")
def content() -> Iterator[Pair]:
    with pair(CONTENT) as made:
        yield made


def others_go_on(pair: Pair, words: Sequence[str]) -> None:
    with pair.hung():
        waiting = pair.begin(*words)
        try:
            time.sleep(0.5)
            began = time.monotonic()
            pair.ctr("version")
            pair.ctr("containers", "ls")
            assert time.monotonic() - began < SOON
            assert waiting.poll() is None
        finally:
            waiting.kill()
            waiting.communicate()
    # it goes on when the peer does
    assert pair.ctr(*words) != ""


@pytest.mark.parametrize("words", [("info", "mine"), ("mounts", "/mnt", "mine"), ("usage", "mine")])
def test_a_snapshotter_that_hangs_keeps_nobody_else(
    snapshots: Pair, words: tuple[str, ...]
) -> None:
    others_go_on(snapshots, ("snapshots", *FLAGS, *words))


def test_a_content_store_that_hangs_keeps_nobody_else(content: Pair) -> None:
    digest = content.ctr("content", "ls", "-q").split()[0]
    others_go_on(content, ("content", "get", digest))
