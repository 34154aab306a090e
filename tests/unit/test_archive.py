"""Image archives go in and come out the same, in every form docker and OCI tools write."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kontti.content.local import LocalStore
from kontti.errors import DataLoss, Error, FailedPrecondition, InvalidArgument, NotFound
from kontti.images.archive_export import ExportOptions, export
from kontti.images.archive_import import Imported, import_index
from kontti.images.archive_names import familiar, normalized, reference_name
from kontti.images.documents import dump_descriptor
from kontti.images.graph import find_manifest, walk
from kontti.images.ingest import put
from kontti.images.manifest import read_config
from kontti.images.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from kontti.images.platforms import Everything, only, parse
from kontti.values import Descriptor, Digest
from tests.support.images import (
    Entry,
    archive,
    base_layer,
    build,
    digest_of,
    directory,
    layer,
    symlink,
)

NAME = "registry.example:5000/team/tool:1.2"
IMAGE = build([base_layer(), layer([Entry("x", b"x")])])


class Rig:
    """A store to import to and export from."""

    def __init__(self, root: Path) -> None:
        self.store = LocalStore(str(root))

    def load(self, data: bytes, *, compress: bool = False) -> Imported:
        return import_index(io.BytesIO(data).read, self.store, compress=compress)

    def save(
        self, images: Iterable[tuple[str, Descriptor]], options: ExportOptions | None = None
    ) -> bytes:
        parts: list[bytes] = []
        export(self.store, tuple(images), parts.append, options)
        return b"".join(parts)

    def digests(self) -> set[str]:
        return {info.digest for info in self.store.walk()}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "content")


def json_entry(name: str, document: object) -> Entry:
    return Entry(name, json.dumps(document).encode())


def docker_archive(**more: object) -> list[Entry]:
    """As older docker wrote it: a directory per layer, shared ones as symlinks."""
    tar = base_layer()
    config = {
        "os": "linux",
        "architecture": "arm64",
        "variant": "v8",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar)] * 2},
    }
    image = {
        "Config": "config.json",
        "RepoTags": ["tool:1", "other/name"],
        "Layers": ["one/layer.tar", "two/layer.tar"],
        **more,
    }
    return [
        directory("one"),
        Entry("one/layer.tar", tar),
        Entry("one/json", b"{}"),
        symlink("two/layer.tar", "../one/layer.tar"),
        json_entry("config.json", config),
        json_entry("repositories", {}),
        json_entry("manifest.json", [image]),
    ]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_an_oci_layout(rig: Rig, pack: type[bytes]) -> None:
    imported = rig.load(pack(archive(IMAGE, NAME)))
    [(name, target)] = imported.images
    assert name == NAME
    assert target.digest == IMAGE.digest
    assert imported.index.media_type == OCI_INDEX
    assert rig.digests() == {*IMAGE.blobs, imported.index.digest}
    assert not any(node.missing for node in walk(rig.store, imported.index))
    assert rig.store.list_statuses() == []


def test_importing_twice_is_the_same(rig: Rig) -> None:
    data = archive(IMAGE, NAME)
    assert rig.load(data) == rig.load(data)


def test_a_docker_archive(rig: Rig) -> None:
    imported = rig.load(layer(docker_archive()))
    names = [name for name, _ in imported.images]
    assert names == ["docker.io/library/tool:1", "docker.io/other/name:latest"]
    target, manifest = find_manifest(rig.store, imported.index, only(parse("linux/arm64")))
    assert target.media_type == DOCKER_MANIFEST
    assert str(target.platform) == "linux/arm64"
    assert [d.media_type for d in manifest.layers] == [
        "application/vnd.docker.image.rootfs.diff.tar"
    ] * 2
    assert {d.digest for d in manifest.layers} == {digest_of(base_layer())}


def test_a_docker_archive_without_tags_or_uncompressed_layers(rig: Rig) -> None:
    imported = rig.load(layer(docker_archive(RepoTags=None)), compress=True)
    [(name, target)] = imported.images
    assert name == ""
    _, manifest = find_manifest(rig.store, target, Everything())
    packed = manifest.layers[0]
    assert packed.media_type.endswith(".gzip")
    with rig.store.reader(packed.digest) as reader:
        assert gzip.decompress(reader.read_at(0, reader.size)) == base_layer()
        assert packed.size == reader.size
    assert read_config(rig.store, manifest.config).diff_ids[0] == digest_of(base_layer())


def layout(*entries: Entry, version: str = "1.0.0") -> bytes:
    return layer([json_entry("oci-layout", {"imageLayoutVersion": version}), *entries])


EMPTY_INDEX = json_entry("index.json", {"manifests": []})
BLOB = "blobs/sha256/"
REFUSED: dict[str, tuple[bytes, type[Error], str]] = {
    "nothing": (b"", InvalidArgument, "unrecognized image format"),
    "no archive": (b"hello" * 1000, InvalidArgument, "tar header"),
    "another archive": (layer([Entry("x")]), InvalidArgument, "unrecognized image format"),
    "no index": (layout(), InvalidArgument, "missing index.json"),
    "another version": (
        layout(EMPTY_INDEX, version="2"),
        InvalidArgument,
        "unsupported OCI version",
    ),
    "an index that is none": (
        layout(Entry("index.json", b"[]")),
        InvalidArgument,
        "not a JSON object",
    ),
    "a wrong digest": (
        layout(Entry(BLOB + "0" * 64, b"x"), EMPTY_INDEX),
        FailedPrecondition,
        "digest",
    ),
    "a blob with no digest": (layout(Entry("blobs/sha256/x", b"x")), InvalidArgument, "digest"),
    "a strange algorithm": (layout(Entry("blobs/md5/" + "0" * 32)), InvalidArgument, "digest"),
    "half of it": (archive(IMAGE, NAME)[:900_000], InvalidArgument, "unexpected EOF"),
    "half of it, packed": (gzip.compress(archive(IMAGE, NAME))[:-500], InvalidArgument, "EOF"),
    "a layer that is not there": (
        layer(docker_archive(Layers=["../../../etc/passwd"])),
        InvalidArgument,
        "has no file",
    ),
    "links in a circle": (
        layer([symlink("a", "b"), symlink("b", "a"), *docker_archive(Layers=["a"])]),
        InvalidArgument,
        "has no file",
    ),
    "a manifest of text": (layer([json_entry("manifest.json", ["x"])]), InvalidArgument, "object"),
    "no list of manifests": (
        layer([json_entry("manifest.json", {})]),
        InvalidArgument,
        "not a list",
    ),
    "a giant index": (layout(Entry("index.json", bytes(9 << 20))), InvalidArgument, "too large"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_archive_is_refused(rig: Rig, name: str) -> None:
    data, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        rig.load(data)
    assert rig.store.list_statuses() == []


def test_an_exported_image_comes_back(rig: Rig, tmp_path: Path) -> None:
    imported = rig.load(archive(IMAGE, NAME))
    data = rig.save(imported.images)
    other = Rig(tmp_path / "other")
    again = other.load(data)
    assert [(n, d.digest) for n, d in again.images] == [(NAME, IMAGE.digest)]
    assert {*IMAGE.blobs} <= other.digests()


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {}
        for info in tar:
            file = tar.extractfile(info)
            found[info.name] = file.read() if file else b""
        return found


def test_an_export_is_for_docker_too(rig: Rig) -> None:
    imported = rig.load(archive(IMAGE, "docker.io/library/tool:1.2"))
    found = members(rig.save(imported.images))
    [entry] = json.loads(found["manifest.json"])
    assert entry["RepoTags"] == ["tool:1.2"]
    assert digest_of(found[entry["Config"]]) == IMAGE.config_digest
    assert [digest_of(found[path]) for path in entry["Layers"]] == list(IMAGE.layer_digests)
    assert "manifest.json" not in members(
        rig.save(imported.images, ExportOptions(skip_manifest_json=True))
    )


def test_exports_are_the_same_bytes(rig: Rig) -> None:
    imported = rig.load(archive(IMAGE, NAME))
    assert rig.save(imported.images) == rig.save(imported.images)


def many_platforms(rig: Rig) -> Descriptor:
    [(_, here)] = rig.load(archive(IMAGE, NAME)).images
    other = build([layer([Entry("other")])])
    blobs = {**other.blobs}
    for digest, data in blobs.items():
        put(rig.store, digest, data, "")
    there = Descriptor(
        OCI_MANIFEST,
        Digest(other.digest),
        len(other.blobs[other.digest]),
        platform=parse("linux/arm64"),
    )
    gone = Descriptor(OCI_MANIFEST, Digest("sha256:" + "7" * 64), 5, platform=parse("linux/s390x"))
    entries = [replace(here, annotations={}), there, gone]
    document = {"schemaVersion": 2, "manifests": [dump_descriptor(entry) for entry in entries]}
    return put(rig.store, "many", json.dumps(document).encode(), OCI_INDEX)


def test_an_export_of_one_platform(rig: Rig) -> None:
    index = many_platforms(rig)
    found = members(rig.save([(NAME, index)], ExportOptions(platforms=only(parse("linux/amd64")))))
    blobs = {"sha256:" + name[len(BLOB) :] for name in found if name.startswith(BLOB)}
    assert blobs == {*IMAGE.blobs, index.digest}


def test_what_is_missing_is_said_before_anything_is_written(rig: Rig) -> None:
    index = many_platforms(rig)
    written: list[bytes] = []
    with pytest.raises(NotFound, match="content sha256:777"):
        export(rig.store, [(NAME, index)], written.append)
    assert written == []
    found = members(rig.save([(NAME, index)], ExportOptions(present_only=True)))
    assert "blobs/sha256/" + "7" * 64 not in found
    assert len([name for name in found if name.startswith(BLOB)]) > len(IMAGE.blobs) + 1


def test_damaged_content_is_not_exported(rig: Rig) -> None:
    imported = rig.load(archive(IMAGE, NAME))
    with rig.store.reader(Digest(IMAGE.layer_digests[1])) as reader:
        path = Path(str(reader.path))
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(bytes(size))
    with pytest.raises(DataLoss, match="damaged"):
        rig.save(imported.images)


@pytest.mark.parametrize(
    ("short", "full", "tag"),
    [
        ("alpine", "docker.io/library/alpine:latest", "latest"),
        ("alpine:3", "docker.io/library/alpine:3", "3"),
        ("user/tool", "docker.io/user/tool:latest", "latest"),
        ("localhost/tool", "localhost/tool:latest", "latest"),
        ("host:5000/tool", "host:5000/tool:latest", "latest"),
        ("host.example/a/b:c", "host.example/a/b:c", "c"),
    ],
)
def test_names(short: str, full: str, tag: str) -> None:
    assert normalized(short) == full
    assert reference_name(full) == tag
    assert normalized(familiar(full)) == full


def test_names_by_digest_are_no_tags() -> None:
    name = "docker.io/library/alpine@sha256:" + "0" * 64
    assert familiar(name) == ""
    assert reference_name(name) == name


@given(st.binary(max_size=600), st.integers(0, 5000))
def test_noise_leaves_nothing_behind(noise: bytes, position: int) -> None:
    good = layout(Entry(BLOB + digest_of(b"x")[7:], b"x"), EMPTY_INDEX)
    with tempfile.TemporaryDirectory() as directory:
        rig = Rig(Path(directory))
        try:
            rig.load(good[:position] + noise + good[position + len(noise) :])
        except Error:
            pass
        assert rig.store.list_statuses() == []
