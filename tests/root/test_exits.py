"""How processes end, exactly; and what comes of many who want something of one at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from kontti.errors import Error, NotFound
from tests.support.api import Api, Exited, at_once, connected
from tests.support.figures import steady
from tests.support.leftovers import Place, place, unchanged

pytestmark = pytest.mark.root
SLACK = 64 << 10
ROUNDS = 20
WAITERS = 50


@pytest.fixture(scope="module", params=(("kontti", "ours"), ("containerd", "debian")))
def at(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(*request.param) as made:
        yield made


@pytest.fixture(scope="module")
def link(at: Place) -> Iterator[Api]:
    with connected(at.daemon.address, at.namespace, at.base) as made:
        made.run("warm", "sleep", "1000")
        made.end("warm")
        yield made


@pytest.fixture
def api(at: Place, link: Api) -> Iterator[Api]:
    with unchanged(at), steady(at.daemon.pid, SLACK):
        yield link
        link.clear()


def outcome(act: Callable[[], object]) -> str:
    """What came of it, in a word."""
    try:
        act()
    except Error as error:
        return type(error).__name__
    return "done"


def test_every_exit_code(api: Api) -> None:
    api.run("one", "sleep", "1000")

    def one(part: int) -> list[int]:
        codes = range(part, 256, 8)
        return [api.run_exec("one", f"e{code}", "sh", "-c", f"exit {code}") for code in codes]

    found = at_once(8, one)
    assert found == [list(range(part, 256, 8)) for part in range(8)]


@pytest.mark.parametrize("code", [0, 1, 2, 125, 126, 127, 128, 137, 255])
def test_exit_codes_of_containers_and_their_time(api: Api, code: int) -> None:
    before = time.time()
    api.run("one", "sh", "-c", f"exit {code}")
    ended = api.wait("one")
    assert ended.code == code
    # the kernel's clock for files and events may lag by a tick
    assert before - 0.05 <= ended.at <= time.time()
    # it goes on being said, and it stays what it was
    time.sleep(0.05)
    assert api.wait("one") == ended
    state = api.get("one")
    assert (state.status, state.exit_status) == (3, code)
    assert api.delete("one") == ended
    with pytest.raises(NotFound):
        api.wait("one")
    with pytest.raises(NotFound):
        api.delete("one")
    api.forget("one")


FATAL = [n for n in signal.valid_signals() if n not in (17, 18, 19, 20, 21, 22, 23, 28, 32, 33)]


def test_every_signal_that_ends_a_process(api: Api) -> None:
    """An exec is no pid 1: nothing shields it."""
    api.run("one", "sleep", "1000")
    for number in FATAL:
        exec_id = f"e{int(number)}"
        api.exec("one", exec_id, "sleep", "1000")
        api.start("one", exec_id)
        api.kill("one", number, exec_id)
        assert api.wait("one", exec_id).code == 128 + number
        assert api.delete_exec("one", exec_id).code == 128 + number


def test_signals_that_nobody_has(api: Api) -> None:
    api.run("one", "sleep", "1000")
    for number in (65, 1000, 2**31, 2**32 - 1):
        with pytest.raises(Error) as caught:
            api.kill("one", number)
        assert "Traceback" not in caught.value.message
    assert api.get("one").status == 2
    api.kill("one", 0)
    assert api.end("one").code == 137


def test_an_end_before_anybody_waits(api: Api) -> None:
    for number in range(ROUNDS):
        api.run("one", "true")
        time.sleep(0.05 if number % 2 else 0.0)
        assert api.wait("one").code == 0
        assert api.delete("one").code == 0
        api.forget("one")


def test_many_who_wait_for_one_end(api: Api) -> None:
    api.run("one", "sleep", "1000")
    api.exec("one", "e", "sleep", "1000")
    api.start("one", "e")

    def one(number: int) -> Exited:
        if number == WAITERS:
            time.sleep(0.3)
            api.kill("one")
        return api.wait("one", "e" if number % 2 else "")

    ends = Counter(at_once(WAITERS + 1, one))
    # two ends, told alike to everybody
    assert sorted(ends.values()) == [WAITERS // 2, WAITERS // 2 + 1], ends
    assert {end.code for end in ends} == {137}


def test_waiters_that_go_away_are_forgotten(at: Place, api: Api) -> None:
    api.run("one", "sleep", "1000")
    for _ in range(5):
        gone = Api(at.daemon.address, at.namespace, at.base / "busybox")
        wait = partial(outcome, partial(gone.wait, "one"))
        waiting = [threading.Thread(target=wait) for _ in range(2)]
        for thread in waiting:
            thread.start()
        time.sleep(0.05)
        gone.client.close()
        for thread in waiting:
            thread.join(10)
            assert not thread.is_alive()
    assert api.end("one").code == 137


def test_two_who_start_one(api: Api) -> None:
    for _ in range(ROUNDS // 4):
        api.record("one", api.spec("one", "sleep", "1000"))
        api.create("one")
        found = Counter(at_once(4, lambda _: outcome(lambda: api.start("one"))))
        assert found["done"] == 1, found
        with pytest.raises(Error, match=r"cannot start a \w+ (process|in the running state)|start"):
            api.start("one")
        assert api.get("one").status == 2
        api.end("one")


def test_many_who_create_one(api: Api) -> None:
    api.record("one", api.spec("one", "sleep", "1000"))
    found = Counter(at_once(8, lambda _: outcome(lambda: api.create("one"))))
    assert found["done"] == 1, found
    api.start("one")
    api.end("one")


def test_many_who_delete_one(at: Place, api: Api) -> None:
    """Of ours one is told how it ended. Of the original's, sometimes none is."""
    for _ in range(ROUNDS):
        api.run("one", "true")
        api.wait("one")
        found = Counter(at_once(4, lambda _: outcome(lambda: api.delete("one"))))
        if at.daemon.kind == "kontti":
            assert found == {"done": 1, "NotFound": 3}
        assert outcome(lambda: api.get("one")) == "NotFound"
        api.forget("one")


