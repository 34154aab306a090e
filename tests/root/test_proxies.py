"""Proxy plugins: Debian's containerd as our snapshotter, content store and differ."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kontti.client import proxy
from kontti.client.proxy import ProxyContent, ProxySnapshotter
from kontti.errors import DeadlineExceeded, Unavailable
from kontti.snapshots.base import Info
from kontti.snapshots.native import NativeSnapshotter
from kontti.testing import content as content_suite
from kontti.testing import snapshots as snapshot_suite
from kontti.values import EMPTY
from tests.support import daemons, images
from tests.support.daemons import Daemon
from tests.support.remote_snapshots import RemoteSnapshots, serving
from tests.support.shims import short_folder

pytestmark = pytest.mark.root
NAME = "docker.io/library/busybox:proxied"
SLOW_SECONDS = 1.5
# a proxy that collects garbage would take what only we have a record of
PEER = """
[plugins."io.containerd.gc.v1.scheduler"]
  deletion_threshold = 0
  mutation_threshold = 0
  startup_delay = "24h"
"""
OURS = """
disabled_plugins = ["io.containerd.content.v1.content", "io.containerd.snapshotter.v1.native"]
[proxy_plugins.remote]
  type = "content"
  address = "{address}"
[proxy_plugins.native]
  type = "snapshot"
  address = "{address}"
  capabilities = ["remap-ids"]
  exports = {{root = "/elsewhere"}}
[proxy_plugins.other]
  type = "diff"
  address = "{address}"
[plugins."io.containerd.service.v1.diff-service"]
  default = ["other", "walking"]
