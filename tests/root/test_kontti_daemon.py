"""kontti with a daemon beside it: found by the lock, named by a flag, gone and back again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kontti import Engine
from kontti.engine.lock import daemon_of
from kontti.engine.values import Options
from kontti.errors import FailedPrecondition, InvalidArgument, Unavailable
from tests.support import daemons, images
from tests.support.kontti_cli import IMAGE, KONTTI, Cli, cli
from tests.support.leftovers import new_namespace, remove_folders
from tests.support.shims import short_folder

pytestmark = pytest.mark.root


def test_what_one_side_makes_the_other_has() -> None:
    with cli("daemon") as kontti:
        kontti("run", "-d", "--name", "both", IMAGE, "sleep", "600")
        address = str(kontti.folder / "c.sock")

        def ctr(*args: str) -> bytes:
            return daemons.ctr("ours", address, "-n", kontti.namespace, *args).stdout

        assert b"both" in ctr("tasks", "ls")
        assert IMAGE.encode() in ctr("images", "ls", "-q")
        kontti("rm", "-f", "both")
        assert ctr("containers", "ls", "-q") == b""


def test_a_container_ends_and_is_started_again_until_it_is_stopped() -> None:
    with cli("daemon") as kontti:
        kontti("run", "-d", "--name", "r", "--restart", "always", IMAGE, "sh", "-c", "echo up")
        deadline = time.monotonic() + 30
        while kontti("logs", "r").stdout.count("up") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        kontti("stop", "r")
        count = kontti("logs", "r").stdout.count("up")
        time.sleep(1.5)  # the back-off is at most this after three turns
        assert kontti("logs", "r").stdout.count("up") == count
        kontti("start", "r")
        while kontti("logs", "r").stdout.count("up") < count + 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        kontti("rm", "-f", "r")
        time.sleep(0.5)
        assert kontti.list() == []


def test_an_engine_in_this_process_does_not_promise_restarts() -> None:
    with short_folder() as base, Engine(str(base / "r"), str(base / "s")) as engine:
        with pytest.raises(FailedPrecondition, match="needs a daemon"):
            engine.start(IMAGE, options=Options(restart="always"))
        with pytest.raises(InvalidArgument, match="restart policy"):
            engine.start(IMAGE, options=Options(restart="on-failure:0"))


def test_a_foreground_command_lives_through_the_daemons_restart() -> None:
    with short_folder() as base:
        (base / "config.toml").write_text(daemons.config("kontti"))
        _, daemon = daemons.start("kontti", base)
        try:
            kontti = Cli(base)
            kontti("load", "-i", _archive(base))
            script = "echo up; read word; echo $word; exit 5"
            argv = [*kontti.argv, "run", "--rm", "-i", IMAGE, "sh", "-c", script]
            with subprocess.Popen(argv, stdin=-1, stdout=-1) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stdout.readline() == b"up\n"
                daemon.send_signal(signal.SIGKILL)
                daemon.wait(20)
                _, daemon = daemons.start("kontti", base)
                process.stdin.write(b"word\n")
                process.stdin.flush()
                assert process.stdout.readline() == b"word\n"
                assert process.wait(30) == 5
            assert kontti.list() == []
        finally:
            daemons.stop(daemon)
            daemons.clean(base)


@pytest.mark.parametrize("kind", ["kontti", "containerd"])
def test_any_containerd_by_its_address(kind: str, tmp_path: Path) -> None:
    with short_folder() as base, daemons.running(kind, base) as daemon:
        state = str(base / "cli")
        namespace = new_namespace()
        flags = ["--root", str(base / "cli-root"), "--state", state, "-n", namespace]
        environment = {**os.environ, "KONTTI_ADDRESS": daemon.address}

        def kontti(*args: str) -> str:
            argv = [KONTTI, *flags, *args]
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=60, check=False, env=environment
            )
            assert done.returncode == 0, (args, done.stderr)
            return done.stdout

        kontti("load", "-i", _archive(base))
        assert kontti("run", "--rm", IMAGE, "echo", "hello") == "hello\n"
        kontti("run", "-d", "--name", "kept", IMAGE, "sleep", "600")
        assert "running" in kontti("ps")
        assert kontti("exec", "kept", "echo", "in") == "in\n"
        assert '"cpu_percent"' in kontti("stats", "--format", "json", "kept")
        (tmp_path / "f").write_text("text")
        kontti("cp", str(tmp_path / "f"), "kept:/tmp/f")
        assert kontti("exec", "kept", "cat", "/tmp/f") == "text"
        kontti("rm", "-f", "kept")
        kontti("rmi", IMAGE)
        assert daemon.ctr("debian", "-n", namespace, "content", "ls", "-q").stdout == b""
        remove_folders(namespace)


def test_nobody_listens() -> None:
    with short_folder() as base:
        argv = [KONTTI, "-a", str(base / "none.sock"), "ps"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert "is containerd running?" in done.stderr
        assert done.stderr.count("\n") == 1
        with pytest.raises(Unavailable):
            Engine.connect(str(base / "none.sock"))


def test_a_lock_that_tells_of_a_daemon_that_is_gone_counts_for_nothing() -> None:
    with cli("daemon") as kontti:
        address, root = str(kontti.folder / "c.sock"), kontti.folder / "root"
        assert daemon_of(str(root)) == address
        other = kontti.folder / "other"
        other.mkdir()
        # its socket is another daemon's now
        (other / "kontti.lock").write_text(f"the daemon at {address} (pid 1)\n")
        assert daemon_of(str(other)) == ""
        argv = [KONTTI, "--root", str(other), "--state", str(kontti.folder / "os"), "ps", "-q"]
        assert subprocess.run(argv, timeout=30, check=True, capture_output=True).stdout == b""
        for text in ("", "the daemon at /no/such (pid 5)\n", "the daemon at x (pid 99999999999)"):
            (other / "kontti.lock").write_text(text)
            assert daemon_of(str(other)) == ""


def _archive(base: Path) -> str:
    path = base / "busybox.tar"
    path.write_bytes(images.archive(images.build(), IMAGE))
    return str(path)


def test_a_container_without_a_process_is_stopped_already() -> None:
    """As one is between two turns of a restart policy."""
    with cli("daemon") as kontti:
        kontti("run", "-d", "--name", "s", IMAGE, "true")
        kontti("wait", "s")
        with Engine.connect(str(kontti.folder / "c.sock"), kontti.namespace) as engine:
            engine.processes.delete("s")
        assert kontti("stop", "s").stdout == "s\n"
        kontti("rm", "s")