def test_kills_beside_a_delete(at: Place, api: Api) -> None:
    """What has ended cannot be killed; the original says so in more ways than one."""
    acts = [lambda: api.delete("one"), *[lambda: api.kill("one")] * 3]
    for _ in range(ROUNDS):
        api.run("one", "sleep", "1000")
        api.kill("one")
        api.wait("one")
        first, *others = at_once(4, lambda n: outcome(acts[n]))
        assert first == "done"
        assert "done" not in others
        if at.daemon.kind == "kontti":
            assert set(others) == {"NotFound"}
        api.forget("one")


def test_a_delete_beside_a_kill(api: Api) -> None:
    """Whoever comes first: a running one is not deleted, a killed one is."""

    def delete() -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                assert api.delete("one").code == 137
            except Error as error:
                if "running" not in error.message or time.monotonic() > deadline:
                    raise
            else:
                return

    acts = [lambda: api.kill("one"), delete]
    for _ in range(ROUNDS):
        api.run("one", "sleep", "1000")
        assert at_once(2, lambda n: outcome(acts[n])) == ["done", "done"]
        api.forget("one")


def test_execs_while_it_ends(api: Api) -> None:
    """Each either ran and was ended, or was refused; none hangs, and none is left."""
    for _ in range(ROUNDS // 4):
        api.run("one", "sleep", "1000")

        def one(number: int) -> str:
            if number == 0:
                time.sleep(0.03)
                return outcome(lambda: api.kill("one"))
            exec_id = f"e{number}"

            def run() -> None:
                api.exec("one", exec_id, "sleep", "1000")
                api.start("one", exec_id)
                assert api.wait("one", exec_id).code == 137

            return outcome(run)

        found = at_once(8, one)
        assert found[0] == "done"
        assert "DeadlineExceeded" not in found
        assert "Unavailable" not in found
        api.wait("one")
        for number in range(1, 8):
            with contextlib.suppress(Error):
                api.delete_exec("one", f"e{number}")
        assert api.delete("one").code == 137
        api.forget("one")


def test_a_container_that_was_created_and_never_started(api: Api) -> None:
    api.record("one", api.spec("one", "sleep", "1000"))
    for _ in range(ROUNDS // 4):
        pid = api.create("one")
        assert pid > 0
        assert api.get("one").status == 1
        api.delete("one")
    for _ in range(ROUNDS // 4):
        api.create("one")
        api.kill("one")
        assert api.wait("one").code == 137
        assert api.delete("one").code == 137
    api.forget("one")
