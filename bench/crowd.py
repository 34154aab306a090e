"""Hundreds of containers that run: what a list of them costs, a daemon's restart, and memory."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support import daemons
from tests.support.daemons import Daemon

from bench.measure import Comparison, interleaved, timed
from bench.memory import Footprint, daemon_pss, footprint, pss, shims_of

STARTERS = 4
START_SECONDS = 60.0
Pair = tuple["Served", "Served"]


class Served:
    """A daemon that can be started again. ``kind`` and ``daemon`` as in tests.support.daemons."""

    def __init__(self, kind: str, base: Path) -> None:
        self.kind = kind
        self._base = base
        base.mkdir()
        (base / "config.toml").write_text(daemons.config(kind))
        self.daemon, self._process = daemons.start(kind, base)

    def restart(self, count: int, *, listed: bool) -> float:
        """Stop it; seconds from the next one's start until it serves.

        With ``listed`` until it has listed ``count`` that run.
        """
        daemons.stop(self._process)
        begun = time.perf_counter()
        with self.daemon.log.open("ab") as out:
            self._process = subprocess.Popen(
                daemons.command(self.kind, self._base),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        while not accepts(self.daemon.address):
            if time.perf_counter() - begun > START_SECONDS:
                raise TimeoutError(f"{self.kind} did not start")
            time.sleep(0.001)
        words = ("tasks", "list") if listed else ("version",)
        done = self.daemon.ctr("debian", *words, timeout=START_SECONDS)
        seconds = time.perf_counter() - begun
        if done.returncode or (listed and done.stdout.count(b"RUNNING") != count):
            raise RuntimeError(f"{self.kind}: {done}")
        self.daemon = Daemon(
            self.kind,
            self.daemon.address,
            self.daemon.root,
            self.daemon.state,
            self.daemon.log,
            self._process.pid,
        )
        return seconds

    def stop(self) -> None:
        """Take it away, with all that it left."""
        daemons.stop(self._process)
        daemons.clean(self._base)


def accepts(address: str) -> bool:
    """Whether somebody listens."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(address)
        except OSError:
            return False
    return True


@contextlib.contextmanager
def pair(disk: Path) -> Iterator[Pair]:
    """Ours and theirs, each with a root of its own."""
    with contextlib.ExitStack() as stack:
        made = []
        for kind in ("kontti", "containerd"):
            made.append(Served(kind, disk / f"crowd-{kind}"))
            stack.callback(made[-1].stop)
        yield made[0], made[1]


def measure(
    disk: Path, archive: Path, image: str, count: int, rounds: int
) -> tuple[list[Comparison], list[Footprint]]:
    """Have ``count`` containers of ``image`` run on both, and compare."""
    with pair(disk) as both:
        for served in both:
            timed(served.daemon, "images", "import", str(archive))
            everywhere(served, count, lambda daemon, name: start(daemon, image, name))
        few = max(3, rounds // 4)
        results = [list_all(both, rounds, count)]
        results += [start_again(both, few, count, listed=listed) for listed in (False, True)]
        footprints = memory(both, count)
        for served in both:
            everywhere(served, count, end)
    return results, footprints


def everywhere(served: Served, count: int, act: Callable[[Daemon, str], None]) -> None:
    """``act(daemon, id)`` for each container, a few at a time."""
    names = [f"crowd-{served.kind}-{number}" for number in range(count)]
    with ThreadPoolExecutor(STARTERS) as pool:
        list(pool.map(lambda name: act(served.daemon, name), names))


def start(daemon: Daemon, image: str, id: str) -> None:
    """One container that sleeps."""
    timed(daemon, "run", "-d", "--null-io", image, id, "sleep", "100000")


def end(daemon: Daemon, id: str) -> None:
    """Take it away."""
    timed(daemon, "tasks", "delete", "--force", id)
    timed(daemon, "containers", "delete", id)


def list_all(both: Pair, rounds: int, count: int) -> Comparison:
    """``ctr tasks list``."""
    name = f"list of {count} running containers"
    ours, theirs = both
    return interleaved(
        name,
        "ctr tasks list",
        1.0,
        rounds,
        lambda daemon, _number: timed(daemon, "tasks", "list"),
        (ours.daemon, theirs.daemon),
    )


def start_again(both: Pair, rounds: int, count: int, *, listed: bool) -> Comparison:
    """From a daemon's start until it serves, or lists them all."""
    by_kind = {served.kind: served for served in both}
    ours, theirs = both
    what, command = ("lists them", "ctr tasks list") if listed else ("serves", "ctr version")
    return interleaved(
        f"the daemon's start with {count} running containers, until it {what}",
        f"containerd, until `{command}` is answered",
        1.0,
        rounds,
        lambda daemon, _number: by_kind[daemon.kind].restart(count, listed=listed),
        (ours.daemon, theirs.daemon),
    )


def memory(both: Pair, count: int) -> list[Footprint]:
    """PSS of the daemons, and of a shim."""
    whole, each = {}, {}
    for served in both:
        listed = served.daemon.ctr("debian", "tasks", "list").stdout.decode().splitlines()[1:]
        shims = shims_of([int(line.split()[1]) for line in listed])
        whole[served.kind] = daemon_pss(served.daemon)
        each[served.kind] = sum(pss(pid) for pid in shims) / len(shims)
    return [
        footprint(f"the daemon, of {count} containers", whole),
        footprint(f"a container's shim, of {count}", each),
    ]
