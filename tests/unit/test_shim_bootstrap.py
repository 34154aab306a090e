"""The shim's command line: Go's flags, groups, and answers in the words of who asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import InvalidArgument
from kontti.shim import bootstrap
from kontti.wire.messages.google import Any
from kontti.wire.messages.runtime.bootstrap.v1.bootstrap import BootstrapParams, BootstrapResult
from kontti.wire.messages.types.runc.options.oci import Options


def test_flags_in_every_form() -> None:
    flags = bootstrap.parse_flags(
        ["-namespace", "n", "--id", "x", "-address=a=b", "--bundle=", "-debug", "start", "-v"]
    )
    assert flags.texts == {"namespace": "n", "id": "x", "address": "a=b", "bundle": ""}
    assert flags.switches == {"debug"}
    assert flags.action == "start"


@pytest.mark.parametrize(
    ("words", "switches"),
    [
        (["-v"], {"v"}),
        (["--info=true"], {"info"}),
        (["-debug=false"], set()),
        (["-debug=0"], set()),
    ],
)
def test_switches(words: list[str], switches: set[str]) -> None:
    assert bootstrap.parse_flags(words).switches == switches


def test_flags_end_at_two_dashes() -> None:
    assert bootstrap.parse_flags(["-id", "x", "--", "-namespace"]).action == "-namespace"


def test_a_value_may_look_like_a_flag() -> None:
    assert bootstrap.parse_flags(["-id", "-x", "delete"]).text("id") == "-x"


@given(st.lists(st.text(max_size=20)))
def test_any_words_are_flags_or_an_error(words: list[str]) -> None:
    try:
        flags = bootstrap.parse_flags(words)
    except InvalidArgument:
        return
    assert flags.action in ("", *words)


@pytest.mark.parametrize(
    ("annotations", "group"),
    [
        (None, "own"),
        ({}, "own"),
        ({"io.kubernetes.cri.sandbox-id": "pod"}, "pod"),
        ({"io.containerd.runc.v2.group": "g", "io.kubernetes.cri.sandbox-id": "pod"}, "g"),
        ({"io.containerd.runc.v2.group": ""}, "own"),
        ({"io.containerd.runc.v2.group": 7}, "own"),
        ([], "own"),
    ],
)
def test_the_group_that_a_container_names(tmp_path: Path, annotations: object, group: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"annotations": annotations}))
    assert bootstrap.group_of(str(tmp_path), "own") == group


@pytest.mark.parametrize("text", [None, "", "[]", "{", "[" * 100_000])
def test_the_group_of_a_bundle_that_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert bootstrap.group_of(str(tmp_path), "own") == "own"


def test_a_socket_for_each_daemon_namespace_and_group() -> None:
    paths = {
        bootstrap.socket_path(*key)
        for key in (
            ("/s", "/run/a.sock", "n", "x"),
            ("/s", "/run/b.sock", "n", "x"),
            ("/s", "/run/a.sock", "m", "x"),
            ("/s", "/run/a.sock", "n", "y"),
            ("/t", "/run/a.sock", "n", "x"),
        )
    }
    assert len(paths) == 5
    long = bootstrap.socket_path("", "/a" * 500, "n" * 76, "x" * 76)
    assert long.startswith(f"{bootstrap.SOCKET_DIR}/")
    assert len(long) < 108


def test_parameters_and_options_are_told_apart() -> None:
    params = BootstrapParams(instance_id="x", namespace="n", socket_dir="/s").encode()
    found = bootstrap.read_params(params, "x", "n")
    assert found is not None
    assert found.socket_dir == "/s"
    options = Any(type_url=Options.NAME, value=Options(binary_name="runc").encode()).encode()
    for data in (options, b"", b"\xff\xff\xff", params[:5]):
        assert bootstrap.read_params(data, "x", "n") is None
    assert bootstrap.read_params(params, "y", "n") is None


@given(st.binary(max_size=200))
def test_any_input_is_parameters_or_none(data: bytes) -> None:
    bootstrap.read_params(data, "x", "n")


def test_what_is_printed() -> None:
    params = BootstrapParams(instance_id="x", namespace="n")
    assert bootstrap.answer("unix:///s", None, {}) == b"unix:///s"
    printed = json.loads(bootstrap.answer("unix:///s", None, {"MAX_SHIM_VERSION": "2"}))
    assert printed == {"version": 2, "address": "unix:///s", "protocol": "ttrpc"}
    result = BootstrapResult.decode(bootstrap.answer("unix:///s", params, {}))
    assert (result.version, result.address, result.protocol) == (3, "unix:///s", "ttrpc")
