"""config.toml of any version, and what it imports, becomes one checked value."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.config import load as loading
from kontti.config import sections
from kontti.config.document import Table, merge
from kontti.config.dump import default_text, dump_text, emit, migrate_text
from kontti.config.load import Config, Overrides, load
from kontti.config.migrate import migrate
from kontti.errors import InvalidArgument, NotFound


def configured(tmp_path: Path, text: str, **overrides: str) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load(str(path), Overrides(**overrides))


def plugins(table: Table) -> Table:
    found = table["plugins"]
    assert isinstance(found, dict)
    return found


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    config = configured(tmp_path, "")
    assert (config.version, config.root, config.state) == (
        4,
        "/var/lib/containerd",
        "/run/containerd",
    )
    assert config.plugin(sections.Grpc).address == "/run/containerd/containerd.sock"
    assert config.plugin(sections.Ttrpc).address == "/run/containerd/containerd.sock.ttrpc"
    assert config.plugin(sections.GcScheduler).startup_delay.seconds == 0.1
    assert config.timeout("shim.load").seconds == 5
    assert config.timeout("bolt.open") == 0
    assert config.warnings == ()


def test_the_command_line_wins(tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        'version = 2\nroot = "/a"\nstate = "/b"\n[grpc]\naddress = "/c"\n[debug]\nlevel = "warn"\n',
        root="/r",
        state="/s",
        address="/t",
        log_level="debug",
    )
    assert (config.root, config.state, config.debug.level) == ("/r", "/s", "debug")
    assert config.plugin(sections.Grpc).address == "/t"
    assert config.plugin(sections.Ttrpc).address == "/t.ttrpc"


def test_typed_sections(tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        """
version = 4
[timeouts]
"io.containerd.timeout.shim.load" = "1m30s"
[plugins."io.containerd.snapshotter.v1.overlayfs"]
root_path = "/o"
mount_options = ["volatile"]
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0
schedule_delay = "2s"
[plugins."io.containerd.transfer.v1.local"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "native"
[proxy_plugins.remote]
type = "snapshot"
address = "/run/remote.sock"
capabilities = ["rebase"]
[proxy_plugins.remote.exports]
root = "/x"
""",
    )
    overlay = config.plugin(sections.Overlayfs)
    assert (overlay.root_path, overlay.mount_options) == ("/o", ("volatile",))
    assert config.plugin(sections.GcScheduler).pause_threshold == 0.0
    assert config.plugin(sections.GcScheduler).schedule_delay.seconds == 2
    unpacked = config.plugin(sections.TransferLocal).unpack_config
    assert unpacked == (sections.UnpackConfig("linux/amd64", "native"),)
    assert config.timeout("shim.load").seconds == 90
    assert config.timeout("task.state").seconds == 2
    proxy = config.proxy_plugins["remote"]
    assert (proxy.type, proxy.capabilities, proxy.exports["root"]) == (
        "snapshot",
        ("rebase",),
        "/x",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 5", "expected containerd config version equal to or less than `4`, got `5`"),
        ('version = "2"', "version is not a number"),
        ("version = true", "version is not a number"),
        ("root = 3", "root: expected a string"),
        ('oom_score = "x"', "oom_score: expected a whole number"),
        ("oom_score = true", "oom_score: expected a whole number"),
        ("oom_score = 99999999999999999999", "oom_score: expected a 64-bit number"),
        ("grpc = 3", "grpc: expected a table"),
        ("[grpc]\nuid = []", "uid: expected a whole number"),
        ("version = 4\nimports = [1]", "imports: expected a list of strings"),
        ("version = 2\n[plugins]\n'io.containerd.a.v1.b' = 1", "expected a table"),
        ("version = 2\n[plugins.cri]", 'invalid plugin key URI "cri" expect io.containerd.x.vx'),
        ("version = 2\ndisabled_plugins = ['cri']", 'invalid disabled plugin URI "cri" expect'),
        ("version = 2\nrequired_plugins = ['io.containerd.x']", "invalid required plugin URI"),
        ("[timeouts]\nx = '1y'", 'timeouts.x: time: unknown unit "y"'),
        ("[timeouts]\nx = 1", "timeouts.x: expected a duration"),
        ("[plugins.scheduler]\npause_threshold = 0.6", "pause_threshold 0.6 is not within"),
        ("[plugins.bolt]\ncontent_sharing_policy = 'none'", "unknown policy: none"),
        ("root = '/a'\nstate = '/a/'", "root and state must be different paths"),
        ("root = ''", "root must be specified"),
        ("state = ''", "state must be specified"),
        ("root = 'a'", "must be an absolute path"),
        ("a = ", "failed to load TOML"),
        ("a = " + "[" * 5000, "failed to load TOML"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        configured(tmp_path, text)
    assert message in caught.value.message
    if "must be" not in message:
        assert str(tmp_path / "config.toml") in caught.value.message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match="failed to load TOML"):
        load(str(tmp_path / "c"))


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"absent\.toml"):
        load(str(tmp_path / "absent.toml"))


def test_unknown_keys_are_told_and_passed_over(tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        """
version = 4
colour = "red"
[plugins."io.containerd.server.v1.grpc"]
tcp = 1
[plugins."io.containerd.other.v1.thing"]
key = "kept"
""",
    )
    told = "\n".join(config.warnings)
    assert "ignoring unknown key colour" in told
    assert "ignoring unknown key plugins.io.containerd.server.v1.grpc.tcp" in told
    assert "ignoring the settings of io.containerd.other.v1.thing" in told
    assert config.plugins["io.containerd.other.v1.thing"] == {"key": "kept"}


def test_imports(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/b.toml").write_text('version = 3\noom_score = 2\nroot = "/b"\n')
    (tmp_path / "conf.d/a.toml").write_text(
        """
version = 2
oom_score = 1
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.x.v1.y"]
imports = ["../config.toml", "a.toml"]
[plugins."io.containerd.snapshotter.v1.overlayfs"]
mount_options = ["volatile", "index=off"]
[proxy_plugins.p]
type = "content"
"""
    )
    config = configured(
        tmp_path,
        """
version = 4
imports = ["conf.d/*.toml"]
disabled_plugins = ["io.containerd.grpc.v1.cri"]
root = "/main"
[plugins."io.containerd.snapshotter.v1.overlayfs"]
root_path = "/o"
mount_options = ["index=off"]
[proxy_plugins.p]
type = "snapshot"
address = "/gone"
""",
    )
    assert [Path(file).name for file in config.files] == ["config.toml", "a.toml", "b.toml"]
    assert (config.root, config.oom_score) == ("/b", 2)
    assert config.disabled_plugins == ("io.containerd.grpc.v1.cri", "io.containerd.x.v1.y")
    overlay = config.plugin(sections.Overlayfs)
    assert (overlay.root_path, overlay.mount_options) == ("/o", ("index=off", "volatile"))
    proxy = config.proxy_plugins["p"]
    assert (proxy.type, proxy.address) == ("content", "")


def test_an_import_that_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("version = 4\noom_score = 'x'\n")
    with pytest.raises(InvalidArgument, match=r"bad\.toml: oom_score"):
        configured(tmp_path, 'version = 4\nimports = ["bad.toml"]')
    with pytest.raises(NotFound, match=r"gone\.toml"):
        configured(tmp_path, 'version = 4\nimports = ["gone.toml"]')


def test_without_a_path_the_usual_places_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "DEFAULT_PATH", str(tmp_path / "config.toml"))
    monkeypatch.setattr(loading, "DEFAULT_IMPORTS", (str(tmp_path / "conf.d/*.toml"),))
    assert load(None).files == ()
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/a.toml").write_text("version = 4\noom_score = 7\n")
    assert load(None).oom_score == 7
    (tmp_path / "config.toml").write_text("version = 4\noom_score = 3\n")
    assert load(None).oom_score == 7
    (tmp_path / "config.toml").write_text("version = 4\noom_score = 3\nimports = []\n")
    assert load(None).oom_score == 3


def test_version_1_names_are_short() -> None:
    table = migrate(
        tomllib.loads(
            """
disabled_plugins = ["cri", "zfs", "restart"]
[plugins.overlayfs]
root_path = "/o"
[plugins.scheduler]
pause_threshold = 0.1
[plugins.diff-service]
default = ["walking"]
[plugins.restart]
interval = "1s"
[plugins.version]
[plugins.cgroups]
no_prometheus = true
"""
        ),
        "f",
    )
    assert table["version"] == 4
    assert table["disabled_plugins"] == [
        "io.containerd.grpc.v1.cri",
        "io.containerd.snapshotter.v1.zfs",
        "io.containerd.internal.v1.restart",
    ]
    assert sorted(plugins(table)) == [
        "io.containerd.gc.v1.scheduler",
        "io.containerd.grpc.v1.version",
        "io.containerd.monitor.container.v1.restart",
        "io.containerd.monitor.task.v1.cgroups",
        "io.containerd.service.v1.diff-service",
        "io.containerd.snapshotter.v1.overlayfs",
    ]


def test_version_2_cri_is_split() -> None:
    cri = {
        "sandbox_image": "pause:1",
        "max_concurrent_downloads": 9,
        "stream_server_port": "1",
        "enable_selinux": True,
        "registry": {"config_path": "/certs"},
        "cni": {"bin_dir": "/bin", "conf_dir": "/conf"},
        "containerd": {
            "snapshotter": "native",
            "default_runtime_name": "crun",
            "runtimes": {"crun": {"runtime_type": "x", "snapshotter": "overlayfs"}},
        },
    }
    table = migrate({"version": 2, "plugins": {"io.containerd.grpc.v1.cri": cri}}, "f")
    assert plugins(table) == {
        "io.containerd.grpc.v1.cri": {"stream_server_port": "1"},
        "io.containerd.cri.v1.images": {
            "registry": {"config_path": "/certs"},
            "max_concurrent_downloads": 9,
            "snapshotter": "native",
            "pinned_images": {"sandbox": "pause:1"},
            "runtime_platforms": {"crun": {"snapshotter": "overlayfs"}},
        },
        "io.containerd.cri.v1.runtime": {
            "enable_selinux": True,
            "cni": {"conf_dir": "/conf", "bin_dirs": ["/bin"]},
            "containerd": {
                "default_runtime_name": "crun",
                "runtimes": {"crun": {"runtime_type": "x", "snapshotter": "overlayfs"}},
            },
        },
    }


def test_version_2_renames_and_sched_core() -> None:
    old = {
        "io.containerd.runtime.v2.task": {"sched_core": True, "platforms": ["linux/amd64"]},
        "io.containerd.shim.v1.manager": {"env": ["A=1"]},
        "io.containerd.monitor.v1.cgroups": {"no_prometheus": True},
    }
    assert plugins(migrate({"version": 2, "plugins": old}, "f")) == {
        "io.containerd.runtime.v2.task": {"platforms": ["linux/amd64"]},
        "io.containerd.shim.v1.manager": {"env": ["SCHED_CORE=1", "A=1"]},
        "io.containerd.monitor.task.v1.cgroups": {"no_prometheus": True},
    }


def test_version_3_listeners_become_plugins() -> None:
    old = {
        "version": 3,
        "grpc": {"address": "/a", "uid": 1, "tcp_address": ":1", "tcp_tls_ca": "/ca"},
        "ttrpc": {"address": "/t"},
        "debug": {"address": "/d", "level": "info"},
        "metrics": {"address": ":2", "grpc_histogram": True},
        "plugins": {"io.containerd.server.v1.grpc": {"uid": 2}},
    }
    table = migrate(old, "f")
    assert table["debug"] == {"level": "info"}
    assert not {"grpc", "ttrpc", "metrics"} & set(table)
    assert plugins(table) == {
        "io.containerd.server.v1.grpc": {"address": "/a", "uid": 2},
        "io.containerd.server.v1.grpc-tcp": {"address": ":1", "tls_ca": "/ca"},
        "io.containerd.server.v1.ttrpc": {"address": "/t"},
        "io.containerd.server.v1.debug": {"address": "/d"},
        "io.containerd.server.v1.metrics": {"address": ":2"},
        "io.containerd.metrics.v1.grpc-prometheus": {"grpc_histogram": True},
    }


def test_migrating_changes_nothing_of_the_latest() -> None:
    table = {"version": 4, "plugins": {"io.containerd.x.v1.y": {"a": 1}}, "oom_score": 1}
    assert migrate(table, "f") == table


def test_default_text_configures_what_no_text_does(tmp_path: Path) -> None:
    text = default_text()
    config = configured(tmp_path, text.replace("/etc/containerd/conf.d", str(tmp_path / "none")))
    plain = configured(tmp_path, "")
    assert config.warnings == ()
    assert config.plugins.keys() >= plain.plugins.keys()
    for kind in sections.PLUGINS:
        assert config.plugin(kind) == plain.plugin(kind)
    assert config.timeouts == plain.timeouts
    assert config.stream_processors == plain.stream_processors
    assert default_text() == text


def test_dump_holds_what_is_set_and_what_is_not(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('version = 2\nroot = "/r"\n[plugins."io.containerd.a.v1.b"]\nk = ["v"]\n')
    dumped = tomllib.loads(dump_text(str(path), Overrides(address="/sock")))
    assert dumped["root"] == "/r"
    assert dumped["plugins"]["io.containerd.a.v1.b"] == {"k": ["v"]}
    assert dumped["plugins"]["io.containerd.server.v1.grpc"]["address"] == "/sock"
    assert dumped["plugins"]["io.containerd.gc.v1.scheduler"]["startup_delay"] == "100ms"


def test_migrated_text_is_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[grpc]\naddress = "/a"\n[plugins.overlayfs]\nroot_path = "/o"\n')
    text = migrate_text(str(path))
    assert text.startswith("version = 4\n")
    assert tomllib.loads(text) == {
        "version": 4,
        "plugins": {
            "io.containerd.server.v1.grpc": {"address": "/a"},
            "io.containerd.snapshotter.v1.overlayfs": {"root_path": "/o"},
        },
    }


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = (
    st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | TEXT
    | st.dates()
    | st.times()
    | st.datetimes()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
TABLES = st.dictionaries(TEXT, VALUES, max_size=5)


@given(TABLES)
def test_toml_reads_back(table: dict[str, object]) -> None:
    assert tomllib.loads(emit(table)) == table


@given(TABLES, TABLES)
def test_merging_keeps_every_key_and_changes_neither(
    below: dict[str, object], above: dict[str, object]
) -> None:
    before = repr((below, above))
    merged = merge(below, above)
    assert merged.keys() == below.keys() | above.keys()
    assert merge(merged, {}) == merged
    assert repr((below, above)) == before
