"""``kontti`` as its users type it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti import Engine
from tests.support import images
from tests.support.kontti_cli import BACKENDS, IMAGE, KONTTI, Cli, check_nothing_left, cli

pytestmark = pytest.mark.root
OBEDIENT = ["sh", "-c", "trap 'echo bye; exit 9' TERM; echo up; while true; do sleep 0.05; done"]


@pytest.fixture(scope="module", params=BACKENDS)
def kontti(request: pytest.FixtureRequest) -> Iterator[Cli]:
    with cli(request.param) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(kontti: Cli) -> Iterator[None]:
    yield
    check_nothing_left(kontti)


def test_run_passes_streams_and_exit_code(kontti: Cli) -> None:
    script = "cat; echo err >&2; exit 7"
    done = kontti("run", "--rm", "-i", IMAGE, "sh", "-c", script, input="hello\n", code=7)
    assert (done.stdout, done.stderr) == ("hello\n", "err\n")


def test_without_i_there_is_no_input(kontti: Cli) -> None:
    assert kontti("run", "--rm", IMAGE, "wc", "-c", input="hello").stdout.strip() == "0"


def test_flags_of_run(kontti: Cli, tmp_path: Path) -> None:
    flags = ["-e", "A=b", "-w", "/tmp", "-u", "7:8", "-v", f"{tmp_path}:/x", "--hostname", "h"]
    script = "echo $A; pwd; id -u; hostname; test -d /x; echo $?"
    done = kontti("run", "--rm", *flags, "-m", "64m", "--cpus", "0.5", IMAGE, "sh", "-c", script)
    assert done.stdout.split() == ["b", "/tmp", "7", "h", "0"]


def test_kept_container(kontti: Cli) -> None:
    kontti("run", "--name", "kept", IMAGE, "sh", "-c", "echo 1; echo 2; exit 3", code=3)
    table = kontti("ps", "-a").stdout.splitlines()
    assert table[0].split() == ["CONTAINER", "IMAGE", "COMMAND", "CREATED", "STATUS", "PID"]
    assert re.search(r"^kept +\S+busybox:test +sh -c .* ago +stopped \(3\) +-$", table[1])
    assert kontti("ps").stdout.count("\n") == 1
    assert kontti("logs", "kept").stdout == "1\n2\n"
    assert kontti("logs", "--tail", "1", "kept").stdout == "2\n"
    assert kontti("wait", "kept").stdout == "3\n"
    assert kontti("rm", "kept").stdout == "kept\n"


def test_foreground_run_leaves_the_root_to_others(kontti: Cli) -> None:
    with kontti.begin("run", "--name", "fg", IMAGE, *OBEDIENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        kontti.until_running("fg")
        done = kontti(
            "exec", "-e", "N=5", "-w", "/tmp", "fg", "sh", "-c", "echo $N; pwd; exit 6", code=6
        )
        assert done.stdout == "5\n/tmp\n"
        assert kontti("exec", "-i", "fg", "cat", input="in").stdout == "in"
        refused = kontti("rm", "fg", code=1)
        assert "fg is running" in refused.stderr
        kontti("stop", "fg")
        assert process.stdout.read() == b"bye\n"
        assert process.wait(20) == 9
    kontti("rm", "fg")


def test_signals_reach_a_foreground_container(kontti: Cli) -> None:
    with kontti.begin("run", "--rm", "--name", "sig", IMAGE, *OBEDIENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 9


def test_background_and_follow(kontti: Cli) -> None:
    script = "for i in 1 2 3; do echo $i; sleep 0.3; done"
    assert kontti("run", "-d", "--name", "bg", IMAGE, "sh", "-c", script).stdout == "bg\n"
    assert kontti("logs", "-f", "bg").stdout == "1\n2\n3\n"
    assert kontti("logs", "-f", "bg").stdout == "1\n2\n3\n"
    kontti("rm", "bg")


def test_stop_kill_and_inspect(kontti: Cli) -> None:
    for name in ("one", "two"):
        kontti("run", "-d", "--name", name, IMAGE, "sleep", "60")
    found = json.loads(kontti("inspect", "one").stdout)
    assert [(c["id"], c["status"]) for c in found] == [("one", "running")]
    kontti("stop", "-t", "0.1", "one")
    kontti("kill", "-s", "KILL", "two")
    assert kontti("wait", "one", "two").stdout == "137\n137\n"
    kontti("rm", "one", "two")


def test_run_on_a_terminal(kontti: Cli) -> None:
    script = "tty; read line; echo got $line; exit 4"
    pid, fd = pty.fork()
    if pid == 0:
        argv = [*kontti.argv, "run", "--rm", "-it", IMAGE, "sh", "-c", script]
        os.execv(argv[0], argv)
    shown = b""
    try:
        sent = False
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := os.read(fd, 4096):
                shown += data
                if b"/dev/pts/0" in shown and not sent:
                    sent = bool(os.write(fd, b"words\n"))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    finally:
        os.close(fd)
    assert b"got words" in shown


def test_images_and_rmi(kontti: Cli, tmp_path: Path) -> None:
    archive = images.archive(images.build(), "docker.io/library/other:1")
    (tmp_path / "other.tar").write_bytes(archive)
    kontti("load", "-i", str(tmp_path / "other.tar"))
    names = [image["name"] for image in json.loads(kontti("images", "--format", "json").stdout)]
    assert names == [IMAGE, "docker.io/library/other:1"]
    lines = kontti("images").stdout.splitlines()
    assert lines[0].split() == ["NAME", "DIGEST", "SIZE", "PLATFORMS", "CREATED"]
    kontti("rmi", "other:1")
    assert len(kontti("images").stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "nosuch", "true"], 'image "docker.io/library/nosuch:latest": not found'),
        (["run", "-m", "12x", IMAGE, "true"], "memory limit '12x' is not a size"),
        (["run", IMAGE, "/no/such"], "/no/such"),
        (["run", "-d", "--rm", IMAGE, "true"], "-d does not go with"),
        (["rm", "nosuch"], "not found"),
        (["logs", "nosuch"], "not found"),
        (["exec", "nosuch", "true"], "not found"),
        (["load", "-i", "/no/such/file"], "No such file or directory"),
    ],
)
def test_errors_say_what_is_wrong(kontti: Cli, args: list[str], message: str) -> None:
    done = kontti(*args, code=1)
    assert done.stderr.startswith("kontti: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_unknown_flag_is_a_usage_error(kontti: Cli) -> None:
    assert "unrecognized arguments" in kontti("images", "--nosuch", code=2).stderr


def test_version(kontti: Cli) -> None:
    assert json.loads(kontti("version", "--format", "json").stdout)["version"]


def test_another_programs_engine_is_named(kontti: Cli) -> None:
    with Engine(str(kontti.folder / "held"), str(kontti.folder / "held-state")):
        argv = [KONTTI, "--root", str(kontti.folder / "held"), "ps"]
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, "KONTTI_PATIENCE": "0.2"},
        )
    assert done.returncode == 1
    assert f"(pid {os.getpid()})" in done.stderr
