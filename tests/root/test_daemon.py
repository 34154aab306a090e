"""The daemon as a process: how it starts, refuses to start, stops, and finds what it left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.engine.stores import METADATA_DIR
from tests.support import daemons
from tests.support.host import IMAGE, Host, gone, host

pytestmark = pytest.mark.root
BINARY = str(daemons.VENV_BIN / "containerd")
FAIL_SECONDS = 20
BLOBS = "io.containerd.content.v1.content/blobs/sha256"


@pytest.fixture
def here() -> Iterator[Host]:
    with host(image=False) as made:
        yield made


@pytest.fixture
def stopped() -> Iterator[Host]:
    with host(start=False, image=False) as made:
        yield made


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """The daemon's binary, for what ends by itself."""
    done = subprocess.run(
        [BINARY, *args], capture_output=True, text=True, timeout=FAIL_SECONDS, check=False
    )
    assert "Traceback" not in done.stderr
    return done


def refused(here: Host, *args: str) -> str:
    """What the daemon says that does not start with ``args`` over the usual ones."""
    done = run(*daemons.command("kontti", here.base)[1:], *args)
    assert done.returncode == 1
    assert done.stderr.startswith("containerd: ") or "level=" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("containerd: ")]
    return line.removeprefix("containerd: ")


def test_both_sockets_are_the_owners_alone(here: Host) -> None:
    for path in (here.address, f"{here.address}.ttrpc"):
        found = os.stat(path)
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())


def test_sockets_belong_to_whom_the_file_says(stopped: Host) -> None:
    stopped.write_config("version = 2\n[grpc]\n  uid = 12\n  gid = 34\n[ttrpc]\n  gid = 56\n")
    stopped.start()
    grpc, ttrpc = os.stat(stopped.address), os.stat(f"{stopped.address}.ttrpc")
    assert (grpc.st_uid, grpc.st_gid, stat.S_IMODE(grpc.st_mode)) == (12, 34, 0o660)
    assert (ttrpc.st_uid, ttrpc.st_gid, stat.S_IMODE(ttrpc.st_mode)) == (0, 56, 0o660)


def test_what_it_prints_as_its_configuration_is_one(tmp_path: Path) -> None:
    default = run("config", "default").stdout
    table = tomllib.loads(default)
    assert (table["version"], table["root"]) == (4, "/var/lib/containerd")
    file = tmp_path / "config.toml"
    file.write_text(default)
    dumped = run("--config", str(file), "config", "dump")
    assert dumped.returncode == 0
    assert tomllib.loads(dumped.stdout) == table
    migrated = run("-c", str(file), "config", "migrate")
    assert tomllib.loads(migrated.stdout) == table


