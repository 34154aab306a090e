"""The overlayfs snapshotter's options and labels: what of them needs no mount."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.config.load import load
from kontti.errors import InvalidArgument, Unimplemented
from kontti.linux import idmap
from kontti.server.settings import settings_of
from kontti.snapshots import overlay
from kontti.snapshots.base import Info, Kind
from kontti.snapshots.overlay import MAPPING_LABELS, UPPERDIR_LABEL, OverlaySnapshotter

UID, GID = MAPPING_LABELS


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OverlaySnapshotter]:
    made = OverlaySnapshotter(str(tmp_path / "root"), upperdir_label=True)
    yield made
    made.close()


def mapping(uid: str, gid: str = "0:2000:10") -> dict[str, str]:
    return {UID: uid, GID: gid}


def configured(tmp_path: Path, text: str) -> Mapping[str, Any]:
    file = tmp_path / "config.toml"
    file.write_text(f"version = 3\n[plugins.'io.containerd.snapshotter.v1.overlayfs']\n{text}\n")
    return settings_of(load(str(file))).stores.overlay_options


def test_every_option_of_the_configuration_arrives(tmp_path: Path) -> None:
    options = configured(
        tmp_path,
        "upperdir_label = true\nsync_remove = true\nslow_chown = true\n"
        'mount_options = ["volatile"]',
    )
    store = OverlaySnapshotter(str(tmp_path / "root"), **options)
    mapped = mapping(f"0:{os.getuid()}:1", f"0:{os.getgid()}:1")
    store.prepare("key", labels=mapped)
    assert UPPERDIR_LABEL in store.stat("key").labels
    store.remove("key")
    assert os.listdir(store.trees) == []
    store.prepare("key")
    store.commit("base", "key")
    [mount] = store.prepare("key", "base")
    assert mount.options[0] == "volatile"
    store.close()


def test_the_upper_directory_is_told_where_that_is_wanted(store: OverlaySnapshotter) -> None:
    [mount] = store.prepare("key", labels={"colour": "red"})
    labels = {"colour": "red", UPPERDIR_LABEL: mount.source}
    assert store.stat("key").labels == labels
    assert [info.labels for info in store.walk()] == [labels]
    changed = store.update(Info(Kind.ACTIVE, "key", labels={"colour": "blue"}), ["labels.colour"])
    assert changed.labels == {**labels, "colour": "blue"}
    store.commit("name", "key")
    assert store.stat("name").labels == {UPPERDIR_LABEL: mount.source}


def test_the_upper_directory_is_not_told_otherwise(tmp_path: Path) -> None:
    store = OverlaySnapshotter(str(tmp_path / "root"))
    store.prepare("key")
    assert store.stat("key").labels == {}
    store.close()


def test_configured_options_come_before_defaults_and_instead_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    monkeypatch.setattr(overlay, "_in_user_namespace", lambda: True)
    assert overlay.with_defaults(()) == ("userxattr", "index=off")
    assert overlay.with_defaults(("volatile",)) == ("volatile", "userxattr", "index=off")
    assert overlay.with_defaults(("index=on", "userxattr")) == ("index=on", "userxattr")


def test_mapped_snapshots_are_refused_unless_the_client_may_chown(
    store: OverlaySnapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(store.__dict__, "remaps", False)
    assert store.remapping() == ("only-remap-ids",)
    for make in (store.prepare, store.view):
        with pytest.raises(Unimplemented, match="slow_chown"):
            make("key", labels=mapping("0:1000:10"))
    assert os.listdir(store.trees) == []
    assert list(store.walk()) == []


def test_the_root_of_a_mapped_snapshot_is_its_root_users(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    store = OverlaySnapshotter(str(tmp_path / "root"), slow_chown=True)
    store.prepare("base-key")
    os.chmod(store.tree(1), 0o1711)
    store.commit("base", "base-key")
    store.prepare("key", "base", mapping("0:1000:10,10:5000:10"))
    found = os.stat(store.tree(2))
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1000, 2000, 0o1711)
    store.close()


@pytest.mark.parametrize(
    "text",
    [
        "", "0", "0:1:2:3", "a:b:c", "0:1000:0", "1:1000:10", "0:-1:5", "0:4294967295:1", "0:0:²",
        "0:99999999999:1", "x,0:1:1",
    ],
)  # fmt: skip
def test_mappings_that_mean_nothing_are_refused(tmp_path: Path, text: str) -> None:
    store = OverlaySnapshotter(str(tmp_path / "root"), slow_chown=True)
    for labels in (mapping(text), mapping("0:1:1", text), {UID: "0:1:1"}, {GID: "0:1:1"}):
        with pytest.raises(InvalidArgument, match="id mapping"):
            store.prepare("key", labels=labels)
    assert list(store.walk()) == []
    store.close()


@given(st.integers(0, idmap.MAX_ID), st.integers(1, 1 << 16), st.booleans())
def test_root_is_who_0_is_mapped_to(host: int, length: int, late: bool) -> None:
    text = f"5:7:1,0:{host}:{length}" if late else f"0:{host}:{length}"
    if host + length - 1 > idmap.MAX_ID:
        with pytest.raises(InvalidArgument):
            overlay.mapped_root(mapping(text))
    else:
        assert overlay.mapped_root(mapping(text)) == (host, 2000)
