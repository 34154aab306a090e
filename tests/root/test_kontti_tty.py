"""kontti on a terminal: colours, tables that are drawn again, and neither in a pipe."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kontti.cmd.kontti import stats
from kontti.engine.values import Usage
from tests.support.kontti_cli import IMAGE, Cli, check_nothing_left, cli

pytestmark = pytest.mark.root
SECONDS = 30.0


@pytest.fixture(scope="module")
def kontti() -> Iterator[Cli]:
    with cli("embedded") as made:
        yield made


@pytest.fixture(autouse=True)
def box(kontti: Cli) -> Iterator[None]:
    kontti("run", "-d", "--name", "box", IMAGE, "sleep", "600")
    yield
    kontti("rm", "-f", "box")
    check_nothing_left(kontti)


class Screen:
    """kontti on a terminal."""

    def __init__(self, kontti: Cli, *args: str, **environment: str) -> None:
        self.master, slave = pty.openpty()
        env = {**os.environ, "TERM": "xterm-256color", **environment}
        env = {k: v for k, v in env.items() if v}
        self.process = subprocess.Popen(
            [*kontti.argv, *args], stdin=slave, stdout=slave, stderr=slave, env=env
        )
        os.close(slave)
        self.seen = b""

    def read(self) -> bool:
        """Some more; False at the end."""
        assert select.select([self.master], [], [], SECONDS)[0], self.seen
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody is on the other side any more
            return False
        self.seen += data
        return bool(data)

    def finish(self) -> bytes:
        """All it shows."""
        while self.read():
            pass
        assert self.process.wait(SECONDS) == 0
        os.close(self.master)
        return self.seen


def test_ps_is_in_colour_on_a_terminal_only(kontti: Cli) -> None:
    green = b"\x1b[32mrunning"
    assert green in Screen(kontti, "ps", NO_COLOR="").finish()
    shown = Screen(kontti, "ps", NO_COLOR="1").finish()
    assert b"running" in shown
    assert b"[32m" not in shown
    assert b"\x1b" not in Screen(kontti, "ps", TERM="dumb").finish()
    assert "\x1b" not in kontti("ps").stdout
    # JSON is JSON everywhere
    assert b"\x1b" not in Screen(kontti, "ps", "--format", "json").finish()


def test_stats_are_drawn_again_until_nothing_runs(kontti: Cli) -> None:
    screen = Screen(kontti, "stats")
    while screen.seen.count(b"box ") < 2:
        assert screen.read(), screen.seen
    # others use the root meanwhile
    kontti("kill", "box")
    kontti("wait", "box")
    assert b"MEMORY / LIMIT" in screen.finish()
    kontti("start", "box")
    assert Screen(kontti, "stats", "--no-stream", "box").finish().count(b"box ") == 1


def test_stats_end_with_an_interrupt(kontti: Cli) -> None:
    screen = Screen(kontti, "stats")
    while b"box" not in screen.seen:
        assert screen.read()
    time.sleep(0.2)
    screen.process.send_signal(signal.SIGINT)
    while screen.read():
        pass
    assert screen.process.wait(SECONDS) == 130
    assert b"Traceback" not in screen.seen


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_gets_lost_ends_stats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exception is raised where Python drops it: in a finalizer."""

    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    class Roots:
        @contextlib.contextmanager
        def engine(self) -> Iterator[None]:
            yield None

    used = Usage("box", 0, 0, 0, 0, 0, 0, 0, 0)
    rounds = iter(range(5))

    def sample(*_: object) -> dict[str, Usage]:
        next(rounds)
        Dropped()
        return {"box": used}

    monkeypatch.setattr(stats, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(stats, "sample", sample)
    root: Any = Roots()
    with pytest.raises(KeyboardInterrupt):
        stats.refresh(root, [], {"box": used}, {"box": used})


def test_a_tar_is_not_written_to_a_terminal(kontti: Cli) -> None:
    screen = Screen(kontti, "cp", "box:/etc", "-")
    while screen.read():
        pass
    assert screen.process.wait(SECONDS) == 1
    assert b"not for a terminal" in screen.seen
