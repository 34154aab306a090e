"""The kontti command on a root of its own, with no daemon or with one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import daemons, images
from tests.support.leftovers import new_namespace, remove_folders
from tests.support.shims import short_folder

KONTTI = str(Path(sys.executable).with_name("kontti"))
IMAGE = "docker.io/library/busybox:test"
BACKENDS = ("embedded", "daemon")


class Cli:
    """kontti on a root of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # OCI runtimes know containers by namespace and name: others' tests use the same names
        self.namespace = new_namespace()
        self.argv = [
            *(KONTTI, "--root", str(folder / "root")),
            *("--state", str(folder / "state")),
            *("--namespace", self.namespace),
        ]

    def __call__(
        self, *args: str, input: str = "", code: int = 0, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.argv, *args],
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, (args, done.stdout, done.stderr)
        return done

    def bytes(self, *args: str, input: bytes = b"") -> bytes:
        """What it writes, as it is."""
        argv = [*self.argv, *args]
        done = subprocess.run(argv, input=input, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, (args, done.stderr)
        return done.stdout

    def begin(self, *args: str) -> subprocess.Popen[bytes]:
        """A command that goes on."""
        return subprocess.Popen([*self.argv, *args], stdout=subprocess.PIPE)

    def json(self, *args: str, code: int = 0) -> Any:
        """The one document on stdout."""
        return json.loads(self(args[0], "--format", "json", *args[1:], code=code).stdout)

    def status(self, id: str) -> str:
        return next((c["status"] for c in self.list() if c["id"] == id), "")

    def list(self) -> list[dict[str, Any]]:
        return list(self.json("ps", "-a"))

    def until(self, id: str, status: str) -> None:
        """Until a container is so."""
        deadline = time.monotonic() + 20
        while (found := self.status(id)) != status:
            assert time.monotonic() < deadline, f"{id} is {found}, not {status}"

    def until_running(self, id: str) -> None:
        self.until(id, "running")


@contextlib.contextmanager
def cli(backend: str) -> Iterator[Cli]:
    """One with an image; ``daemon``: a daemon owns the root."""
    with short_folder() as folder, contextlib.ExitStack() as stack:
        if backend == "daemon":
            stack.enter_context(daemons.running("kontti", folder))
        made = Cli(folder)
        archive = folder / "busybox.tar"
        archive.write_bytes(images.archive(images.build(), IMAGE))
        assert IMAGE in made("load", "-i", str(archive)).stdout
        yield made
        remove_folders(made.namespace)


def check_nothing_left(made: Cli) -> None:
    """Remove every container; there should have been none, and no FIFO."""
    left = [c["id"] for c in made.list()]
    for id in left:
        made("rm", "-f", id)
    assert left == []
    fifos = made.folder / "state" / "fifo"
    assert not fifos.exists() or os.listdir(fifos) == []
