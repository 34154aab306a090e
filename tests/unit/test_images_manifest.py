"""Manifests, indexes and configs are read strictly, and their graphs walked within bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.content.local import LocalStore
from kontti.errors import (
    DataLoss,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from kontti.images.documents import dump_descriptor, parse_descriptor
from kontti.images.graph import child_labels, find_manifest, platforms, walk
from kontti.images.identity import chain_id, chain_ids
from kontti.images.image_check import check, is_unpacked, size
from kontti.images.ingest import put
from kontti.images.manifest import (
    MAX_DOCUMENT,
    children,
    parse_config,
    parse_index,
    parse_manifest,
    read_config,
    read_document,
)
from kontti.images.media_types import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
)
from kontti.images.platforms import Everything, only, parse
from kontti.values import Descriptor, Digest, Platform
from tests.support.images import Image, build

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
ZERO = "sha256:" + "0" * 64


def descriptor(media_type: str = LAYER, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": ZERO, "size": 1, **more}


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


MANIFEST = {"schemaVersion": 2, "config": descriptor(OCI_CONFIG), "layers": [descriptor()]}
INDEX = {"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST)]}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "content"))


def add(store: LocalStore, document: object, media_type: str) -> Descriptor:
    return put(store, f"test-{media_type}", encoded(document), media_type)


def add_image(store: LocalStore, image: Image, without: tuple[str, ...] = ()) -> Descriptor:
    for digest, data in image.blobs.items():
        if digest not in without:
            put(store, digest, data, "")
    return parse_descriptor(dict(image.manifest), "manifest")


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_a_manifest(media_type: str) -> None:
    found = parse_manifest(encoded({**MANIFEST, "annotations": {"k": "v"}}), media_type)
    assert found.config.media_type == OCI_CONFIG
    assert [child.media_type for child in found.children] == [OCI_CONFIG, LAYER]
    assert found.annotations == {"k": "v"}


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_an_index(media_type: str) -> None:
    platform = {"os": "linux", "architecture": "arm", "variant": "v7", "os.features": ["f"]}
    entry = descriptor(OCI_MANIFEST, platform=platform, annotations={"a": "b"})
    found = parse_index(encoded({"manifests": [entry]}), media_type)
    assert found.manifests[0].platform == Platform("linux", "arm", "v7", "", ("f",))
    assert dump_descriptor(found.manifests[0]) == entry


WRONG_MANIFESTS: dict[str, tuple[object, str]] = {
    "both": ({**MANIFEST, "manifests": [descriptor()]}, "expected manifest but found index"),
    "an index by its type": ({**MANIFEST, "mediaType": OCI_INDEX}, "expected manifest but found"),
    "no config": ({"layers": []}, "manifest config is not an object"),
    "layers of text": ({**MANIFEST, "layers": ["x"]}, "layers entry is not an object"),
    "layers of nothing": ({**MANIFEST, "layers": {}}, "layers is not a list"),
    "a bad digest": ({**MANIFEST, "layers": [descriptor(digest="sha256:../../etc")]}, "digest"),
    "a size of text": ({**MANIFEST, "layers": [descriptor(size="1")]}, "size is not a size"),
    "a negative size": ({**MANIFEST, "layers": [descriptor(size=-1)]}, "size is not a size"),
    "a fraction": ({**MANIFEST, "layers": [descriptor(size=1.5)]}, "size is not a size"),
    "true": ({**MANIFEST, "layers": [descriptor(size=True)]}, "size is not a size"),
    "no media type": ({**MANIFEST, "layers": [descriptor("")]}, "no media type"),
    "annotations": ({**MANIFEST, "annotations": {"a": 1}}, "annotations is not an object of"),
    "a list": ([MANIFEST], "not a JSON object"),
}


@pytest.mark.parametrize("name", WRONG_MANIFESTS)
def test_wrong_manifests_are_refused(name: str) -> None:
    document, message = WRONG_MANIFESTS[name]
    with pytest.raises(InvalidArgument, match=message):
        parse_manifest(encoded(document), OCI_MANIFEST)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":NaN}', b'{"a":' + b"9" * 5000 + b"}"],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    for parser in (parse_config, lambda d: parse_manifest(d, OCI_MANIFEST)):
        with pytest.raises(InvalidArgument):
            parser(data)


def test_other_types_are_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="expected index but found manifest"):
        parse_index(encoded(MANIFEST), OCI_INDEX)
    with pytest.raises(InvalidArgument, match="text/html"):
        parse_manifest(encoded(MANIFEST), "text/html")
    with pytest.raises(Unimplemented, match="schema 1"):
        parse_manifest(encoded({"fsLayers": [{}], "schemaVersion": 1}), DOCKER_MANIFEST)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["config", "layers", "manifests", "digest", "size", "mediaType", "rootfs"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_refused(document: object) -> None:
    data = encoded(document)
    for parser in (
        parse_config,
        lambda d: parse_manifest(d, OCI_MANIFEST),
        lambda d: parse_index(d, OCI_INDEX),
    ):
        try:
            parser(data)
        except Error:
            pass


def test_a_config() -> None:
    run = {
        "User": "alice", "Env": ["A=b"], "Entrypoint": "sh", "Cmd": ["-c"], "WorkingDir": "/w",
        "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}}, "Labels": {"l": "m"},
        "StopSignal": "SIGINT",
    }  # fmt: skip
    document = {
        "os": "linux",
        "architecture": "amd64",
        "config": run,
        "rootfs": {"diff_ids": [ZERO]},
    }
    config = parse_config(encoded(document))
    assert config.platform == Platform("linux", "amd64")
    assert config.diff_ids == (ZERO,)
    assert config.run.entrypoint == ("sh",)
    assert (config.run.volumes, config.run.exposed_ports) == (("/v",), ("80/tcp",))
    assert parse_config(b'{"config": null, "rootfs": null}').run.env == ()


def test_documents_are_bounded_and_verified(store: LocalStore) -> None:
    big = put(store, "big", b" " * (MAX_DOCUMENT + 1), OCI_MANIFEST)
    with pytest.raises(InvalidArgument, match="too large"):
        children(store, big)
    small = put(store, "small", b"{}", OCI_CONFIG)
    with store.reader(small.digest) as reader:
        path = Path(str(reader.path))
    path.unlink()
    path.write_bytes(b"[]")
    with pytest.raises(DataLoss, match="damaged"):
        read_document(store, small)


def test_chain_ids() -> None:
    first, second = Digest("sha256:" + "1" * 64), Digest("sha256:" + "2" * 64)
    assert chain_ids([]) == ()
    assert chain_id([]) == ""
    assert chain_id([first]) == first
    assert chain_ids([first, second]) == (
        first,
        # printf %s "sha256:11… sha256:22…" | sha256sum
        "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5",
    )


def test_child_labels() -> None:
    kinds = [OCI_CONFIG, LAYER, LAYER, OCI_MANIFEST, OCI_MANIFEST, "text/plain", OCI_INDEX]
    digests = [Digest(f"sha256:{n:064x}") for n in range(len(kinds))]
    labels = child_labels([Descriptor(k, d, 1) for k, d in zip(kinds, digests, strict=True)])
    prefix = "containerd.io/gc.ref.content."
    assert labels == {
        prefix + key: digest
        for key, digest in zip(
            ("config", "l.0", "l.1", "m.0", "m.1", "0", "1"), digests, strict=True
        )
    }


def two_platforms(store: LocalStore, without: tuple[str, ...] = ()) -> tuple[Descriptor, Image]:
    image = build()
    native = dump_descriptor(add_image(store, image, without))
    absent = descriptor(OCI_MANIFEST, platform={"os": "linux", "architecture": "s390x"})
    here = {**native, "platform": {"os": "linux", "architecture": "amd64"}}
    return add(store, {"manifests": [absent, here]}, OCI_INDEX), image


def test_walking_an_image(store: LocalStore) -> None:
    index, image = two_platforms(store)
    nodes = list(walk(store, index, only(parse("linux/amd64"))))
    assert {n.descriptor.digest for n in nodes} == {index.digest, *image.blobs}
    everything = list(walk(store, index))
    assert [n.descriptor.digest for n in everything if n.missing] == [ZERO]


def test_finding_the_manifest_of_a_platform(store: LocalStore) -> None:
    index, image = two_platforms(store)
    found, manifest = find_manifest(store, index, only(parse("linux/amd64")))
    assert found.digest == image.digest
    assert read_config(store, manifest.config).platform.architecture == "amd64"
    with pytest.raises(NotFound, match="no match for platform in manifest"):
        find_manifest(store, index, only(parse("linux/riscv64")))
    with pytest.raises(NotFound):
        find_manifest(store, index, only(parse("linux/s390x")))
    assert platforms(store, index) == (Platform("linux", "amd64"),)


def test_an_index_of_itself_ends(store: LocalStore) -> None:
    target = add(store, INDEX, OCI_INDEX)
    for _ in range(12):
        target = add(store, {"manifests": [dump_descriptor(target)]}, OCI_INDEX)
    with pytest.raises(FailedPrecondition, match="too many"):
        list(walk(store, target))
    with pytest.raises(NotFound):
        find_manifest(store, target, Everything())


def test_a_blob_listed_often_is_visited_once(store: LocalStore) -> None:
    image = build()
    entry = dump_descriptor(add_image(store, image))
    index = add(store, {"manifests": [entry] * 5000}, OCI_INDEX)
    assert len(list(walk(store, index))) == 1 + len(image.blobs)


def test_checking_an_image(store: LocalStore) -> None:
    layer = build().layer_digests[0]
    index, image = two_platforms(store, without=(layer,))
    amd64 = only(parse("linux/amd64"))
    status = check(store, index, amd64)
    assert (status.word, [d.digest for d in status.missing]) == ("incomplete", [layer])
    assert status.present_size == status.size - len(image.blobs[layer])
    assert check(store, index, only(parse("linux/s390x"))).word == "unavailable"
    put(store, "layer", image.blobs[layer], "")
    assert check(store, index, amd64).complete
    assert size(store, index, amd64) == index.size + sum(map(len, image.blobs.values()))


def test_unpacked_is_the_top_chain_being_there(store: LocalStore) -> None:
    index, image = two_platforms(store)
    config = parse_config(image.blobs[image.config_digest])
    there: Mapping[str, object] = {chain_id(config.diff_ids): object()}

    def stat(key: str) -> object:
        if key not in there:
            raise NotFound(f"snapshot {key} does not exist")
        return there[key]

    amd64 = only(parse("linux/amd64"))
    assert is_unpacked(store, index, amd64, stat)
    there = {}
    assert not is_unpacked(store, index, amd64, stat)
