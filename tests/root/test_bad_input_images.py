"""Archives and registries whose documents are wrong: a clear error, no record and nothing left.

What Debian's containerd says of the same image proves that it is the image that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hostile import (
    CONFIG,
    INDEX,
    MANIFEST,
    TAR,
    Draft,
    config_as_layer,
    docker_archive,
    dump,
    image,
    itself,
    layout,
    nested,
    on_top,
    two_diff_ids,
    with_claims,
    with_config,
    with_index,
    with_top,
    without_layer,
)
from tests.support.images import Entry, digest_of, layer, symlink
from tests.support.leftovers import Target, target, unchanged
from tests.support.web import Answer, Asked, serving

pytestmark = pytest.mark.root
CONTAINERD = "containerd/debian"
ABSENT = "sha256:" + "0" * 64


@pytest.fixture(scope="module", params=("embedded", CONTAINERD))
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, Target]]:
    with target(request.param) as made:
        yield request.param, made


@pytest.fixture(scope="module", params=("kontti/ours", CONTAINERD))
def daemon(request: pytest.FixtureRequest) -> Iterator[tuple[str, Target]]:
    with target(request.param) as made:
        yield request.param, made


GO_JSON = r"invalid character|unexpected end of JSON input|cannot unmarshal"
# name: image, what we say, what containerd says ("" where it takes the image)
DOCUMENTS: dict[str, tuple[Draft, str, str]] = {
    "no JSON": (on_top(b"{not"), r"manifest is not JSON: .*: invalid argument", GO_JSON),
    "nothing": (on_top(b""), r"manifest is not JSON: .*: invalid argument", "JSON|size of zero"),
    "a list": (on_top(b"[]"), r"manifest is not a JSON object: invalid argument", GO_JSON),
    "null": (on_top(b"null"), r"manifest is not a JSON object: invalid argument", ": invalid arg"),
    "UTF-16": (on_top('{"a":1}'.encode("utf-16")), r"is not JSON: .*: invalid argument", GO_JSON),
    "without end": (on_top(b'{"a":' * 100_000), r"is not JSON: .*: invalid argument", GO_JSON),
    "no members": (on_top(b"{}"), r"manifest config is not an object: invalid argument", "invalid"),
    "an index for a manifest": (
        on_top(dump({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})),
        r"media-type: expected manifest but found index \(.*\): invalid argument",
        r"media-type: expected manifest but found index",
    ),
    "a manifest for an index": (
        on_top(image(TAR).blobs[str(image(TAR).top["digest"])], INDEX),
        r"media-type: expected index but found manifest \(.*\): invalid argument",
        r"media-type: expected index but found manifest",
    ),
    "layers are no list": (
        on_top(dump({"config": {"mediaType": CONFIG, "digest": ABSENT, "size": 2}, "layers": {}})),
        r"layers is not a list: invalid argument",
        GO_JSON,
    ),
    "an entry is no object": (
        with_index("text"),
        r"manifests entry is not an object: invalid argument",
        GO_JSON,
    ),
    "an empty index": (with_index(), r"no match for platform .*: not found", "no match for plat"),
    "no image for this machine": (
        with_index(
            {
                "mediaType": MANIFEST,
                "digest": ABSENT,
                "size": 9,
                "platform": {"os": "linux", "architecture": "s390x"},
            }
        ),
        r"no match for platform in manifest sha256:.*: not found",
        r"no match for platform|: not found",
    ),
    "an index that is its own manifest": (
        itself(INDEX),
        r"unexpected commit digest sha256:.*: failed precondition",
        r"unexpected commit digest|: not found",
    ),
    "a manifest that is its own config": (
        itself(MANIFEST),
        r"unexpected commit digest sha256:.*: failed precondition",
        r"unexpected commit digest|: not found",
    ),
    "a config that is a layer": (
        config_as_layer(),
        r"unexpected EOF in tar header: invalid argument",
        r"unexpected EOF",
    ),
    "indexes without end": (
        nested(12),
        r"image sha256:[0-9a-f]{64} refers to too many blobs: failed precondition",
        "",
    ),
    "config is no JSON": (
        with_config(b"no"),
        r"image config is not JSON: .*: invalid arg",
        GO_JSON,
    ),
    "config is a list": (with_config(b"[]"), r"image config is not a JSON object: inv", GO_JSON),
    "a short diff id": (
        with_config(dump({"os": "linux", "rootfs": {"diff_ids": ["sha256:abc"]}})),
        r"invalid checksum digest length 'sha256:abc': invalid argument",
        r"wrong diff id|mismatched|no match for platform",
    ),
    "more diff ids than layers": (
        two_diff_ids(),
        r"number of layers and diffIDs don't match: 1 != 2: invalid argument",
        r"mismatched image rootfs and manifest layers",
    ),
    "a short digest": (
        with_claims(digest="sha256:abcd"),
        r"invalid checksum digest length 'sha256:abcd': invalid argument",
        r"sha256:abcd.*: not found",
    ),
    "a digest that is none": (
        with_claims(digest="sha256:" + "g" * 64),
        r"invalid checksum digest format 'sha256:g{64}': invalid argument",
        r": not found",
    ),
    "no digest": (
        with_claims(digest=""),
        r"invalid checksum digest format '': invalid argument",
        r": not found",
    ),
    "an unknown algorithm": (
        with_claims(digest="md5:" + "a" * 32),
        r"unsupported digest algorithm 'md5': invalid argument",
        r": not found",
    ),
    "a path for a digest": (
        with_claims(digest="sha256:../../../../../../etc/passwd"),
        r"invalid checksum digest format '.*': invalid argument",
        r": not found|unexpected status|invalid",
    ),
    "a size that is text": (
        with_claims(size="12"),
        r"size is not a size: invalid argument",
        GO_JSON,
    ),
    "a size without end": (
        with_claims(size=1 << 70),
        r"size is not a size: invalid argument",
        GO_JSON,
    ),
    "another size": (
        with_claims(size=1_000_000),
        r"unexpected layer size|body is shorter than 1000000 bytes: failed precondition",
        "",
    ),
    "no media type": (
        with_claims(mediaType=""),
        r"layers entry has no media type: invalid argument",
        r"no processor for media-type",
    ),
    "a layer that is not there": (
        without_layer(),
        r"sha256:[0-9a-f]{64}(: 404 Not Found)?: not found",
        r": not found",
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_of_an_archive(place: tuple[str, Target], name: str) -> None:
    kind, at = place
    draft, ours, theirs = DOCUMENTS[name]
    wanted = theirs if kind == CONTAINERD else ours
    with unchanged(at):
        message = at.import_error(draft.archive())
    assert bool(message) == bool(wanted)
    assert re.search(wanted, message), message


PULLED = (
    "no JSON", "without end", "an index for a manifest", "an empty index",
    "no image for this machine",
    "an index that is its own manifest", "a manifest that is its own config", "indexes without end",
    "config is no JSON", "a short diff id", "more diff ids than layers", "a short digest",
    "a path for a digest", "a size without end", "a layer that is not there",
)  # fmt: skip


@pytest.mark.parametrize("name", PULLED)
def test_documents_of_a_registry(daemon: tuple[str, Target], name: str) -> None:
    kind, at = daemon
    draft, ours, theirs = DOCUMENTS[name]
    wanted = theirs if kind == CONTAINERD else ours
    with serving(draft.registry()) as web, unchanged(at):
        message = at.pull_error(f"{web.host}/a/b:1")
    assert bool(message) == bool(wanted)
    assert re.search(wanted, message), message


OVER = on_top(dump({"schemaVersion": 2, "x": "y" * (9 << 20)}))


def test_a_manifest_that_is_too_large(daemon: tuple[str, Target]) -> None:
    kind, at = daemon
    with unchanged(at):
        message = at.import_error(OVER.archive())
    too_large = r"is too large to read: 94\d{5} bytes: invalid argument"
    assert re.search("failed validation" if kind == CONTAINERD else too_large, message), message
    with serving(OVER.registry()) as web, unchanged(at):
        message = at.pull_error(f"{web.host}/a/b:1")
    rejected = rf"rejecting 94\d{{5}} byte manifest for {web.host}/a/b:1: "
    wording = "not found" if kind == CONTAINERD else "resource exhausted"
    assert re.search(rejected + wording, message), message


TOPS: dict[str, tuple[Draft, str, str]] = {
    "a short digest": (
        with_top(digest="sha256:abcd"),
        r"invalid checksum digest length 'sha256:abcd': invalid argument",
        r'"sha256:abcd" failed validation: invalid argument',
    ),
    "an unknown algorithm": (
        with_top(digest="sha1:" + "a" * 40),
        r"unsupported digest algorithm 'sha1': invalid argument",
        r'"sha1:a{40}" failed validation: invalid argument',
    ),
    "a size below zero": (
        with_top(size=-4),
        r"size is not a size: invalid argument",
        r"Target\.Size must be greater than zero: invalid argument",
    ),
    "an unknown type": (
        with_top(mediaType="application/x-what"),
        r"unexpected media type application/x-what for sha256:[0-9a-f]{64}: not found",
        r"unexpected media type application/x-what for sha256:[0-9a-f]{64}: not found",
    ),
    "schema 1": (
        with_top(mediaType="application/vnd.docker.distribution.manifest.v1+prettyjws"),
        r"unsupported manifest media type .*v1\+prettyjws: not implemented",
        r"unexpected media type .*v1\+prettyjws for sha256:[0-9a-f]{64}: not found",
    ),
}


@pytest.mark.parametrize("name", TOPS)
def test_what_an_index_says_of_an_image(place: tuple[str, Target], name: str) -> None:
    kind, at = place
    draft, ours, theirs = TOPS[name]
    with unchanged(at):
        message = at.import_error(draft.archive())
    assert re.search(theirs if kind == CONTAINERD else ours, message), message


EMPTY_INDEX = dump({"schemaVersion": 2, "manifests": []})
LAYOUT = Entry("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
RUNNABLE = dump({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digest_of(TAR)]}})
DOCKER = dump([{"Config": "c", "Layers": ["l"], "RepoTags": ["hostile:1"]}])
# name: archive, what we say, what containerd says
ARCHIVES: dict[str, tuple[bytes, str, str]] = {
    "no tar": (
        b"hello world" * 100,
        r"archive/tar: invalid tar header: .*: inv",
        "invalid tar head",
    ),
    "nothing": (b"", r"unrecognized image format: invalid argument", "unrecognized image format"),
    "an empty tar": (bytes(10240), r"unrecognized image format: invalid arg", "unrecognized image"),
    "half a tar": (
        image(layer([Entry("x", bytes(range(256)) * 40)])).archive()[:1700],
        r"unexpected EOF in tar (entry|header): invalid argument",
        r"unexpected EOF",
    ),
    "no index": (
        layer([LAYOUT]),
        r"missing index\.json in OCI layout: invalid argument",
        r"missing index\.json in OCI layout",
    ),
    "an index that is no JSON": (layout({}, b"{"), r"index is not JSON: .*: invalid arg", GO_JSON),
    "an index that is a list": (layout({}, b"[]"), r"index is not a JSON object: inv", GO_JSON),
    "an index that is too large": (
        layout({}, dump({"manifests": [], "x": "y" * (9 << 20)})),
        r"'index\.json' is too large: 94\d{5} bytes: invalid argument",
        r"image might be filtered out",
    ),
    "an empty index": (
        layout({}, EMPTY_INDEX),
        r"image might be filtered out: not found",
        r"image might be filtered out",
    ),
    "another version": (
        layout({}, EMPTY_INDEX, "9.9.9"),
        r"unsupported OCI version 9\.9\.9: invalid argument",
        r"unsupported OCI version 9\.9\.9",
    ),
    "a blob with a short name": (
        layout({"sha256:abc": b"x"}, EMPTY_INDEX),
        r"invalid checksum digest length 'sha256:abc': invalid argument",
        r"image might be filtered out",
    ),
    "a blob by an unknown algorithm": (
        layout({"md5:" + "a" * 32: b"x"}, EMPTY_INDEX),
        r"unsupported digest algorithm 'md5': invalid argument",
        r"image might be filtered out",
    ),
    "manifest.json is no JSON": (
        docker_archive(b"{"),
        r"manifest\.json is not JSON: .*: invalid argument",
        r"unexpected EOF",
    ),
    "manifest.json is an object": (
        docker_archive(b"{}"),
        r"manifest\.json is not a list: invalid argument",
        GO_JSON,
    ),
    "no config": (
        docker_archive(DOCKER),
        r"image archive has no file 'c': invalid argument",
        r'image config "c" not found',
    ),
    "layers that are links to one another": (
        docker_archive(DOCKER, [Entry("c", RUNNABLE), symlink("l", "m"), symlink("m", "l")]),
        r"image archive has no file 'l': invalid argument",
        r'no target for symlink layer from "[lm]"',
    ),
    "a layer that is a link out": (
        docker_archive(DOCKER, [Entry("c", RUNNABLE), symlink("l", "../../../../etc/passwd")]),
        r"image archive has no file 'l': invalid argument",
        r"no target for symlink layer",
    ),
    "manifest.json names itself": (
        docker_archive(DOCKER.replace(b'"c"', b'"manifest.json"')),
        r"image archive has no file 'manifest\.json': invalid argument",
        r'image config "manifest.json" not found',
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(place: tuple[str, Target], name: str) -> None:
    kind, at = place
    archive, ours, theirs = ARCHIVES[name]
    with unchanged(at):
        message = at.import_error(archive)
    assert re.search(theirs if kind == CONTAINERD else ours, message), message


def test_names_in_an_archive_are_not_paths(place: tuple[str, Target], tmp_path: Path) -> None:
    _, at = place
    up = "../" * 30 + str(tmp_path).lstrip("/")
    names = [f"blobs/sha256/{up}/evil", f"{tmp_path}/evil", f"{up}/evil"]
    with unchanged(at):
        for name in names:
            archive = layer([LAYOUT, Entry(name, b"x"), Entry("index.json", EMPTY_INDEX)])
            assert "image might be filtered out" in at.import_error(archive)
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_says_something_else_at_each_turn(daemon: tuple[str, Target]) -> None:
    """The digest is promised by one answer and broken by the next."""
    kind, at = daemon
    draft = image(TAR)
    registry, digest = draft.registry(), str(draft.top["digest"])
    other = image(layer([])).registry()

    def answer(asked: Asked) -> Answer:
        if asked.method == "HEAD":
            return registry(asked)
        changed = other(asked)
        return Answer(200, {}, other.blobs[other.tags["1"]]) if changed.status == 404 else changed

    with serving(answer) as web, unchanged(at):
        message = at.pull_error(f"{web.host}/a/b:1")
    told = r"unexpected EOF|failed size validation|unexpected commit digest"
    ours = rf"{digest}: body is (longer|shorter) than \d+ bytes: failed precondition"
    assert re.search(told if kind == CONTAINERD else ours, message), message
