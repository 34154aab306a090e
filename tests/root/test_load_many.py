"""Many execs and many containers, in a row and at once: all as they should be, nothing kept.

``KONTTI_EXECS`` is how many execs in a row (400 where it is not set; the whole test is 1000),
``KONTTI_AT_ONCE`` how many execs and containers at once (100).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.errors import Error, NotFound
from tests.support import figures
from tests.support.api import Api, at_once, connected
from tests.support.figures import steady
from tests.support.leftovers import Place, place, unchanged

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
EXECS = int(os.environ.get("KONTTI_EXECS", "400"))
AT_ONCE = int(os.environ.get("KONTTI_AT_ONCE", "100"))


@pytest.fixture(scope="module", params=(("kontti", "ours"), ("containerd", "debian")))
def at(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(*request.param) as made:
        yield made


@pytest.fixture(scope="module")
def link(at: Place) -> Iterator[Api]:
    """With one container already made and ended: what there is once is there."""
    with connected(at.daemon.address, at.namespace, at.base) as made:
        made.run("warm", "sleep", "1000")
        at_once(20, lambda n: made.run_exec("warm", f"e{n}", "true"))
        made.end("warm")
        yield made


@pytest.fixture
def api(link: Api) -> Iterator[Api]:
    yield link
    link.clear()


def count(at: Place, wanted: int, theirs: int = 20) -> int:
    """How many of something: the original is there to prove the test, and blocks at a hundred."""
    return wanted if at.daemon.kind == "kontti" else min(wanted, theirs)


def slack(at: Place) -> int:
    """Go's runtime gives memory back when it likes."""
    return figures.SLACK_KIB if at.daemon.kind == "kontti" else 64 << 10


def shim_of(pid: int) -> int:
    """The shim of a container's first process."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def test_execs_in_a_row(at: Place, api: Api) -> None:
    with unchanged(at), steady(at.daemon.pid, slack(at)):
        shim = shim_of(api.run("one", "sleep", "1000"))
        for number in range(10):
            api.run_exec("one", f"warm{number}", "true")
        before = {shim: figures.of(shim)}
        for number in range(count(at, EXECS)):
            code = number % 256
            assert api.run_exec("one", f"e{number}", "sh", "-c", f"exit {code}") == code
        after = {shim: figures.of(shim)}
        assert figures.grown(before, after, slack(at)) == []
        api.end("one")


def test_execs_at_once(at: Place, api: Api) -> None:
    many = count(at, AT_ONCE)
    with unchanged(at), steady(at.daemon.pid, slack(at)):
        shim = shim_of(api.run("one", "sleep", "1000"))
        at_once(10, lambda n: api.run_exec("one", f"warm{n}", "true"))
        before = {shim: figures.of(shim)}
        codes = at_once(
            many, lambda n: api.run_exec("one", f"e{n}", "sh", "-c", f"sleep 0.2; exit {n}")
        )
        assert codes == list(range(many))
        assert figures.grown(before, {shim: figures.of(shim)}, slack(at)) == []
        api.end("one")


def test_execs_that_write_at_once(at: Place, api: Api) -> None:
    """Each to a file of its own, each its own text."""
    many = count(at, AT_ONCE, 4)
    folder = at.base / "written"
    folder.mkdir()

    def one(number: int) -> str:
        path = folder / str(number)
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        try:
            api.exec(
                "one", f"e{number}", "seq", str(number), "20000", stdout=str(path), stderr=str(path)
            )
            api.start("one", f"e{number}")
            with open(reader, closefd=False) as file:
                text = file.read()
            assert api.wait("one", f"e{number}").code == 0
            api.delete_exec("one", f"e{number}")
            return text
        finally:
            os.close(reader)
            path.unlink()

    with unchanged(at), steady(at.daemon.pid, slack(at)):
        api.run("one", "sleep", "1000")
        for number, text in enumerate(at_once(many, one)):
            assert text == "".join(f"{n}\n" for n in range(number, 20001))
        api.end("one")


def test_containers_at_once(at: Place, api: Api) -> None:
    """Created, started, seen, killed and deleted: each step for all before the next."""
    many = count(at, AT_ONCE)
    names = [f"c{number}" for number in range(many)]
    with unchanged(at), steady(at.daemon.pid, slack(at)):
        for name in names:
            api.record(name, api.spec(name, "sleep", "1000"))
        pids = at_once(many, lambda n: api.create(names[n]))
        assert len(set(pids)) == many
        assert at_once(many, lambda n: api.start(names[n])) == pids
        found = api.list()
        assert {id: process.pid for id, process in found.items()} == dict(
            zip(names, pids, strict=True)
        )
        at_once(many, lambda n: api.kill(names[n]))
        ends = at_once(many, lambda n: api.wait(names[n]))
        assert {end.code for end in ends} == {137}
        assert at_once(many, lambda n: api.delete(names[n])) == ends
        at_once(many, lambda n: api.forget(names[n]))


def test_whole_lives_at_once(at: Place, api: Api) -> None:
    many = count(at, AT_ONCE)

    def one(number: int) -> float:
        name = f"c{number}"
        for _ in range(2):
            api.run(name, "sh", "-c", f"exit {number}")
            assert api.wait(name).code == number
            assert api.delete(name).code == number
            api.forget(name)
        return time.time()

    with unchanged(at), steady(at.daemon.pid, slack(at)):
        at_once(many, one)


def test_containers_that_fail_at_once(at: Place, api: Api) -> None:
    """A failure takes back all it made, whatever goes on beside it."""
    many = count(at, AT_ONCE)

    def one(number: int) -> str:
        name = f"c{number}"
        if number % 2:
            api.run(name, "sleep", "1000")
            return str(api.end(name).code)
        api.record(name, api.spec(name, "/no/such"))
        with pytest.raises(Error, match="/no/such"):
            api.create(name)
        with pytest.raises(NotFound):
            api.get(name)
        api.forget(name)
        return "failed"

    with unchanged(at), steady(at.daemon.pid, slack(at)):
        ends = at_once(many, one)
    assert ends == ["137" if n % 2 else "failed" for n in range(many)]
