"""skopeo and umoci: their images are read, and they read ours."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from kontti.content.local import LocalStore
from kontti.diff.applier import LayerApplier
from kontti.images.archive_export import export
from kontti.images.archive_import import Imported, import_index
from kontti.images.graph import find_manifest
from kontti.images.manifest import read_config
from kontti.images.platforms import Everything
from tests.support.images import archive, build
from tests.support.trees import Chain

pytestmark = pytest.mark.root

NAME = "registry.example/team/tool:1.2"


def tool(*argv: object) -> bytes:
    return subprocess.run(
        [str(word) for word in argv], check=True, capture_output=True, timeout=60
    ).stdout


def load(path: Path, store: LocalStore) -> Imported:
    with path.open("rb") as stream:
        return import_index(stream.read, store)


def save(path: Path, store: LocalStore, imported: Imported) -> None:
    with path.open("wb") as stream:
        export(store, imported.images, stream.write)


def unpack(root: Path, store: LocalStore, imported: Imported) -> Chain:
    """All layers applied, each checked against the config."""
    _, manifest = find_manifest(store, imported.index, Everything())
    chain = Chain(root, LayerApplier(store), store)
    for layer, diff_id in zip(
        manifest.layers, read_config(store, manifest.config).diff_ids, strict=True
    ):
        applied = chain.applier.apply(layer, chain.mounts())
        assert applied.digest == diff_id
        chain.layers.append(root / str(len(chain.layers)) / "fs")
    return chain


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "content"))


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    path = tmp_path / "ours.tar"
    path.write_bytes(archive(build(), NAME))
    return path


@pytest.mark.parametrize(
    "form",
    [
        ("oci-archive", ()),
        ("docker-archive", ()),
        ("oci-archive", ("--dest-compress-format", "zstd")),
    ],
)
def test_what_skopeo_writes_is_read(
    tmp_path: Path, store: LocalStore, ours: Path, form: tuple[str, Sequence[str]]
) -> None:
    transport, options = form
    theirs = tmp_path / "theirs.tar"
    tool("skopeo", "copy", *options, f"oci-archive:{ours}", f"{transport}:{theirs}:tool:1.2")
    imported = load(theirs, store)
    assert [name.rpartition(":")[2] for name, _ in imported.images] == ["1.2"]
    tree = unpack(tmp_path / "layers", store, imported).tree()
    assert tree["etc/greeting"].data == b"hello\n"
    assert "etc/motd" not in tree


def test_what_umoci_writes_is_read(tmp_path: Path, store: LocalStore) -> None:
    layout = tmp_path / "layout"
    tool("umoci", "init", "--layout", layout)
    tool("umoci", "new", "--image", f"{layout}:1.2")
    tool("umoci", "unpack", "--image", f"{layout}:1.2", tmp_path / "bundle")
    rootfs = tmp_path / "bundle/rootfs"
    (rootfs / "etc").mkdir()
    (rootfs / "etc/file").write_text("by umoci")
    (rootfs / "link").symlink_to("etc")
    tool("umoci", "repack", "--image", f"{layout}:1.2", tmp_path / "bundle")
    packed = tmp_path / "umoci.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(layout, arcname=".")
    imported = load(packed, store)
    tree = unpack(tmp_path / "layers", store, imported).tree()
    assert tree["etc/file"].data == b"by umoci"
    assert tree["link"].data == b"etc"


def test_skopeo_reads_what_we_write(tmp_path: Path, store: LocalStore, ours: Path) -> None:
    written = tmp_path / "written.tar"
    save(written, store, load(ours, store))
    seen = json.loads(tool("skopeo", "inspect", f"oci-archive:{written}:1.2"))
    assert seen["Digest"] == build().digest
    assert seen["Layers"] == list(build().layer_digests)
    as_docker = json.loads(tool("skopeo", "inspect", f"docker-archive:{written}"))
    assert as_docker["Architecture"] == "amd64"
    tool("skopeo", "copy", f"docker-archive:{written}", f"oci:{tmp_path / 'copied'}:1.2")


def test_umoci_unpacks_what_we_write(tmp_path: Path, store: LocalStore, ours: Path) -> None:
    buffer = io.BytesIO()
    export(store, load(ours, store).images, buffer.write)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        tar.extractall(tmp_path / "layout", filter="data")
    tool("umoci", "unpack", "--image", f"{tmp_path / 'layout'}:1.2", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/etc/greeting").read_text() == "hello\n"
