"""``kontti cp``: both ways, of containers that run and that do not."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kontti_cli import BACKENDS, IMAGE, Cli, check_nothing_left, cli

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=BACKENDS)
def kontti(request: pytest.FixtureRequest) -> Iterator[Cli]:
    with cli(request.param) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(kontti: Cli) -> Iterator[None]:
    yield
    check_nothing_left(kontti)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    assert not [m for m in mounts if str(kontti.folder) in m and "kontti-mount-" in m]


def until_there(kontti: Cli, path: str) -> None:
    deadline = time.monotonic() + 20
    while "no" in kontti("exec", "box", "sh", "-c", f"test -e {path} || echo no").stdout:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("state", ["running", "paused", "stopped"])
def test_both_ways(kontti: Cli, state: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    script = (
        f"if mkdir /src; then cd /src; echo one > one; chown 7:8 one; ln -s {outside} evil; "
        "touch /ok; fi; sleep 600"
    )
    kontti("run", "-d", "--name", "box", IMAGE, "sh", "-c", script)
    until_there(kontti, "/ok")
    if state == "stopped":
        kontti("stop", "-t", "0", "box")
    elif state == "paused":
        kontti("pause", "box")
    (copied,) = kontti.json("cp", "-a", "box:/src", str(tmp_path / "new"))
    assert copied == {
        "id": "box",
        "source": "box:/src",
        "target": str(tmp_path / "new"),
        "files": 3,
        "bytes": 4,
    }
    assert os.stat(tmp_path / "new" / "one").st_uid == 7
    assert os.readlink(tmp_path / "new" / "evil") == str(outside)
    with tarfile.open(fileobj=io.BytesIO(kontti.bytes("cp", "bo:/src", "-"))) as tar:
        assert sorted(tar.getnames()) == ["src", "src/evil", "src/one"]
    assert "not found" in kontti("cp", "box:/src/evil/kept", str(tmp_path), code=1).stderr
    assert "not found" in kontti("cp", "/etc/passwd", "box:/src/evil/kept", code=1).stderr
    (tmp_path / "f").write_text("in")
    kontti("cp", str(tmp_path / "f"), "box:/src/one")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a/b"))
        archive.addfile(tarfile.TarInfo("evil/kept"))
    kontti.bytes("cp", "-", "box:/", input=out.getvalue())
    if state == "paused":
        kontti("unpause", "box")
    kontti("start", "box")
    shown = kontti("exec", "box", "sh", "-c", "cat /src/one; ls /a /evil").stdout
    assert shown.split() == ["in/a:", "b", "/evil:", "kept"]
    assert {p.name: p.read_text() for p in outside.iterdir()} == {"kept": "kept"}
    kontti("rm", "-f", "box")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["box:/nosuch", "/tmp"], "box:/nosuch: not found"),
        (["/no/such", "box:/"], "/no/such: not found"),
        (["box:/a", "box:/b"], "one of source and target"),
        (["/a", "./b:c"], "one of source and target"),
        (["box:", "/b"], "path in the container is missing"),
        (["nosuch:/a", "/b"], "container nosuch: not found"),
    ],
)
def test_errors_say_what_is_wrong(kontti: Cli, args: list[str], message: str) -> None:
    kontti("run", "--name", "box", IMAGE, "true")
    done = kontti("cp", *args, code=1)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    kontti("rm", "box")


def test_volumes_are_in_and_the_kernels_trees_are_not(kontti: Cli, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "f").write_text("in the volume")
    (tmp_path / "hosts").write_text("long before")
    (tmp_path / "g").write_text("more")
    volumes = ["-v", f"{tmp_path}/v:/vol", "-v", f"{tmp_path}/hosts:/etc/hosts"]
    kontti("run", "-d", "--name", "box", *volumes, IMAGE, "sleep", "600")
    with tarfile.open(fileobj=io.BytesIO(kontti.bytes("cp", "box:/", "-"))) as tar:
        names = tar.getnames()
    assert "vol/f" in names
    assert "bin/busybox" in names
    assert not [name for name in names if name.startswith(("proc/", "sys/"))]
    kontti("cp", str(tmp_path / "g"), "box:/vol")
    assert (tmp_path / "v" / "g").read_text() == "more"
    # what is mounted on one file is written to, and stays mounted
    kontti("cp", str(tmp_path / "g"), "box:/etc/hosts")
    assert (tmp_path / "hosts").read_text() == "more"
    assert "/etc/hosts" in kontti("exec", "box", "cat", "/proc/self/mountinfo").stdout
    kontti("rm", "-f", "box")
