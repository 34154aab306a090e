"""Many containers that run: seen, found again by the next daemon, ended; and what they cost.

``KONTTI_MANY`` is how many (100 where it is not set; the whole is 500).
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.memory import pss, shims_of

from tests.support import figures
from tests.support.api import Api, at_once, connected
from tests.support.host import Host, host

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
MANY = int(os.environ.get("KONTTI_MANY", "100"))
STARTERS = 8
SOFT_LIMIT = 256
"""Descriptors that a daemon is started with: fewer than it needs."""
DESCRIPTORS_EACH = 4
"""A connection each way, and the pidfds of shim and process."""
SHIM_MIB = 6.0
IDLE_SECONDS = 2.0


@contextlib.contextmanager
def low_limit() -> Iterator[None]:
    """What is started within the block begins with few descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT_LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Crowd:
    """A daemon with many containers, and their pids."""

    def __init__(self, here: Host, api: Api) -> None:
        self.here = here
        self.api = api
        self.pids: dict[str, int] = {}

    def start(self) -> None:
        """All of them."""

        def some(first: int) -> None:
            for number in range(first, MANY, STARTERS):
                id = f"c{number}"
                self.pids[id] = self.api.run(id, "sleep", "100000")

        at_once(STARTERS, some)

    def end(self) -> None:
        """All of them."""

        def some(first: int) -> None:
            for number in range(first, MANY, STARTERS):
                assert self.api.end(f"c{number}").code == 137

        at_once(STARTERS, some)

    def again(self) -> None:
        """Start a daemon after the one before."""
        with low_limit():
            self.here.start()
        self.api.client.close()
        self.api.client = Api(self.here.address, self.here.namespace, self.api.rootfs).client

    def check(self) -> None:
        """All are seen, by the API and by a client, and run."""
        found = self.api.list()
        assert {id: process.pid for id, process in found.items()} == self.pids
        assert {process.status for process in found.values()} == {2}
        assert self.here.tasks() == {id: (pid, "RUNNING") for id, pid in self.pids.items()}
        assert set(self.here.out("containers", "ls", "-q").split()) == set(self.pids)

    @property
    def daemon(self) -> int:
        assert self.here.process is not None
        return self.here.process.pid


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    with host(start=False, image=False) as here, low_limit():
        here.start()
        with connected(here.address, here.namespace, here.base) as api:
            made = Crowd(here, api)
            api.run("warm", "true")
            api.wait("warm")
            api.delete("warm")
            api.forget("warm")
            before = figures.of(made.daemon)
            made.start()
            yield made
            made.end()
            assert api.list() == {}
            assert made.here.nothing() == {}
            assert not list(here.base.glob("state/io.containerd.runtime.v2.task/*/*"))
            assert not list(Path("/sys/fs/cgroup").glob(f"*/{here.namespace}/*/"))
            # this daemon was started when they ran: the first one's figures are what is left
            after = figures.of(made.daemon)
            assert len(after.descriptors) <= len(before.descriptors) + 2, after.descriptors


def test_they_are_seen(crowd: Crowd) -> None:
    crowd.check()


def test_the_daemon_holds_little_for_each(crowd: Crowd) -> None:
    now = figures.of(crowd.daemon)
    assert len(now.descriptors) <= DESCRIPTORS_EACH * MANY + 60
    # pools alone: none for each container
    assert now.threads <= 48


def test_a_shim_is_small_and_has_one_thread(crowd: Crowd) -> None:
    shims = shims_of(list(crowd.pids.values()))
    assert len(shims) == MANY
    for shim in shims:
        now = figures.of(shim)
        assert now.threads == 1
        assert len(now.descriptors) < 16, now.descriptors
    assert sum(map(pss, shims)) / MANY < SHIM_MIB


def test_containers_have_the_limit_that_the_daemon_was_given(crowd: Crowd) -> None:
    pid = crowd.pids["c0"]
    line = Path(f"/proc/{pid}/limits").read_text().split("Max open files")[1]
    assert line.split()[0] == str(SOFT_LIMIT)


def test_nobody_wakes_while_nothing_happens(crowd: Crowd) -> None:
    """No shim looks whether something is to be done, and no daemon looks at shims."""
    shims = shims_of(list(crowd.pids.values()))
    crowd.api.list()
    time.sleep(0.5)
    before = {shim: switches(shim) for shim in shims}
    begun = cpu_seconds(crowd.daemon)
    time.sleep(IDLE_SECONDS)
    assert {shim: switches(shim) for shim in shims} == before
    assert cpu_seconds(crowd.daemon) - begun < 0.1 * IDLE_SECONDS


def test_a_list_wakes_no_shim(crowd: Crowd) -> None:
    shims = shims_of(list(crowd.pids.values()))
    crowd.api.list()
    time.sleep(0.2)
    before = {shim: switches(shim) for shim in shims}
    for _ in range(3):
        crowd.check()
    assert {shim: switches(shim) for shim in shims} == before


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_the_next_daemon_finds_them_all(crowd: Crowd, how: str) -> None:
    if how == "stopped":
        crowd.here.stop()
    else:
        crowd.here.kill()
    assert all(Path(f"/proc/{pid}").exists() for pid in crowd.pids.values())
    crowd.again()
    crowd.check()
    assert crowd.api.run_exec("c0", "e", "sh", "-c", "exit 3") == 3


def test_an_end_of_one_of_many_is_seen(crowd: Crowd) -> None:
    """What is known without asking is known no more."""
    for _ in range(3):
        crowd.check()
        crowd.api.kill("c1")
        assert crowd.api.wait("c1").code == 137
        found = crowd.api.list()["c1"]
        assert (found.status, found.exit_status) == (3, 137)
        crowd.api.delete("c1")
        assert "c1" not in crowd.api.list()
        crowd.api.create("c1")
        assert crowd.api.list()["c1"].status == 1
        crowd.pids["c1"] = crowd.api.start("c1")
    crowd.here.out("tasks", "pause", "c1")
    assert crowd.api.list()["c1"].status == 4
    crowd.here.out("tasks", "resume", "c1")
    crowd.check()


def switches(pid: int) -> int:
    """How often a process has gone to sleep, and so was woken."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def cpu_seconds(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
