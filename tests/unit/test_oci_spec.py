"""Specs: the default one, what each option does to it, and its JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import InvalidArgument
from kontti.oci import options, resources
from kontti.oci.base import Context, build
from kontti.oci.default import default_spec
from kontti.oci.encode import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.oci.base import Option
    from kontti.oci.spec import Spec


@dataclass(frozen=True)
class Image:
    user: str = ""
    env: Sequence[str] = ()
    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    working_dir: str = ""


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0\nalice:x:1000:1001\n")
    (tmp_path / "etc/group").write_text("staff:x:50:alice\nwheel:x:10:root\n")
    return Context("default", "c1", lambda: contextlib.nullcontext(str(tmp_path)))


def made(*chosen: Option) -> Spec:
    return build(Context("default", "c1"), chosen)


def test_default_names_its_cgroup_for_the_container() -> None:
    assert default_spec("k8s.io", "abc")["linux"]["cgroupsPath"] == "/k8s.io/abc"
    assert default_spec("default", "")["linux"]["cgroupsPath"] == "/default"


def test_two_specs_share_nothing_that_options_change() -> None:
    first = made(
        resources.with_default_unix_devices(),
        options.with_host_namespace("pid"),
        options.with_mounts([{"destination": "/x"}]),
        resources.with_rlimit({"type": "RLIMIT_NOFILE", "hard": 1, "soft": 1}),
    )
    assert first != default_spec("default", "c1")
    assert made() == default_spec("default", "c1")


def test_image_config(context: Context) -> None:
    image = Image("alice", ("PATH=/bin", "A=image"), ("/entry",), ("run",), "/work")
    chosen = [options.with_env(["A=ours", "B=2"]), options.with_image_config(image)]
    process = build(context, chosen)["process"]
    assert process["env"] == ["PATH=/bin", "A=ours", "B=2"]
    assert process["args"] == ["/entry", "run"]
    assert process["cwd"] == "/work"
    assert process["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [1001, 50]}


def test_image_config_that_says_nothing(context: Context) -> None:
    process = build(context, [options.with_image_config(Image(), ["sh"])])["process"]
    assert process["env"][0].startswith("PATH=/usr/local/sbin:")
    assert (process["args"], process["cwd"]) == (["sh"], "/")
    assert process["user"] == {"uid": 0, "gid": 0, "additionalGids": [0, 10]}


def test_arguments_replace_the_images_command_but_not_its_entrypoint(context: Context) -> None:
    image = Image(entrypoint=("/entry",), cmd=("a", "b"))
    process = build(context, [options.with_image_config(image, ["c"])])["process"]
    assert process["args"] == ["/entry", "c"]


def test_default_path_does_not_hide_one_that_is_there() -> None:
    spec = made(options.with_env(["PATH=/own"]), options.with_default_path())
    assert spec["process"]["env"] == ["PATH=/own"]
    assert made(options.with_default_path())["process"]["env"][0].startswith("PATH=/usr")


def test_env_file(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_bytes(b"# a comment\n\nA=1\r\nB=x=y\nGONE\n")
    spec = made(options.with_env(["GONE=0", "A=0"]), options.with_env_file(str(path)))
    assert spec["process"]["env"] == ["A=1", "B=x=y"]


def test_tty_and_its_size() -> None:
    process = made(options.with_tty(24, 80))["process"]
    assert process["terminal"]
    assert process["consoleSize"] == {"height": 24, "width": 80}
    assert "TERM=xterm" in process["env"]


def test_host_network() -> None:
    spec = made(options.with_host_network())
    assert "network" not in [n["type"] for n in spec["linux"]["namespaces"]]
    binds = [(m["source"], m["destination"]) for m in spec["mounts"] if m["type"] == "bind"]
    assert binds == [("/etc/hosts", "/etc/hosts"), ("/etc/resolv.conf", "/etc/resolv.conf")]


def test_namespaces_are_replaced_or_added() -> None:
    spec = made(options.with_namespace("network", "/run/n"), options.with_namespace("cgroup"))
    present = spec["linux"]["namespaces"]
    assert [n["type"] for n in present] == ["pid", "ipc", "uts", "mount", "network", "cgroup"]
    assert present[4] == {"type": "network", "path": "/run/n"}
    with pytest.raises(InvalidArgument, match="not valid: nonsense"):
        options.with_namespace("nonsense")


def test_user_namespace_once() -> None:
    mapping = options.with_user_namespace(
        [{"containerID": 0, "hostID": 1000, "size": 10}],
        [{"containerID": 0, "hostID": 2000, "size": 10}],
    )
    linux = made(mapping, mapping)["linux"]
    assert [n["type"] for n in linux["namespaces"]].count("user") == 1
    assert linux["uidMappings"][0]["hostID"] == 1000
    assert linux["gidMappings"][0]["hostID"] == 2000


def test_options_on_a_spec_that_says_next_to_nothing() -> None:
    chosen = [
        options.with_env(["A=1"]),
        options.with_mounts([{"destination": "/x"}]),
        options.with_namespace("pid"),
        options.with_readonly_root(),
        options.with_annotations({"a": "b"}),
        resources.with_default_unix_devices(),
    ]
    spec = build(Context("default", "c1"), chosen, decode(b"{}"))
    assert spec["process"] == {"env": ["A=1"]}
    assert spec["root"] == {"readonly": True}
    assert len(spec["linux"]["resources"]["devices"]) == 9


def test_propagation_is_checked() -> None:
    assert made(options.with_rootfs_propagation("rslave"))["linux"]["rootfsPropagation"] == "rslave"
    with pytest.raises(InvalidArgument, match="is not known"):
        options.with_rootfs_propagation("public")


def test_json_is_compact_and_whole() -> None:
    spec = made(options.with_env(["A=é \\u0000"]), options.with_args(["true"]))
    data = encode(spec)
    assert b": " not in data
    decoded = json.loads(data)
    assert decoded["process"]["env"] == ["A=é \\u0000"]
    assert decoded["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert encode(decode(data)) == data


def test_text_that_a_process_cannot_have() -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        encode(made(options.with_env(["A=1\0LD_PRELOAD=/x"])))
    with pytest.raises(InvalidArgument, match="UTF-8"):
        encode(made(options.with_args(["\udcff"])))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"process": 3}',
        b'{"process": {"env": "A=1"}}',
        b'{"process": {"env": [1]}}',
        b'{"linux": {"namespaces": ["pid"]}}',
        b'{"linux": {"resources": []}}',
        b'{"mounts": {}}',
        b"[" * 100_000,
    ],
)
def test_bad_specs_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        decode(data)


def test_nulls_are_as_good_as_absent() -> None:
    assert decode(b'{"mounts":null,"process":{"env":null},"linux":null}') == {"process": {}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
SECTIONS = ("process", "linux", "mounts", "root", "annotations")


@given(st.dictionaries(st.sampled_from(SECTIONS), JSON))
def test_any_json_is_a_spec_or_refused(value: dict[str, object]) -> None:
    try:
        spec = decode(json.dumps(value).encode())
    except InvalidArgument:
        return
    build(Context("n", "i"), [options.with_env(["A=1"]), options.with_readonly_root()], spec)