def test_an_older_file_is_migrated(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('version = 2\n[grpc]\n  address = "/run/x.sock"\n')
    table = tomllib.loads(run(f"-c={file}", "config", "migrate").stdout)
    assert table["version"] == 4
    assert table["plugins"]["io.containerd.server.v1.grpc"]["address"] == "/run/x.sock"


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_the_command_line_goes_over_the_file(stopped: Host, dashes: str) -> None:
    stopped.write_config(
        'version = 3\nroot = "/nonexistent/root"\nstate = "/nonexistent/state"\n'
        '[grpc]\n  address = "/nonexistent/c.sock"\n[debug]\n  level = "error"\n'
    )
    base = stopped.base
    argv = [
        BINARY,
        f"{dashes}config={base / 'config.toml'}",
        *(f"{dashes}root", str(base / "root")),
        *(f"{dashes}state", str(base / "state")),
        *(f"{dashes}address", stopped.address),
        *(f"{dashes}log-level", "info"),
    ]
    dumped = tomllib.loads(run(*argv[1:], "config", "dump").stdout)
    assert dumped["root"] == str(base / "root")
    assert dumped["state"] == str(base / "state")
    assert dumped["debug"]["level"] == "info"
    stopped.start()
    assert "level=info" in stopped.log.read_text()
    assert (base / "root").is_dir()
    assert (base / "state").is_dir()
    assert not Path("/nonexistent").exists()


@pytest.mark.parametrize("version", [2, 3, 4])
def test_every_version_of_the_file_starts_a_daemon(stopped: Host, version: int) -> None:
    stopped.write_config(f"version = {version}\n")
    stopped.start()
    assert "Server:" in stopped.out("version")
    assert stopped.stop() == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = [", "failed to load TOML: "),
        ("version = 5\n", "expected containerd config version equal to or less than `4`, got `5`"),
        ('version = "two"\n', "version is not a number"),
        ("version = 2\nroot = 7\n", "root"),
        ('version = 2\nrequired_plugins = ["io.containerd.no.v1.such"]\n', "io.containerd.no.v1."),
        ('version = 2\n[plugins."cri"]\n', "cri"),
        (
            "version = 2\n[plugins.'io.containerd.gc.v1.scheduler']\n  pause_threshold = 9.0\n",
            "9.0",
        ),
        ('version = 2\n[timeouts]\n  "io.containerd.timeout.shim.load" = "soon"\n', "soon"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(stopped: Host, text: str, said: str) -> None:
    stopped.write_config(text)
    assert said in refused(stopped)
    assert not Path(stopped.address).exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--log-level", "loud"), "not a valid log level: 'loud'"),
        (("--config", "/nonexistent.toml"), "open /nonexistent.toml: no such file or directory"),
        (("--bogus",), "flag provided but not defined: -bogus"),
        (("--root",), "flag needs an argument: -root"),
        (("bogus",), "unknown command 'bogus'"),
        (("config", "bogus"), "unknown command 'config bogus'"),
        (("--address", f"/tmp/{'x' * 120}"), "is longer than 107 bytes"),
    ],
)
def test_a_wrong_command_line_is_refused(stopped: Host, args: tuple[str, ...], said: str) -> None:
    assert said in refused(stopped, *args)


def test_root_and_state_are_not_one(stopped: Host) -> None:
    assert "must be different" in refused(stopped, "--state", str(stopped.base / "root"))


@pytest.mark.parametrize("name", ["meta.db", "meta.db.backup"])
def test_a_database_of_a_newer_version_is_refused_and_kept(stopped: Host, name: str) -> None:
    folder = stopped.base / "root" / METADATA_DIR
    folder.mkdir(parents=True)
    if name != "meta.db":
        # it is only looked at where there is something that it should tell of
        blob = stopped.base / "root" / BLOBS / hashlib.sha256(b"blob").hexdigest()
        blob.parent.mkdir(parents=True)
        blob.write_bytes(b"blob")
    with contextlib.closing(sqlite3.connect(folder / name)) as connection:
        connection.execute("PRAGMA user_version=999")
    before = (folder / name).read_bytes()
    said = refused(stopped)
    assert "has version 999; this program knows versions up to" in said
    assert str(folder / "meta.db") in said
    assert (folder / name).read_bytes() == before
    assert not Path(stopped.address).exists()


def test_an_unknown_plugins_table_is_warned_of(stopped: Host) -> None:
    stopped.write_config('version = 2\n[plugins."io.containerd.no.v1.such"]\n  key = 1\n')
    stopped.start()
    assert "ignoring the settings of io.containerd.no.v1.such" in stopped.log.read_text()


@pytest.mark.parametrize("shared", ["root", "state", "address"])
def test_what_one_daemon_has_no_second_takes(here: Host, shared: str) -> None:
    other = here.base / "other"
    own = {"root": other / "root", "state": other / "state", "address": other / "c.sock"}
    del own[shared]
    flags = [word for name, path in own.items() for word in (f"--{name}", str(path))]
    assert here.process is not None
    said = refused(here, *flags)
    assert "in use by" in said
    if shared != "address":
        assert f"the daemon at {here.address} (pid {here.process.pid})" in said
    assert here.process.poll() is None
    assert "Server:" in here.out("version")
    assert here.stop() == 0


def test_a_socket_that_nobody_listens_on_is_replaced(stopped: Host) -> None:
    for path in (stopped.address, f"{stopped.address}.ttrpc"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
    stopped.start()
    assert "Server:" in stopped.out("version")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_told(here: Host, number: signal.Signals) -> None:
    assert here.process is not None
    with subprocess.Popen(here.argv("events"), stdout=subprocess.PIPE) as watcher:
        here.process.send_signal(number)
        assert here.process.wait(10) == 0
        watcher.communicate(timeout=10)
        # whoever listened is told that there is no more to hear
        assert watcher.returncode == 1
    assert not Path(here.address).exists()
    assert not Path(f"{here.address}.ttrpc").exists()
    assert daemons.shims(here.base) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE])
