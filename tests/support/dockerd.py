"""Debian's dockerd on a containerd of the caller's, with everything below one directory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support import images

START_SECONDS = 60.0
STOP_SECONDS = 30.0
IMAGE = "busybox:test"


class Docker:
    """A dockerd below ``base`` whose containers are held by the containerd at ``address``."""

    def __init__(self, base: Path, disk: Path, address: str) -> None:
        self.base, self.disk, self.address = base, disk, address
        self.host = f"unix://{base}/docker.sock"
        self.log = base / "dockerd.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        argv = [
            "dockerd",
            *("--containerd", self.address),
            *("--data-root", str(self.disk / "docker")),
            *("--exec-root", str(self.base / "exec")),
            *("--pidfile", str(self.base / "docker.pid")),
            *("--host", self.host),
            *("--storage-driver", "overlay2"),
            # no network of the host's is touched
            "--bridge=none",
            "--iptables=false",
            "--live-restore",
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while self.run("version").returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it; containers go on."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_SECONDS)

    def run(
        self, *args: str, input: str | bytes = b"", timeout: float = 40
    ) -> subprocess.CompletedProcess[str]:
        """``docker args``."""
        done = subprocess.run(
            ["docker", "--host", self.host, *args],
            input=input.encode() if isinstance(input, str) else input,
            capture_output=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "DOCKER_BUILDKIT": "0", "HOME": str(self.base)},
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def out(self, *args: str, input: str | bytes = b"", code: int = 0) -> str:
        """What a command prints that has to end with ``code``."""
        done = self.run(*args, input=input)
        assert done.returncode == code, (args, done.stdout, done.stderr)
        return done.stdout

    def load_image(self) -> None:
        """Have busybox."""
        self.out("import", "-", IMAGE, input=images.base_layer())

    def remove_all(self) -> None:
        """Remove every container."""
        ids = self.run("ps", "-aq").stdout.split()
        if ids:
            self.run("rm", "-f", *ids)


@contextlib.contextmanager
def docker(base: Path, disk: Path, address: str) -> Iterator[Docker]:
    """A dockerd with an image; nothing of it is left behind."""
    made = Docker(base, disk, address)
    try:
        made.start()
        made.load_image()
        yield made
        made.remove_all()
    finally:
        made.stop()
        for line in Path("/proc/self/mountinfo").read_text().splitlines()[::-1]:
            target = line.split()[4]
            if target.startswith((f"{disk}/docker", f"{base}/exec")):
                subprocess.run(["umount", "-l", target], check=False)
