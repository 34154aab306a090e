"""A daemon that can be stopped, killed and started again, with a namespace of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from kontti.cmd.ctr.stdio import FORWARDED
from tests.support import daemons, images
from tests.support.shims import short_folder

IMAGE = "docker.io/library/busybox:test"
WAIT_SECONDS = 10.0
RUNTIME_STATE = Path("/run/containerd/runc")
CGROUPS = Path("/sys/fs/cgroup")


class Host:
    """One root and state below ``base``, and the daemon on them while there is one."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.namespace = f"t{uuid.uuid4().hex[:12]}"
        self.address = str(base / "c.sock")
        self.log = base / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.write_config("version = 2\n")

    def write_config(self, text: str) -> None:
        """Have the next daemon read ``text``."""
        (self.base / "config.toml").write_text(text)

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        _, self.process = daemons.start("kontti", self.base)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        daemons.stop(self.process)
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(WAIT_SECONDS)

    def ctr(
        self, *args: str, stdin: bytes | None = None, timeout: float = 20
    ) -> subprocess.CompletedProcess[bytes]:
        """Our ctr in this host's namespace."""
        words = ("--namespace", self.namespace, *args)
        return daemons.ctr("ours", self.address, *words, timeout=timeout, stdin=stdin)

    def out(self, *args: str, stdin: bytes | None = None) -> str:
        """What a command prints that has to succeed."""
        done = self.ctr(*args, stdin=stdin)
        assert done.returncode == 0, done
        return done.stdout.decode()

    def argv(self, *args: str) -> list[str]:
        """The command line of our ctr, for who starts it in a way of his own."""
        where = ("--address", self.address, "--namespace", self.namespace)
        return [daemons.client_path("ours"), *where, *args]

    def import_image(self) -> None:
        """Have busybox, unpacked."""
        tar = self.base / "image.tar"
        tar.write_bytes(images.archive(images.build(), IMAGE))
        self.out("images", "import", str(tar))

    def tasks(self) -> dict[str, tuple[int, str]]:
        """Pid and status by id."""
        lines = [line.split() for line in self.out("tasks", "ls").splitlines()[1:]]
        return {id: (int(pid), status) for id, pid, status in lines}

    def until(self, id: str, status: str) -> int:
        """Wait until a task is in ``status``; its pid."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := self.tasks().get(id, (0, "none")))[1] != status:
            assert time.monotonic() < deadline, (id, found)
            time.sleep(0.02)
        return found[0]

    def until_task(self, client: subprocess.Popen[bytes], id: str) -> int:
        """Wait until the task of a ctr in the background runs, and ctr waits for it; its pid."""
        pid = self.until(id, "RUNNING")
        deadline = time.monotonic() + WAIT_SECONDS
        while not caught(client.pid) >= FORWARDED:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return pid

    def nothing(self) -> dict[str, str]:
        """What a failed command must leave: no container, task or lease, and no mount."""
        kinds = {kind: self.out(kind, "ls", "-q") for kind in ("containers", "tasks", "leases")}
        left = {kind: ids for kind, ids in kinds.items() if ids.strip()}
        # where the mount manager mounts is bound on itself for as long as the daemon runs
        own = "/io.containerd.mount-manager.v1.bolt/t"
        mounted = [path for path in daemons.mounts(self.base) if not path.endswith(own)]
        return {**left, **({"mounts": "\n".join(mounted)} if mounted else {})}

    def clean(self) -> None:
        """End everything, whatever state it is in."""
        if self.process is not None:
            if self.process.poll() is None:
                for id in self.ctr("tasks", "ls", "-q").stdout.decode().split():
                    self.ctr("tasks", "rm", "-f", id)
            daemons.stop(self.process)
        daemons.clean(self.base)
        for path in (RUNTIME_STATE / self.namespace, *CGROUPS.glob(f"*/{self.namespace}")):
            with contextlib.suppress(OSError):
                os.rmdir(path)


@contextlib.contextmanager
def host(*, start: bool = True, image: bool = True) -> Iterator[Host]:
    """A host; nothing is left of it after the block."""
    with short_folder() as base:
        made = Host(base)
        try:
            if start:
                made.start()
            if image:
                made.import_image()
            yield made
        finally:
            made.clean()


def caught(pid: int) -> set[int]:
    """The signals that a process has handlers for."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return {bit + 1 for bit in range(64) if mask >> bit & 1}


def gone(pid: int) -> bool:
    """Whether a process ends (it may be a zombie of another's) within the time for waiting."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False
