"""A root has one owner, and the second to come is told who it is."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kontti.engine.lock import RootLock
from kontti.errors import FailedPrecondition


def test_the_holder_is_named(tmp_path: Path) -> None:
    with RootLock(str(tmp_path), "the daemon at /run/x.sock"):
        with pytest.raises(FailedPrecondition) as caught:
            RootLock(str(tmp_path), "an embedded engine")
        assert "in use by the daemon at /run/x.sock" in caught.value.message
        assert f"pid {os.getpid()}" in caught.value.message
    with RootLock(str(tmp_path), "next"):
        pass


def test_a_shorter_name_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    RootLock(str(tmp_path), "a" * 100).close()
    with RootLock(str(tmp_path), "b"), pytest.raises(FailedPrecondition) as caught:
        RootLock(str(tmp_path), "c")
    assert "aaa" not in caught.value.message


def test_the_kernel_lets_go_of_what_a_killed_process_held(tmp_path: Path) -> None:
    script = (
        "import sys; from kontti.engine.lock import RootLock\n"
        "lock = RootLock(sys.argv[1], 'other'); print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FailedPrecondition, match=f"other .pid {holder.pid}"):
            RootLock(str(tmp_path), "ours")
        holder.kill()
        holder.wait()
    RootLock(str(tmp_path), "ours").close()


def test_closing_twice_is_as_good_as_once(tmp_path: Path) -> None:
    lock = RootLock(str(tmp_path), "x")
    lock.close()
    lock.close()


def test_what_a_killed_holder_was_starting_is_waited_for(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    path = tmp_path / "kontti.lock"
    path.write_text(f"the daemon at /run/x.sock (pid {gone.pid})\n")
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        timer = threading.Timer(0.3, lambda: fcntl.flock(held, fcntl.LOCK_UN))
        timer.start()
        RootLock(str(tmp_path), "next").close()
        timer.join()
