"""Shims that are binaries: how they are found and called, and what they may print."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import Error
from kontti.runtime import external
from kontti.runtime.bundle import Bootstrap, Bundle, Bundles
from kontti.runtime.external import External, parse_bootstrap, resolve
from kontti.wire.messages.runtime.bootstrap.v1.bootstrap import BootstrapResult
from kontti.wire.messages.runtime.task.v2.shim import DeleteResponse
from tests.support.shims import install_binary

ADDRESS = "unix:///run/containerd/s/abc"


def as_json(**changes: object) -> bytes:
    return json.dumps({"version": 3, "address": ADDRESS, "protocol": "ttrpc", **changes}).encode()


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        (ADDRESS.encode(), Bootstrap(ADDRESS, 2)),
        (ADDRESS.encode() + b"\n", Bootstrap(ADDRESS, 2)),
        (as_json(), Bootstrap(ADDRESS, 3)),
        (as_json(version=2), Bootstrap(ADDRESS, 2)),
        (as_json(protocol="grpc"), Bootstrap(ADDRESS, 3, "grpc")),
        (as_json(version=2, protocol="grpc"), Bootstrap(ADDRESS, 2, "grpc")),
        (as_json(address="vsock://3:1024"), Bootstrap("vsock://3:1024", 3)),
        (
            BootstrapResult(version=3, address=ADDRESS, protocol="ttrpc").encode(),
            Bootstrap(ADDRESS, 3),
        ),
    ],
)
def test_all_ways_to_say_where_it_listens(printed: bytes, found: Bootstrap) -> None:
    assert parse_bootstrap(printed) == found


@pytest.mark.parametrize(
    "printed",
    [
        b"",
        b"level=error msg=boom",
        b"{",
        b"{}",
        as_json(protocol="http"),
        as_json(version=4),
        as_json(version=None),
        as_json(address="tcp://127.0.0.1:1024"),
        b"unix:///a\nunix:///b",
    ],
)
def test_nothing_else_is_taken_for_an_address(printed: bytes) -> None:
    with pytest.raises(Error):
        parse_bootstrap(printed)


@given(st.binary(max_size=200))
def test_garbage_is_an_error_and_no_crash(printed: bytes) -> None:
    with contextlib.suppress(Error):
        assert parse_bootstrap(printed).address.startswith(("unix://", "vsock://"))


def test_a_name_becomes_a_binary_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    binary = install_binary(tmp_path)
    assert resolve("io.containerd.fake.v1") == str(binary)
    assert resolve("fake.v1") == str(binary)
    assert resolve("io.containerd.fake.v1", "/bin/sh") == "/bin/sh"
    assert resolve(str(binary)) == str(binary)


INVALID = (
    "invalid runtime name {}, correct runtime name should be either format like "
    "`io.containerd.runc.v2` or a full path to the binary"
)
NOT_INSTALLED = 'runtime "{}" binary not installed "containerd-shim-nope-v1": file does not exist'
NO_PATH = "invalid custom binary path: stat {}: no such file or directory"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nope", INVALID),
        ("../fake.v1", INVALID),
        ("io.containerd.nope.v1", NOT_INSTALLED),
        ("/no/such/shim", NO_PATH),
    ],
)
def test_what_is_not_there_is_said_as_containerd_says_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, text: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Error) as caught:
        resolve(name)
    assert caught.value.message == f"failed to resolve runtime path: {text.format(name)}"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundles(str(tmp_path / "root"), str(tmp_path / "state")).create("ns", "one", b"{}")


def driver(folder: Path) -> External:
    return External("/run/t.ttrpc", "/run/t.sock", "/bin/publish", (f"FAKE={folder}", "EXTRA=a=b"))


def test_start_is_called_by_the_protocol(tmp_path: Path, bundle: Bundle) -> None:
    binary = install_binary(tmp_path)
    (tmp_path / "start.out").write_bytes(as_json())
    started = asyncio.run(driver(tmp_path).start(str(binary), bundle, b"options"))
    assert started == Bootstrap(ADDRESS, 3)
    assert (tmp_path / "start.cwd").read_text().strip() == bundle.path
    assert (tmp_path / "start.args").read_text().strip() == (
        "-namespace ns -address /run/t.sock -publish-binary /bin/publish -id one start"
    )
    assert (tmp_path / "start.stdin").read_bytes() == b"options"
    environment = (tmp_path / "start.env").read_text().splitlines()
    for pair in (
        "TTRPC_ADDRESS=/run/t.ttrpc", "GRPC_ADDRESS=/run/t.sock", "NAMESPACE=ns",
        "MAX_SHIM_VERSION=3", "EXTRA=a=b",
    ):  # fmt: skip
        assert pair in environment


def test_delete_says_how_the_process_ended(tmp_path: Path, bundle: Bundle) -> None:
    binary = install_binary(tmp_path)
    (tmp_path / "delete.out").write_bytes(DeleteResponse(pid=7, exit_status=137).encode())
    ended = asyncio.run(driver(tmp_path).delete(str(binary), bundle))
    assert (ended.pid, ended.exit_status) == (7, 137)
    assert f"-bundle {bundle.path} delete" in (tmp_path / "delete.args").read_text()


def test_what_a_failing_start_printed_is_the_error(tmp_path: Path, bundle: Bundle) -> None:
    binary = install_binary(tmp_path)
    (tmp_path / "start.out").write_text("no such kernel\n")
    (tmp_path / "start.code").write_text("3")
    with pytest.raises(Error, match="start failed: no such kernel: exit status 3"):
        asyncio.run(driver(tmp_path).start(str(binary), bundle, b""))


def test_a_binary_that_hangs_is_given_up_on(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "START_SECONDS", 0.1)
    binary = tmp_path / "hangs"
    binary.write_text("#!/bin/sh\nexec sleep 60\n")
    binary.chmod(0o755)
    with pytest.raises(Error, match="did not end in time"):
        asyncio.run(driver(tmp_path).start(str(binary), bundle, b""))
