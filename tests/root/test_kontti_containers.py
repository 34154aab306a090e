"""kontti's commands on containers that are there, with no daemon and with one."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.kontti_cli import BACKENDS, IMAGE, Cli, check_nothing_left, cli

pytestmark = pytest.mark.root
OBEDIENT = ["sh", "-c", "trap 'echo bye; exit 9' TERM; echo up; while true; do sleep 0.05; done"]
SLEEP = ["sleep", "600"]


@pytest.fixture(scope="module", params=BACKENDS)
def kontti(request: pytest.FixtureRequest) -> Iterator[Cli]:
    with cli(request.param) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(kontti: Cli) -> Iterator[None]:
    yield
    check_nothing_left(kontti)


def test_ps_filters_and_quiet(kontti: Cli) -> None:
    kontti("run", "-d", "--name", "web-1", "-l", "tier=front", IMAGE, *SLEEP)
    kontti("run", "-d", "--name", "web-2", "-l", "tier=back", "-l", "old=1", IMAGE, *SLEEP)
    kontti("run", "--name", "done", IMAGE, "false", code=1)
    wanted = {
        (): "web-1 web-2",
        ("-a",): "done web-1 web-2",
        ("--filter", "status=stopped"): "done",
        ("--filter", "name=web", "--filter", "label=tier=back"): "web-2",
        ("--filter", "label=tier"): "web-1 web-2",
        ("--filter", "label=tier=back", "--filter", "label=old"): "web-2",
        ("--filter", "label=tier=front", "--filter", "label=old"): "",
        ("--filter", "name=b-1", "--filter", "name=b-2"): "web-1 web-2",
        ("-a", "--filter", "name=nosuch"): "",
    }
    for flags, names in wanted.items():
        assert kontti("ps", "-q", *flags).stdout.split() == names.split(), flags
    found = kontti.json("ps", "--filter", "name=web-2")
    assert [set(c) for c in found] == [
        {"id", "image", "status", "pid", "exit_code", "created_at", "command", "labels"}
    ]
    assert found[0]["labels"]["tier"] == "back"
    for bad in ("status=up", "colour=red", "label"):
        assert "filter" in kontti("ps", "--filter", bad, code=1).stderr
    kontti("rm", "-f", "web-1", "web-2", "done")


def test_a_unique_prefix_is_enough_and_an_ambiguous_one_is_said_to_be(kontti: Cli) -> None:
    for name in ("alpha", "alps", "al"):
        kontti("run", "-d", "--name", name, IMAGE, *SLEEP)
    assert kontti("exec", "alph", "echo", "here").stdout == "here\n"
    assert "ambiguous: alpha, alps" in kontti("rm", "-f", "alp", code=1).stderr
    # a whole name is no prefix
    assert kontti("rm", "-f", "al").stdout == "al\n"
    assert "not found" in kontti("rm", "x", code=1).stderr
    assert kontti("rm", "-f", "alpha", "alps").stdout == "alpha\nalps\n"


def test_what_fails_for_one_does_not_stop_the_others(kontti: Cli) -> None:
    for name in ("one", "two"):
        kontti("run", "-d", "--name", name, IMAGE, *SLEEP)
    done = kontti("pause", "one", "nosuch", "two", code=1)
    assert done.stdout == "one\ntwo\n"
    assert done.stderr == "kontti: container nosuch: not found\n"
    assert [c["status"] for c in kontti.list()] == ["paused", "paused"]
    found = kontti.json("unpause", "nosuch", "one", "two", code=1)
    assert found == [
        {"id": "nosuch", "error": "container nosuch: not found"},
        {"id": "one"},
        {"id": "two"},
    ]
    assert [c["status"] for c in kontti.list()] == ["running", "running"]
    # one that is paused can be stopped, too
    kontti("pause", "one")
    assert kontti.json("stop", "-t", "0.2", "one") == [{"id": "one", "exit_code": 137}]
    assert kontti.json("kill", "two") == [{"id": "two"}]
    assert kontti.json("wait", "one", "two") == [
        {"id": "one", "exit_code": 137},
        {"id": "two", "exit_code": 137},
    ]
    assert kontti.json("rm", "one", "two") == [{"id": "one"}, {"id": "two"}]


def test_start_goes_on_with_the_files_and_the_output(kontti: Cli) -> None:
    script = "echo x >> /count; wc -l < /count; exit 4"
    kontti("run", "--name", "again", IMAGE, "sh", "-c", script, code=4)
    for _ in range(2):
        assert kontti("start", "again").stdout == "again\n"
        assert kontti("wait", "again").stdout == "4\n"
    assert kontti("logs", "again").stdout == "1\n2\n3\n"
    kontti("rm", "again")


def test_start_leaves_one_that_runs_and_restart_does_not(kontti: Cli) -> None:
    kontti("run", "-d", "--name", "re", IMAGE, *OBEDIENT)
    pid = kontti.list()[0]["pid"]
    kontti("start", "re")
    assert kontti.list()[0]["pid"] == pid
    assert kontti.json("restart", "-t", "5", "re") == [{"id": "re"}]
    found = kontti.list()[0]
    assert found["status"] == "running"
    assert found["pid"] != pid
    assert "bye\n" in kontti("logs", "re").stdout
    kontti("rm", "-f", "re")


def test_top_tells_of_processes_by_the_containers_names(kontti: Cli) -> None:
    script = "sleep 600 & exec sleep 700"
    kontti("run", "-d", "--name", "top", "-u", "1234", IMAGE, "sh", "-c", script)
    deadline = time.monotonic() + 10
    while len(found := kontti.json("top", "top")) < 2 or found[0]["command"] != "sleep 700":
        assert time.monotonic() < deadline, found
    assert [p["command"] for p in found] == ["sleep 700", "sleep 600"]
    assert {p["user"] for p in found} == {"1234"}
    assert found[0]["pid"] == kontti.list()[0]["pid"] == found[1]["ppid"]
    assert set(found[0]) == {
        *("pid", "ppid", "user", "state", "cpu_percent", "cpu_seconds", "memory_bytes", "command")
    }
    lines = kontti("top", "top").stdout.splitlines()
    assert lines[0].split() == ["PID", "PPID", "USER", "STATE", "%CPU", "TIME", "MEMORY", "COMMAND"]
    kontti("kill", "top")
    kontti("wait", "top")
    assert "container top is not running" in kontti("top", "top", code=1).stderr
    kontti("rm", "top")


def test_a_process_cannot_write_to_the_terminal_by_its_name(kontti: Cli) -> None:
    script = r"""exec sh -c 'sleep 600; :' "$(printf 'a\033[2Jb')" """
    kontti("run", "-d", "--name", "esc", IMAGE, "sh", "-c", script)
    deadline = time.monotonic() + 10
    while "a?[2Jb" not in (shown := kontti("top", "esc").stdout):
        assert time.monotonic() < deadline, shown
    assert "\033" not in shown
    kontti("rm", "-f", "esc")


def test_stats_once_in_a_pipe(kontti: Cli) -> None:
    busy = ["sh", "-c", "while true; do :; done"]
    kontti("run", "-d", "--name", "busy", "-m", "64m", IMAGE, *busy)
    kontti("run", "-d", "--name", "idle", IMAGE, *SLEEP)
    found = {row["id"]: row for row in kontti.json("stats")}
    assert set(found) == {"busy", "idle"}
    assert set(found["busy"]) == {
        *("id", "cpu_percent", "cpu_seconds", "memory_bytes", "memory_limit_bytes"),
        *("memory_percent", "pids", "pids_limit", "block_read_bytes", "block_write_bytes"),
    }
    assert found["busy"]["cpu_percent"] > found["idle"]["cpu_percent"]
    assert found["busy"]["cpu_seconds"] > 0
    assert found["busy"]["memory_limit_bytes"] == 64 << 20
    assert found["idle"]["memory_limit_bytes"] == 0
    assert 0 < found["idle"]["memory_bytes"] < 64 << 20
    lines = kontti("stats", "idl").stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("CONTAINER")
    assert lines[1].startswith("idle ")
    kontti("rm", "-f", "busy")
    kontti("kill", "idle")
    kontti("wait", "idle")
    done = kontti("stats", "idle", "nosuch", code=1)
    assert "container idle is not running" in done.stderr
    assert "container nosuch" in done.stderr
    kontti("rm", "idle")


def test_exec_in_the_background(kontti: Cli) -> None:
    kontti("run", "-d", "--name", "bg", IMAGE, *SLEEP)
    script = "echo done > /mark; exec sleep 666"
    (found,) = kontti.json("exec", "-d", "bg", "sh", "-c", script)
    assert set(found) == {"id", "exec_id"}
    deadline = time.monotonic() + 10
    while "done" not in kontti("exec", "bg", "sh", "-c", "cat /mark 2>&1; true").stdout:
        assert time.monotonic() < deadline
    assert "sleep 666" in [p["command"] for p in kontti.json("top", "bg")]
    assert "-d does not go with" in kontti("exec", "-d", "-i", "bg", "cat", code=1).stderr
    kontti("rm", "-f", "bg")


def test_inspect_of_containers_and_images(kontti: Cli) -> None:
    kontti("run", "--name", "seen", IMAGE, "true")
    container, image = kontti.json("inspect", "see", "busybox:test")
    assert (container["type"], container["id"], container["status"]) == (
        "container",
        "seen",
        "stopped",
    )
    assert container["spec"]["process"]["args"] == ["true"]
    assert (image["type"], image["name"]) == ("image", IMAGE)
    assert image["config"]["cmd"] == ["/bin/sh"]
    assert len(image["layers"]) == 2
    done = kontti("inspect", "seen", "nosuch", code=1)
    assert [c["id"] for c in json.loads(done.stdout)] == ["seen"]
    assert "container or image nosuch: not found" in done.stderr
    assert kontti("inspect", "--type", "image", "seen", code=1).stdout == "[]\n"
    kontti("inspect", "--type", "container", "busybox:test", code=1)
    kontti("rm", "seen")


def test_attach_shows_what_comes_and_passes_signals(kontti: Cli) -> None:
    script = "trap 'echo got; exit 8' TERM; while true; do echo tick; sleep 0.05; done"
    kontti("run", "-d", "--name", "att", IMAGE, "sh", "-c", script)
    with kontti.begin("attach", "att") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"tick\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().endswith(b"got\n")
        assert process.wait(20) == 8
    assert "att is not running" in kontti("attach", "att", code=1).stderr
    kontti("rm", "att")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["kill", "-s", "NOSUCH", "x"], "unknown signal 'NOSUCH'"),
        (["run", "-d", "--restart", "often", IMAGE], "restart policy 'often' is not"),
        (["run", "--restart", "always", IMAGE], "--restart goes with -d"),
        (["run", "-l", "=x", IMAGE], "label '=x' is not NAME=VALUE"),
        (["pause", ""], "container : not found"),
    ],
)
def test_errors_say_what_is_wrong(kontti: Cli, args: list[str], message: str) -> None:
    done = kontti(*args, code=1)
    assert message in done.stderr
    assert done.stderr.startswith("kontti: ")
    assert done.stderr.count("\n") == 1
