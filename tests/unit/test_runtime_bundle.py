"""Bundles: whole or not there, and nobody's names lead out of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kontti.errors import AlreadyExists, InvalidArgument
from kontti.runtime.bundle import BUILTIN, TASK_DIR, Bootstrap, Bundle, Bundles


@pytest.fixture
def bundles(tmp_path: Path) -> Bundles:
    return Bundles(str(tmp_path / "root"), str(tmp_path / "state"))


def test_a_bundle_is_laid_out_as_containerd_does(tmp_path: Path, bundles: Bundles) -> None:
    bundle = bundles.create("ns", "one", b"{}")
    path = tmp_path / "state" / TASK_DIR / "ns" / "one"
    assert bundle.path == str(path)
    assert (path / "config.json").read_bytes() == b"{}"
    assert (path / "rootfs").is_dir()
    assert os.readlink(path / "work") == str(tmp_path / "root" / TASK_DIR / "ns" / "one")
    assert (path / "work").is_dir()
    assert path.stat().st_mode & 0o777 == 0o700


def test_it_goes_with_all_that_is_in_it(tmp_path: Path, bundles: Bundles) -> None:
    bundle = bundles.create("ns", "one", b"{}")
    (Path(bundle.path) / "rootfs" / "deep").mkdir()
    (Path(bundle.path) / "log").write_text("")
    (Path(bundle.work) / "kept").write_text("")
    bundle.delete()
    bundle.delete()
    assert bundles.all() == []
    assert list((tmp_path / "root" / TASK_DIR / "ns").iterdir()) == []


def test_a_second_one_of_the_same_name_is_refused(bundles: Bundles) -> None:
    bundles.create("ns", "one", b"first")
    with pytest.raises(AlreadyExists, match="task one: already exists"):
        bundles.create("ns", "one", b"second")
    assert (Path(bundles.of("ns", "one").path) / "config.json").read_bytes() == b"first"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\0b", "x" * 77, "-a"])
def test_names_stay_inside(bundles: Bundles, name: str) -> None:
    with pytest.raises(InvalidArgument):
        bundles.create("ns", name, b"{}")
    with pytest.raises(InvalidArgument):
        bundles.create(name, "id", b"{}")
    assert bundles.all() == []


def test_what_is_no_bundle_is_left_alone(tmp_path: Path, bundles: Bundles) -> None:
    bundle = bundles.create("ns", "one", b"{}")
    state = tmp_path / "state" / TASK_DIR
    (state / "a file").write_text("")
    (state / "ns" / "a file").write_text("")
    (state / "ns" / "not an id").mkdir()
    (state / "away").symlink_to("/")
    assert bundles.all() == [bundle]


def test_the_shim_is_found_again(bundles: Bundles) -> None:
    bundle = bundles.create("ns", "one", b"{}")
    assert bundle.bootstrap() is None
    assert bundle.binary() == BUILTIN
    noted = Bootstrap("unix:///run/s/x", 3)
    bundle.write_binary("/usr/bin/containerd-shim-x-v1")
    bundle.write_bootstrap(noted)
    (found,) = bundles.all()
    assert found.bootstrap() == noted
    assert found.binary() == "/usr/bin/containerd-shim-x-v1"


@pytest.mark.parametrize(
    "noted",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"address": "x"}', b'{"address": "x", "version": []}'],
)
def test_a_note_that_cannot_be_read_is_none(bundles: Bundles, noted: bytes) -> None:
    bundle: Bundle = bundles.create("ns", "one", b"{}")
    (Path(bundle.path) / "bootstrap.json").write_bytes(noted)
    assert bundle.bootstrap() is None


def test_containerds_own_note_is_understood(bundles: Bundles) -> None:
    bundle = bundles.create("ns", "one", b"{}")
    plain = {"version": 3, "address": "unix:///run/containerd/s/abc", "protocol": "ttrpc"}
    (Path(bundle.path) / "bootstrap.json").write_text(json.dumps(plain))
    assert bundle.bootstrap() == Bootstrap("unix:///run/containerd/s/abc", 3)


def config(bundles: Bundles, spec: bytes) -> bytes:
    """The spec as the runtime gets it."""
    return (Path(bundles.create("ns", "one", spec).path) / "config.json").read_bytes()


@pytest.mark.parametrize("version", ["1.1.0", "1.2.0", "1.2.1", "1.3.0-rc.1", "1.10.7+dev"])
def test_a_newer_spec_is_one_that_any_runtime_takes(bundles: Bundles, version: str) -> None:
    spec = {
        "annotations": {"ociVersion": version},
        "ociVersion": version,
        "process": {"args": ["ä", "\ud800"], "rlimits": [{"hard": (1 << 64) - 1}]},
        "unknown": {"kept": [None, True]},
    }
    written = json.loads(config(bundles, json.dumps(spec).encode()))
    assert written == {**spec, "ociVersion": "1.0.2"}


@pytest.mark.parametrize(
    "spec",
    [
        b'{"ociVersion":"1.0.2","process":{}}',
        b'{ "process": {}, "ociVersion": "1.0.2-dev" }',
        b'{"ociVersion":"1.0.0-rc5"}',
        # not ours to judge: the runtime refuses them, and says why
        b'{"ociVersion":"2.0.0"}',
        b'{"ociVersion":"0.9.0"}',
        b'{"ociVersion":"1.2"}',
        b'{"ociVersion":"v1.2.0"}',
        b'{"ociVersion":12}',
        b'{"ociVersion":null}',
        b"{}",
        b"[]",
        b"",
        b"no json",
        b'{"ociVersion":"1.2.0"',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_any_other_spec_is_as_it_was_given(bundles: Bundles, spec: bytes) -> None:
    assert config(bundles, spec) == spec
