"""Starts a daemon (ours or Debian's) with a root of its own, and takes everything away after it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DEBIAN_DAEMON = "/usr/bin/containerd"
DEBIAN_CTR = "/usr/bin/ctr"
VENV_BIN = Path(sys.executable).parent
START_SECONDS = 30.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Daemon:
    """A running daemon and where it keeps things."""

    kind: str
    address: str
    root: Path
    state: Path
    log: Path
    pid: int

    def ctr(
        self, client: str, *args: str, timeout: float = 20, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``client`` ("ours" or "debian") with ``args`` against this daemon."""
        return ctr(client, self.address, *args, timeout=timeout, stdin=stdin)


def client_path(client: str) -> str:
    """The binary of a client by its short name."""
    return DEBIAN_CTR if client == "debian" else str(VENV_BIN / "ctr")


def ctr(
    client: str,
    address: str,
    *args: str,
    timeout: float = 20,
    stdin: bytes | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """One client call, bounded; one that hangs is killed and returns 124."""
    argv = [client_path(client), "--address", address, *args]
    source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
    with subprocess.Popen(
        argv, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return subprocess.CompletedProcess(argv, 124, out, err + b"killed: it hung\n")
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def config(kind: str) -> str:
    """The daemon's configuration file."""
    if kind == "kontti":
        return "version = 2\n"
    return (
        'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri", '
        '"io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.btrfs", '
        '"io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]\n'
    )


def command(kind: str, base: Path) -> list[str]:
    """The daemon's command line."""
    binary = DEBIAN_DAEMON if kind == "containerd" else str(VENV_BIN / "containerd")
    return [
        binary,
        "--config", str(base / "config.toml"),
        "--root", str(base / "root"),
        "--state", str(base / "state"),
        "--address", str(base / "c.sock"),
        "--log-level", "info",
    ]  # fmt: skip


@contextlib.contextmanager
def running(
    kind: str, base: Path, more: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """A daemon of ``kind`` ("kontti" or "containerd") under ``base``; cleaned up at the end.

    ``more`` is put after its usual configuration, ``environment`` over ours.
    """
    base.mkdir(parents=True, exist_ok=True)
    (base / "config.toml").write_text(config(kind) + more)
    daemon, process = start(kind, base, environment)
    try:
        yield daemon
    finally:
        stop(process)
        clean(base)


def start(
    kind: str, base: Path, environment: Mapping[str, str] | None = None
) -> tuple[Daemon, subprocess.Popen[bytes]]:
    """Start it and wait until it answers."""
    log = base / "daemon.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            command(kind, base),
            stdout=out,
            stderr=out,
            start_new_session=True,
            # what containerd says of damaged layers is not to hang on what is installed
            env={**os.environ, "CONTAINERD_DISABLE_PIGZ": "1", **(environment or {})},
        )
    address = str(base / "c.sock")
    deadline = time.monotonic() + START_SECONDS
    while ctr("debian", address, "version").returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            stop(process)
            clean(base)
            raise RuntimeError(f"{kind} did not start:\n{log.read_text()}")
        time.sleep(0.05)
    return Daemon(kind, address, base / "root", base / "state", log, process.pid), process


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, then make it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


def clean(base: Path) -> None:
    """End shims that a failed test left, and unmount what is under ``base``."""
    for pid in shims(base):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for mount in reversed(mounts(base)):
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)


def shims(base: Path) -> list[int]:
    """Processes whose command line or working directory names ``base``, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            names = (entry / "cmdline").read_bytes() + os.readlink(entry / "cwd").encode()
        except OSError:
            continue
        if os.fsencode(base) + b"/" in names:
            found.append(int(entry.name))
    return found


def mounts(base: Path) -> list[str]:
    """Mount points under ``base``, in mount order."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [p for p in points if p.startswith(f"{base}/")]
