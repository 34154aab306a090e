"""Flags of ``ctr run`` that reach beyond the spec: namespaces of users, runtimes, labels, files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.wire.messages.google import Any
from kontti.wire.messages.types.runc.options.oci import Options
from kontti.wire.messages.types.runtimeoptions.v1.api import Options as GenericOptions
from tests.support.host import IMAGE, Host, host
from tests.support.shims import install_binary

pytestmark = pytest.mark.root
MAPS = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")
SLOW_CHOWN = 'version = 2\n[plugins."io.containerd.snapshotter.v1.overlayfs"]\nslow_chown = true\n'


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    with host(start=False, image=False) as made:
        # a root that is nobody on the host has to get to its root file system
        made.base.chmod(0o711)
        made.write_config(SLOW_CHOWN)
        made.start()
        made.import_image()
        yield made


@pytest.mark.parametrize("runtime", [(), ("--runc-binary", "runc")])
@pytest.mark.parametrize("labels", [(), ("--remap-labels",)])
def test_a_user_namespaces_root_owns_its_files(
    here: Host, runtime: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    script = (
        "cat /proc/self/uid_map; stat -c %u:%g / /bin/busybox; touch /made && stat -c %u:%g /made;"
        "sleep 0.2"
    )
    done = here.ctr("run", "--rm", *MAPS, *labels, *runtime, IMAGE, "one", "sh", "-c", script)
    assert done.returncode == 0, done
    first, *owners = done.stdout.decode().splitlines()
    assert first.split() == ["0", "100000", "65536"]
    assert owners == ["0:0"] * 3
    assert here.nothing() == {}


def test_the_hosts_view_of_it(here: Host) -> None:
    here.out("run", "-d", "--null-io", *MAPS, IMAGE, "one", "sleep", "1000")
    pid = here.until("one", "RUNNING")
    found = os.stat(f"/proc/{pid}/root/bin/busybox")
    assert (found.st_uid, found.st_gid) == (100000, 200000)
    assert os.stat(f"/proc/{pid}").st_uid == 100000
    here.out("tasks", "rm", "-f", "one")
    here.out("containers", "rm", "one")
    assert here.nothing() == {}


def test_an_owner_that_has_no_place_leaves_nothing(here: Host) -> None:
    narrow = ("--uidmap", "1:100000:10", "--gidmap", "0:100000:10")
    done = here.ctr("run", "--rm", *narrow, IMAGE, "one", "true")
    assert done.returncode == 1
    assert b"id 0 of a file in the image is not mapped" in done.stderr
    assert "-remap" not in here.out("snapshots", "ls")
    assert here.nothing() == {}


def test_the_spec_is_written_to_a_file(here: Host) -> None:
    file = here.base / "dumped.json"
    here.out("run", "--rm", "--dump-config", str(file), "--env", "A=b", IMAGE, "one", "true")
    assert "A=b" in json.loads(file.read_text())["process"]["env"]
    assert file.read_text().startswith('{\n  "')
    done = here.ctr("run", "--dump-config", "", IMAGE, "one", "true")
    assert b"file name is required with --dump-config" in done.stderr
    done = here.ctr("run", "--rm", "--dump-config", "/none/x", IMAGE, "one", "true")
    assert done.returncode == 1
    assert here.nothing() == {}


def test_labels_reach_the_record_and_the_spec(here: Host) -> None:
    here.out("images", "label", IMAGE, "colour=red", "shape=round")
    here.out("containers", "create", "--label", "shape=square", IMAGE, "one", "true")
    record = json.loads(here.out("containers", "info", "one"))
    here.out("containers", "rm", "one")
    here.out("images", "label", IMAGE, "colour=", "shape=")
    labels = record["Labels"]
    assert (labels["colour"], labels["shape"]) == ("red", "square")
    assert record["Spec"]["annotations"]["shape"] == "square"
    assert "colour" not in record["Spec"]["annotations"]


@pytest.fixture
def shim(here: Host) -> Iterator[Path]:
    """A shim that notes what it is told, and starts nothing."""
    folder = here.base / "fake"
    folder.mkdir(exist_ok=True)
    binary = install_binary(folder)
    binary.write_text(binary.read_text().replace("#!/bin/sh", f"#!/bin/sh\nFAKE={folder}"))
    (folder / "start.code").write_text("3")
    yield binary
    assert here.nothing() == {}


def test_a_foreign_shim_is_given_its_options_as_they_are(here: Host, shim: Path) -> None:
    flags = ("--runtime", str(shim), "--runtime-config-path", "/etc/own.toml")
    done = here.ctr("run", "--rm", *flags, IMAGE, "one", "true")
    assert done.returncode == 1
    assert b"start failed" in done.stderr
    packed = Any.decode((shim.parent / "start.stdin").read_bytes())
    assert packed.type_url == GenericOptions.NAME
    assert GenericOptions.decode(packed.value).config_path == "/etc/own.toml"
    assert f"-namespace {here.namespace} " in (shim.parent / "start.args").read_text()


def test_a_foreign_shim_without_options_is_given_none(here: Host, shim: Path) -> None:
    done = here.ctr("run", "--rm", "--runtime", str(shim), IMAGE, "one", "true")
    assert done.returncode == 1
    assert (shim.parent / "start.stdin").read_bytes() == b""


def test_runcs_options_are_in_the_record(here: Host) -> None:
    flags = ("--runc-binary", "runc", "--runc-root", str(here.base / "oci"))
    here.out("run", "-d", "--null-io", *flags, IMAGE, "one", "sleep", "1000")
    here.until("one", "RUNNING")
    assert (here.base / "oci" / here.namespace / "one" / "state.json").is_file(), "runc's own"
    here.out("tasks", "rm", "-f", "one")
    record = json.loads(here.out("containers", "info", "one"))
    assert record["Runtime"]["Options"]["type_url"] == Options.NAME
    here.out("containers", "rm", "one")
    for words, said in (
        (("--runtime", "/bin/true", "--runc-binary", "runc"), b"only supported for"),
        (("--runc-systemd-cgroup",), b"requires --cgroup to be set"),
        (("--runtime", "/none/shim"), b"/none/shim: no such file or directory"),
        (("--runtime", "io.containerd.none.v9"), b"containerd-shim-none-v9"),
    ):
        done = here.ctr("run", "--rm", *words, IMAGE, "one", "true")
        assert done.returncode == 1
        assert said in done.stderr, done.stderr
    assert here.nothing() == {}
