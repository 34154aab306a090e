"""What config.toml says is what the daemon is started with."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kontti.config.load import load
from kontti.errors import FailedPrecondition, InvalidArgument
from kontti.runtime.manager import RuntimeSettings
from kontti.server.daemon import DaemonSettings
from kontti.server.listen import prepare_socket
from kontti.server.settings import settings_of
from kontti.transfer.settings import Supported
from kontti.values import Platform
from tests.support.shims import short_folder


def settings(tmp_path: Path, text: str = "") -> DaemonSettings:
    file = tmp_path / "config.toml"
    file.write_text(f"version = 3\n{text}")
    return settings_of(load(str(file)))


def patience(runtime: RuntimeSettings) -> list[float]:
    return [
        runtime.load_seconds, runtime.state_seconds, runtime.stats_seconds,
        runtime.shutdown_seconds, runtime.cleanup_seconds,
    ]  # fmt: skip


def test_timeouts_have_containerds_defaults(tmp_path: Path) -> None:
    assert patience(settings(tmp_path).runtime) == [5.0, 2.0, 2.0, 3.0, 5.0]


def test_timeouts_are_those_of_the_file(tmp_path: Path) -> None:
    text = "\n".join(
        f'"io.containerd.timeout.{name}" = "{value}"'
        for name, value in (
            ("shim.load", "1m"), ("task.state", "250ms"), ("metrics.shimstats", "4s"),
            ("shim.shutdown", "1.5s"), ("shim.cleanup", "7s"),
        )
    )  # fmt: skip
    made = settings(tmp_path, f"[timeouts]\n{text}\n")
    assert patience(made.runtime) == [60.0, 0.25, 4.0, 1.5, 7.0]


def test_no_timeout_is_a_long_one(tmp_path: Path) -> None:
    made = settings(tmp_path, '[timeouts]\n"io.containerd.timeout.shim.load" = "0s"\n')
    assert made.runtime.load_seconds == 86400.0


def test_shims_are_told_of_the_sockets(tmp_path: Path) -> None:
    made = settings(
        tmp_path,
        'root = "/r"\nstate = "/s"\n[grpc]\naddress = "/a.sock"\n'
        "[plugins.'io.containerd.shim.v1.manager']\nenv = [\"A=b\"]\nsocket_dir = '/d'\n",
    )
    assert made.runtime == RuntimeSettings(
        root="/r", state="/s", socket_dir="/d", ttrpc_address="/a.sock.ttrpc",
        grpc_address="/a.sock", environment=("A=b",),
        log_options=(("max-size", "10m"), ("max-file", "5"), ("compress", "true")),
    )  # fmt: skip
    assert (made.stores.root, made.ttrpc.address) == ("/r", "/a.sock.ttrpc")
    assert settings(tmp_path).runtime.socket_dir == "/run/containerd/s"


def test_how_much_of_output_is_kept_is_told(tmp_path: Path) -> None:
    table = "[plugins.'io.containerd.internal.v1.kontti-log']\n"
    made = settings(tmp_path, f"{table}max_size = '64k'\nmax_file = 2\ncompress = false\n")
    wanted = (("max-size", "64k"), ("max-file", "2"), ("compress", "false"))
    assert made.runtime.log_options == wanted
    with pytest.raises(InvalidArgument, match="max-size '9x' is not a size"):
        settings(tmp_path, f"{table}max_size = '9x'\n")


def test_a_socket_in_use_is_left_alone() -> None:
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(folder / "s")
        listener.bind(path)
        listener.listen(0)
        waiting = []
        # with room for more to wait, and without
        for _ in range(3):
            with pytest.raises(FailedPrecondition, match="in use by another daemon"):
                prepare_socket(path)
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect_ex(path)
            waiting.append(client)
        assert Path(path).is_socket()
        for client in waiting:
            client.close()


def test_a_dead_socket_is_taken_away() -> None:
    with short_folder() as folder:
        path = folder / "new" / "s"
        prepare_socket(str(path))
        assert path.parent.is_dir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        prepare_socket(str(path))
        assert not path.exists()


def test_a_path_that_no_socket_can_have() -> None:
    with pytest.raises(InvalidArgument, match="longer than 107 bytes"):
        prepare_socket(f"/tmp/{'x' * 103}")


TRANSFER = """
[plugins.'io.containerd.transfer.v1.local']
max_concurrent_downloads = 5
max_concurrent_uploaded_layers = 2
concurrent_layer_fetch_buffer = 1048576
check_platform_supported = true
config_path = "/a:/b"
"""
ENTRY = "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/amd64'\n"
AMD64 = Platform("linux", "amd64")
LAZY = "[proxy_plugins.lazy]\ntype = 'diff'\naddress = '/x'\n"


def test_transfers(tmp_path: Path) -> None:
    found = settings(tmp_path, f"{TRANSFER}{ENTRY}snapshotter = 'native'\n").transfer
    assert (found.rates.downloads, found.rates.uploads, found.rates.fetch_buffer) == (5, 2, 1 << 20)
    assert found.directories == ("/a", "/b")
    assert found.supported == (Supported(AMD64, "native", strict=True),)
    assert settings(tmp_path, TRANSFER).transfer.supported is None


def test_what_unpacks_what(tmp_path: Path) -> None:
    more = "snapshotter = 'erofs'\ndiffer = '{}'\nconfig_type = 'c'\nlayer_types = ['l', 'm']\n"
    for differ in ("walking", "erofs", "lazy"):
        made = settings(tmp_path, f"{ENTRY}{more.format(differ)}{LAZY}")
        wanted = Supported(AMD64, "erofs", differ=differ, config_type="c", layer_types=("l", "m"))
        assert made.transfer.supported == (wanted,)
        assert set(made.stores.named_differs) == {"walking", "erofs", "lazy"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("platform = 'linux/a/b/c'\nsnapshotter = 'native'\n", "configuration linux/a/b/c invalid"),
        ("platform = 'linux'\nsnapshotter = 'zfs'\n", "snapshotter 'zfs' not found"),
        ("platform = 'linux'\nsnapshotter = 'native'\ndiffer = 'x'\n", "differ 'x' not found"),
    ],
)
def test_an_entry_that_names_what_is_not_there(tmp_path: Path, entry: str, message: str) -> None:
    head = ENTRY.partition("\n")[0]
    with pytest.raises(InvalidArgument, match=message):
        settings(tmp_path, f"{head}\n{entry}")
    # nothing else is unpacked then: it said what is
    made = settings(tmp_path, f"{head}\n{entry}optional = true\n")
    assert made.transfer.supported == ()


def test_a_list_without_entries_is_not_none(tmp_path: Path) -> None:
    text = "[plugins.'io.containerd.transfer.v1.local']\nunpack_config = []\n"
    assert settings(tmp_path, text).transfer.supported == ()