"""
DIFFERENCES = {
    "rebase": "containerd 1.6 does not know it, and says nothing of a parent at commit",
    "walk_and_filters": "containerd 1.6 answers a malformed filter with an error of no class",
    "only_active_ones_are_committed": "containerd 1.6 says that a directory is not there",
    "reader_outlives_blob": "each read over the wire is a call of its own",
    "wrong_size_is_refused": "other words",
    "wrong_digest_is_refused": "an error ends a Write stream, and with it its writer",
    "one_writer_for_a_ref": "other words: the ref is shown with its namespace",
    "closed_writer": "containerd 1.6 may still have an ingest open when it is aborted",
    "statuses": "the same",
    "truncate": "the API can only begin again",
    "walk_and_delete": "containerd 1.6 has no filter on size",
}


def name_of(check: object) -> str:
    return str(getattr(check, "__name__", "")).removeprefix("check_")


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    base = tmp_path_factory.mktemp("peer") / "c"
    with daemons.running("containerd", base, PEER) as daemon:
        yield daemon


@pytest.mark.parametrize(
    "check", [c for c in snapshot_suite.CHECKS if name_of(c) not in DIFFERENCES], ids=name_of
)
def test_snapshotter(check: snapshot_suite.Check, peer: Daemon) -> None:
    store = ProxySnapshotter(peer.address, "native")
    try:
        check(store)
    finally:
        store.close()


@pytest.mark.parametrize(
    "check", [c for c in content_suite.CHECKS if name_of(c) not in DIFFERENCES], ids=name_of
)
def test_content(check: content_suite.Check, peer: Daemon) -> None:
    store = ProxyContent(peer.address, "remote")
    try:
        check(store)
    finally:
        store.close()


def out(daemon: Daemon, client: str, *args: str) -> str:
    done = daemon.ctr(client, *args, timeout=60)
    assert done.returncode == 0, done
    return done.stdout.decode()


def archive(folder: Path) -> str:
    path = folder / "image.tar"
    path.write_bytes(images.archive(images.build(), NAME))
    return str(path)


@pytest.mark.parametrize("client", ["ours", "debian"])
def test_a_daemon_whose_stores_are_another_process(tmp_path: Path, client: str) -> None:
    with daemons.running("containerd", tmp_path / "c", PEER) as peer:
        more = OURS.format(address=peer.address)
        with daemons.running("kontti", tmp_path / "k", more) as daemon:
            flags = ("--snapshotter", "native")
            out(daemon, client, "images", "import", *flags, archive(tmp_path))
            id = f"proxied-{client}"
            assert out(daemon, client, "run", "--rm", *flags, NAME, id, "echo", "hi") == "hi\n"
            # blobs and snapshots are there, and not here
            listed = out(daemon, client, "content", "ls", "-q").split()
            assert listed
            assert set(listed) <= set(out(peer, "debian", "content", "ls", "-q").split())
            assert not list((tmp_path / "k").glob("root/**/blobs/sha256/*"))
            assert "default/" in out(peer, "debian", "snapshots", "--snapshotter", "native", "ls")
            out(daemon, client, "images", "rm", "--sync", NAME)
            assert out(daemon, client, "content", "ls", "-q") == ""
            assert out(peer, "debian", "content", "ls", "-q") == ""


def test_what_is_told_of_proxies(tmp_path: Path) -> None:
    more = OURS.format(address="/no/such.sock")
    with daemons.running("kontti", tmp_path / "k", more) as daemon:
        rows = out(daemon, "ours", "plugins", "ls", "-d", "id==native")
        assert "remap-ids" in rows
        assert "/elsewhere" in rows
        # a proxy that is not there keeps nothing else from working
        done = daemon.ctr("ours", "images", "import", archive(tmp_path))
        assert done.returncode == 1
        assert b"/no/such.sock" in done.stderr
        assert out(daemon, "ours", "namespaces", "create", "n") == ""


def test_a_person_is_told_of_one_that_never_was(tmp_path: Path) -> None:
    more = '[proxy_plugins.remote]\ntype = "snapshot"\naddress = "/no/such.sock"\n'
    away = 'proxy plugin remote: failed to dial "/no/such.sock": No such file or directory'
    with daemons.running("kontti", tmp_path / "k", more) as daemon:

        def kontti(*args: str) -> tuple[int, str, str]:
            argv = [str(daemons.VENV_BIN / "kontti"), "--address", daemon.address, *args]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
            return done.returncode, done.stdout, done.stderr

        assert kontti("load", "-i", archive(tmp_path))[0] == 0
        assert kontti("ps", "-a")[::2] == (0, "")
        assert kontti("images")[::2] == (0, "")
        code, out, problem = kontti("df")
        assert (code, "overlayfs" in out) == (0, True)
        assert problem == f"kontti: snapshotter remote is left out: {away}: unavailable\n"
        words = ("run", "--rm", "--snapshotter", "remote", NAME, "true")
        assert kontti(*words) == (1, "", f"kontti: {away}: unavailable\n")
        assert kontti("run", "--rm", NAME, "echo", "hi") == (0, "hi\n", "")


def test_a_proxy_may_go_and_come(tmp_path: Path) -> None:
    base = tmp_path / "c"
    base.mkdir()
    (base / "config.toml").write_text(daemons.config("containerd") + PEER)
    store = ProxySnapshotter(str(base / "c.sock"), "native")
    with pytest.raises(Unavailable):
        store.stat("x")
    first, process = daemons.start("containerd", base)
    try:
        store.prepare("key")
        os.kill(first.pid, signal.SIGKILL)
        process.wait(20)
        with pytest.raises(Unavailable):
            store.stat("key")
        _, process = daemons.start("containerd", base)
        assert store.stat("key").name == "key"
    finally:
        store.close()
        daemons.stop(process)
        daemons.clean(base)


class Slow(NativeSnapshotter):
    """Answers everything, and not everything at once."""

    def stat(self, key: str) -> Info:
        time.sleep(SLOW_SECONDS)
        return super().stat(key)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = EMPTY, parent: str | None = None
    ) -> None:
        time.sleep(SLOW_SECONDS)
        super().commit(name, key, labels, parent)


def test_a_slow_one_that_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "QUICK_SECONDS", SLOW_SECONDS / 3)
    monkeypatch.setattr(proxy, "CALL_SECONDS", SLOW_SECONDS / 3)
    with short_folder() as folder, contextlib.ExitStack() as stack:
        remote = RemoteSnapshots(folder / "r", {})
        remote.store = Slow(str(folder / "r"))
        stack.enter_context(serving(remote, f"{folder}/s"))
        store = stack.enter_context(contextlib.closing(ProxySnapshotter(f"{folder}/s", "slow")))
        store.prepare("a")
        store.commit("b", "a")
        with pytest.raises(DeadlineExceeded, match=r"proxy plugin slow at .* did not answer"):
            store.stat("b")
        # the connection is as good as before
        assert [info.name for info in store.walk()] == ["b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[proxy_plugins.x]\ntype = "clock"\naddress = "/a"\n', "unknown type 'clock'"),
        ('[proxy_plugins.x]\ntype = "snapshot"\n', "has no address"),
        ('[proxy_plugins.native]\ntype = "snapshot"\naddress = "/a"\n', "disable that one"),
        ('[proxy_plugins.x]\ntype = "content"\naddress = "/a"\n', "one content store"),
    ],
)
def test_proxies_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.toml").write_text(daemons.config("kontti") + text)
    argv = daemons.command("kontti", tmp_path)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert message in done.stderr