def test_other_signals_do_not_end_it(here: Host, number: signal.Signals) -> None:
    assert here.process is not None
    here.process.send_signal(number)
    assert "Server:" in here.out("version")
    if number == signal.SIGUSR1:
        assert "Current thread" in here.log.read_text()


def test_systemd_is_told(stopped: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(stopped.base / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        stopped.start()
        assert listener.recv(100) == b"READY=1"
        # the OCI runtime does not take the socket for its container's
        stopped.import_image()
        assert stopped.out("run", "--rm", IMAGE, "one", "echo", "hello") == "hello\n"
        assert stopped.stop() == 0
        assert listener.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_containers_outlive_it(here: Host, way: str) -> None:
    here.import_image()
    here.out("run", "-d", IMAGE, "lives", "sleep", "1000")
    here.out("run", "-d", IMAGE, "ends", "sh", "-c", "read line; exit 7")
    here.out("run", "-d", IMAGE, "shot", "sleep", "1000")
    before = here.tasks()
    pid = {id: found[0] for id, found in before.items()}
    if way == "stop":
        assert here.stop() == 0
        assert not Path(here.address).exists()
    else:
        here.kill()
    os.kill(pid["shot"], signal.SIGKILL)
    assert gone(pid["shot"])
    os.kill(pid["lives"], 0)
    here.start()
    assert here.until("lives", "RUNNING") == pid["lives"]
    assert here.until("shot", "STOPPED") == pid["shot"]
    assert here.out("tasks", "exec", "--exec-id", "e", "lives", "echo", "in") == "in\n"
    # how it ended while nobody looked is not forgotten
    deleted = here.ctr("tasks", "rm", "shot")
    assert deleted.returncode == 0
    assert b"exit with non-zero exit code 137" in deleted.stderr
    here.out("tasks", "rm", "-f", "lives")
    here.out("tasks", "rm", "-f", "ends")
    for id in pid:
        here.out("containers", "rm", id)
    assert here.nothing() == {}


def test_a_shim_killed_while_it_was_away_is_cleaned_up_after(here: Host) -> None:
    here.import_image()
    here.out("run", "-d", IMAGE, "one", "sleep", "1000")
    pid = here.tasks()["one"][0]
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    here.kill()
    os.kill(shim, signal.SIGKILL)
    assert gone(shim)
    here.start()
    assert gone(pid)
    here.until("one", "none")
    here.out("containers", "rm", "one")
    assert here.nothing() == {}
    assert here.out("run", "--rm", IMAGE, "one", "echo", "again") == "again\n"


def test_the_timeouts_table_is_in_force(stopped: Host) -> None:
    # a shim that does not answer is waited for as long as the file says, and no longer
    stopped.write_config(
        'version = 2\n[timeouts]\n  "io.containerd.timeout.task.state" = "50ms"\n'
        '  "io.containerd.timeout.shim.cleanup" = "1s"\n'
    )
    stopped.start()
    stopped.import_image()
    stopped.out("run", "-d", IMAGE, "one", "sleep", "1000")
    pid = stopped.tasks()["one"][0]
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(shim, signal.SIGSTOP)
    try:
        # its process runs, whatever becomes of the shim: that needs no asking
        assert stopped.tasks()["one"] == (pid, "RUNNING")
        done = stopped.ctr("tasks", "kill", "one")
        assert (done.returncode, b"deadline exceeded" in done.stderr) == (1, True), done
    finally:
        os.kill(shim, signal.SIGCONT)
    assert stopped.tasks()["one"] == (pid, "RUNNING")
