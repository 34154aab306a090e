"""``ctr``'s commands on images, content and snapshots: what each does to a daemon's stores."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import cast

import pytest
import zstandard

from tests.support import images
from tests.support.host import IMAGE, Host, host
from tests.support.images import Entry

pytestmark = pytest.mark.root
OTHER = "docker.io/library/other:1"
DOCKER = {
    "application/vnd.oci.image.layer.v1.tar+gzip": (
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    ),
    "application/vnd.oci.image.config.v1+json": "application/vnd.docker.container.image.v1+json",
    "application/vnd.oci.image.manifest.v1+json": (
        "application/vnd.docker.distribution.manifest.v2+json"
    ),
}


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    with host() as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(here: Host) -> Iterator[None]:
    yield
    assert out(here, "images", "ls", "-q").split() == [IMAGE]
    assert out(here, "leases", "ls", "-q") == ""
    assert not [p for p in Path("/proc/self/mountinfo").read_text().split() if p == str(MOUNTED)]


MOUNTED = Path("/run/kontti-test-mounted")


def out(here: Host, *args: str, code: int = 0, stdin: bytes | None = None) -> str:
    done = here.ctr(*args, stdin=stdin)
    assert done.returncode == code, (args, done.stdout, done.stderr)
    return (done.stdout if code == 0 else done.stderr).decode()


def blob(here: Host, digest: str) -> bytes:
    return here.ctr("content", "get", digest).stdout


def manifest_of(here: Host, name: str) -> tuple[str, dict[str, object]]:
    """The digest of an image that is a manifest, and the manifest."""
    digest = out(here, "images", "ls", f"name=={name}").splitlines()[1].split()[2]
    return digest, json.loads(blob(here, digest))


def remove(here: Host, *names: str) -> None:
    out(here, "images", "rm", "--sync", *names)


def docker_image() -> images.Image:
    """The usual image with Docker's media types."""
    made = images.build()
    text = made.blobs[made.digest].decode()
    for ours, docker in DOCKER.items():
        text = text.replace(ours, docker)
    data = text.encode()
    blobs = {**made.blobs, images.digest_of(data): data}
    del blobs[made.digest]
    described = {
        "mediaType": DOCKER[str(made.manifest["mediaType"])],
        "digest": images.digest_of(data),
        "size": len(data),
    }
    return replace(made, blobs=blobs, manifest=described)


def add(here: Host, image: images.Image, name: str, *flags: str) -> None:
    out(here, "images", "import", *flags, "-", stdin=images.archive(image, name))


def test_convert_uncompress_runs_and_has_the_same_files(here: Host) -> None:
    digest = out(here, "images", "convert", "--uncompress", IMAGE, OTHER).strip()
    found, manifest = manifest_of(here, OTHER)
    assert found == digest
    layers = manifest["layers"]
    assert isinstance(layers, list)
    tars = [images.base_layer(), images.second_layer()]
    assert [layer["digest"] for layer in layers] == [images.digest_of(tar) for tar in tars]
    assert [layer["size"] for layer in layers] == [len(tar) for tar in tars]
    assert {layer["mediaType"] for layer in layers} == {"application/vnd.oci.image.layer.v1.tar"}
    # what it is made of stays when the image it was made of goes, and a collection comes
    out(here, "images", "tag", IMAGE, "docker.io/library/kept:1")
    remove(here, IMAGE)
    remove(here, "docker.io/library/kept:1")
    assert out(here, "run", "--rm", OTHER, "converted", "cat", "/etc/greeting") == "hello\n"
    add(here, images.build(), IMAGE)
    remove(here, OTHER)


def test_convert_to_zstd_runs_and_has_the_same_files(here: Host) -> None:
    converted = out(here, "images", "convert", "--zstd", IMAGE, OTHER).strip()
    digest, manifest = manifest_of(here, OTHER)
    assert digest == converted
    layers = cast("list[dict[str, str]]", manifest["layers"])
    assert {layer["mediaType"] for layer in layers} == {
        "application/vnd.oci.image.layer.v1.tar+zstd"
    }
    config = cast("dict[str, str]", manifest["config"])
    diff_ids = json.loads(blob(here, config["digest"]))["rootfs"]["diff_ids"]
    unpacked = zstandard.ZstdDecompressor().decompressobj
    plain = [unpacked().decompress(blob(here, layer["digest"])) for layer in layers]
    assert [images.digest_of(tar) for tar in plain] == diff_ids
    # what is zstd stays as it is, and a plain layer is packed
    again = out(here, "images", "convert", "--zstd", OTHER, OTHER).strip()
    assert again == converted
    out(here, "images", "convert", "--uncompress", OTHER, OTHER)
    assert out(here, "images", "convert", "--zstd", OTHER, OTHER).strip() == converted
    assert out(here, "run", "--rm", OTHER, "converted", "cat", "/etc/greeting") == "hello\n"
    both = ("images", "convert", "--zstd", "--uncompress", IMAGE, OTHER)
    assert "both uncompressed and in zstd" in out(here, *both, code=1)
    remove(here, OTHER)


def test_convert_dockers_layers_to_zstd(here: Host) -> None:
    add(here, docker_image(), OTHER)
    for flags, kind in (
        ((), "application/vnd.docker.image.rootfs.diff.tar.zstd"),
        (("--oci",), "application/vnd.oci.image.layer.v1.tar+zstd"),
    ):
        name = f"{OTHER}{len(flags)}"
        out(here, "images", "convert", "--zstd", *flags, OTHER, name)
        _, manifest = manifest_of(here, name)
        layers = cast("list[dict[str, str]]", manifest["layers"])
        assert {layer["mediaType"] for layer in layers} == {kind}
        assert out(here, "run", "--rm", name, "converted", "cat", "/etc/greeting") == "hello\n"
        remove(here, name)
    remove(here, OTHER)


def test_convert_to_oci(here: Host) -> None:
    add(here, docker_image(), OTHER)
    converted = out(here, "images", "convert", "--oci", OTHER, OTHER).strip()
    found, manifest = manifest_of(here, OTHER)
    assert found == converted != docker_image().digest
    assert "docker" not in json.dumps(manifest)
    assert list(manifest) == ["schemaVersion", "mediaType", "config", "layers"]
    assert out(here, "run", "--rm", OTHER, "oci", "cat", "/etc/greeting") == "hello\n"
    again = out(here, "images", "convert", "--oci", OTHER, OTHER).strip()
    assert again == converted
    remove(here, OTHER)


def index_image() -> tuple[images.Image, str]:
    """An index of this image and of one for another platform, of which only the entry is here."""
    made = images.build()
    other = {**made.manifest, "digest": "sha256:" + "1" * 64}
    entries = [
        {**made.manifest, "platform": {"architecture": "amd64", "os": "linux"}},
        {**other, "platform": {"architecture": "s390x", "os": "linux"}},
    ]
    data = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        }
    ).encode()
    described = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": images.digest_of(data),
        "size": len(data),
    }
    blobs = {**made.blobs, images.digest_of(data): data}
    return replace(made, blobs=blobs, manifest=described), images.digest_of(data)


def test_convert_keeps_only_the_platforms_asked_for(here: Host) -> None:
    image, digest = index_image()
    add(here, image, OTHER)
    name = "docker.io/library/less:1"
    converted = out(here, "images", "convert", OTHER, name).strip()
    assert converted != digest
    manifests = json.loads(blob(here, converted))["manifests"]
    assert [m["platform"]["architecture"] for m in manifests] == ["amd64"]
    assert manifests[0]["digest"] == images.build().digest
    assert "not found" in out(here, "images", "convert", "--all-platforms", OTHER, name, code=1)
    wrong = ("images", "convert", "--platform", "linux/arm64", OTHER, name)
    assert "no match for platform" in out(here, *wrong, code=1)
    remove(here, OTHER, name)


def test_convert_says_what_it_cannot(here: Host) -> None:
    erofs = ("images", "convert", "--erofs")
    assert "not implemented" in out(here, *erofs, "raw", IMAGE, OTHER, code=1)
    assert 'unsupported erofs format "x"' in out(here, *erofs, "x", IMAGE, OTHER, code=1)
    assert "need to be specified" in out(here, "images", "convert", IMAGE, code=1)
    assert "not implemented" in out(here, "images", "build-erofs-cache", IMAGE, "/x", code=1)
    assert "not found" in out(here, "images", "convert", "nothing:1", OTHER, code=1)


def test_inspect_draws_the_tree(here: Host) -> None:
    lines = out(here, "images", "inspect", IMAGE).splitlines()
    assert lines[0] == IMAGE
    assert [line.split(":")[0] for line in lines[1:3]] == ["│    Created", "│    Updated"]
    made = images.build()
    wanted = [f"└── {made.manifest['mediaType']} @{made.digest} ({made.manifest['size']} bytes)"]
    blobs = (made.config_digest, *made.layer_digests)
    assert lines[3:4] == wanted
    assert [line.split("@")[1].split(" ")[0] for line in lines[4:]] == list(blobs)
    assert [line[:8] for line in lines[4:]] == ["    ├── ", "    ├── ", "    └── "]


def test_inspect_with_content_and_what_is_missing(here: Host) -> None:
    image, _ = index_image()
    add(here, image, OTHER)
    lines = out(here, "images", "inspect", "--content", OTHER).splitlines()
    assert any(line.endswith("Content does not exist locally, skipping") for line in lines)
    assert any("Platform: linux/s390x" in line for line in lines)
    assert any('"GREETING=hello"' in line for line in lines)
    assert any('"containerd.io/gc.ref.content.config": "sha256:' in line for line in lines)
    remove(here, OTHER)


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_mount_shows_the_image_and_unmount_takes_it_away(here: Host, snapshotter: str) -> None:
    MOUNTED.mkdir(exist_ok=True)
    flags = ("--snapshotter", snapshotter)
    try:
        shown = out(here, "images", "mount", *flags, IMAGE, str(MOUNTED)).split()
        assert shown == [images_chain(), str(MOUNTED)]
        assert (MOUNTED / "etc/greeting").read_text() == "hello\n"
        with pytest.raises(OSError, match="Read-only"):
            (MOUNTED / "new").write_text("x")
        # the collector leaves it alone
        out(here, "leases", "create", "--id", "collect")
        out(here, "leases", "rm", "--sync", "collect")
        assert str(MOUNTED) in out(here, "snapshots", *flags, "ls")
    finally:
        done = here.ctr("images", "unmount", *flags, "--rm", str(MOUNTED))
    assert done.stdout.decode() == f"{MOUNTED}\n"
    assert list(MOUNTED.iterdir()) == []
    assert str(MOUNTED) not in out(here, "snapshots", *flags, "ls")
    MOUNTED.rmdir()


def images_chain() -> str:
    first = images.digest_of(images.base_layer())
    return images.digest_of(f"{first} {images.digest_of(images.second_layer())}".encode())


def test_mount_rw_keeps_what_was_written(here: Host) -> None:
    MOUNTED.mkdir(exist_ok=True)
    out(here, "images", "mount", "--rw", IMAGE, str(MOUNTED))
    (MOUNTED / "new").write_text("written")
    out(here, "images", "unmount", str(MOUNTED))
    assert list(MOUNTED.iterdir()) == []
    out(here, "images", "mount", "--rw", IMAGE, str(MOUNTED))
    assert (MOUNTED / "new").read_text() == "written"
    out(here, "images", "unmount", "--rm", str(MOUNTED))
    MOUNTED.rmdir()


def test_a_mount_that_fails_leaves_nothing(here: Host) -> None:
    before = out(here, "snapshots", "ls")
    assert "no such file" in out(here, "images", "mount", IMAGE, "/nonexistent/x", code=1)
    assert "not found" in out(here, "images", "mount", "nothing:1", str(MOUNTED), code=1)
    assert "wildcards" in out(here, "images", "mount", "--platform", "*", IMAGE, "/x", code=1)
    # an overlay without a place to be is nothing to hand out
    assert "without a target" in out(here, "images", "mount", IMAGE, code=1)
    assert out(here, "snapshots", "ls") == before


def test_import_flags(here: Host) -> None:
    wrong = ("images", "import", "--no-unpack", "--discard-unpacked-layers", "/x")
    assert "incompatible" in out(here, *wrong, code=1)
    assert "with --digests" in out(
        here, "images", "import", "--skip-digest-for-named", "/x", code=1
    )
    extra = images.build([images.base_layer(), images.layer([Entry("only", b"here")])])
    add(here, extra, OTHER, "--discard-unpacked-layers")
    out(here, "leases", "create", "--id", "collect")
    out(here, "leases", "rm", "--sync", "collect")
    assert extra.layer_digests[1] not in out(here, "content", "ls", "-q")
    assert extra.config_digest in out(here, "content", "ls", "-q")
    assert out(here, "run", "--rm", OTHER, "discarded", "cat", "/only") == "here"
    remove(here, OTHER)


def test_tag_checks_names(here: Host) -> None:
    shown = out(here, "images", "tag", IMAGE, "case/UPPER:1", code=1)
    assert 'error parsing reference: "case/UPPER:1" is not a valid repository/tag' in shown
    out(here, "images", "tag", "--skip-reference-check", IMAGE, "case/UPPER:1")
    remove(here, "case/UPPER:1")


def test_labels_that_are_only_asked_for_stay(here: Host) -> None:
    manifest = images.build().digest
    kept = out(here, "content", "label", manifest)
    assert "containerd.io/gc.ref.content.config" in kept
    assert out(here, "content", "label", manifest) == kept
    kept = out(here, "snapshots", "label", images_chain())
    assert "containerd.io/snapshot.ref" in kept
    assert out(here, "snapshots", "label", images_chain()) == kept
    assert out(here, "images", "label", IMAGE, "colour=red") == "colour=red\n"
    assert out(here, "images", "label", IMAGE) == "colour=red\n"
    assert out(here, "images", "label", "--replace-all", IMAGE) == "\n"
    # one with a snapshot, and one of a root file system: no field of that one cannot be changed
    for made in ([IMAGE], ["--rootfs", str(here.base)]):
        out(here, "containers", "create", *made, "labelled", "true")
        kept = out(here, "containers", "label", "labelled", "colour=red")
        # a map of the API has no order
        again = out(here, "containers", "label", "labelled")
        assert set(again.strip().split(",")) == set(kept.strip().split(","))
        record = json.loads(out(here, "containers", "info", "labelled"))
        assert (record["Labels"]["colour"], record["Spec"]["process"]["args"]) == ("red", ["true"])
        out(here, "containers", "rm", "labelled")


def test_diff_of_an_images_layer_leaves_the_layer(here: Host) -> None:
    tree = out(here, "snapshots", "tree").splitlines()
    assert tree == [f" {images.digest_of(images.base_layer())}", f"  \\_ {images_chain()}"]
    plain = "application/vnd.oci.image.layer.v1.tar"
    data = here.ctr("snapshots", "diff", "--media-type", plain, images_chain()).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {"etc/greeting", "etc/.wh.motd"} <= {n.rstrip("/") for n in tar.getnames()}
    # the same blob is an image's layer: asking for a difference again must not take it
    made = images.build([images.base_layer(), data])
    out(here, "images", "convert", "--uncompress", IMAGE, OTHER)
    add(here, made, "docker.io/library/same:1")
    out(here, "images", "convert", "--uncompress", "docker.io/library/same:1", OTHER)
    assert images.digest_of(data) in out(here, "content", "ls", "-q")
    assert here.ctr("snapshots", "diff", "--media-type", plain, images_chain()).stdout == data
    out(here, "leases", "create", "--id", "collect")
    out(here, "leases", "rm", "--sync", "collect")
    assert images.digest_of(data) in out(here, "content", "ls", "-q")
    assert "-view-" not in out(here, "snapshots", "ls")
    remove(here, OTHER, "docker.io/library/same:1")


def test_what_a_killed_diff_leaves_is_collected(here: Host) -> None:
    chain = images.digest_of(images.base_layer())
    argv = here.argv("snapshots", "diff", chain)
    # it waits with all that it made, as nobody reads the layer
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as client:
        until(lambda: "-view-" in out(here, "snapshots", "ls"))
        client.kill()
    lease, created, labels = out(here, "leases", "ls").splitlines()[1].split()
    assert "gc.root" not in out(here, "snapshots", "info", view_of(here))
    left = datetime.fromisoformat(labels.removeprefix("containerd.io/gc.expire="))
    assert 3500 < (left - datetime.fromisoformat(created)).total_seconds() <= 3600
    out(here, "leases", "rm", "--sync", lease)
    assert "-view-" not in out(here, "snapshots", "ls")


def view_of(here: Host) -> str:
    lines = out(here, "snapshots", "ls").splitlines()
    return next(line.split()[0] for line in lines if "-view-" in line)


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_prune_that_was_killed_stops_no_other(here: Host) -> None:
    """Its lease was one name for all, and for ever."""
    empty = ("--namespace", "pruned")
    out(here, *empty, "leases", "create", "--id", "ctr-prune-pruned")
    out(here, *empty, "content", "prune", "references")
    assert out(here, *empty, "leases", "ls", "-q") == "ctr-prune-pruned\n"
    out(here, *empty, "leases", "rm", "ctr-prune-pruned")


def test_diff_keep(here: Host) -> None:
    data = here.ctr("snapshots", "diff", "--keep", "--label", "a=b", images_chain()).stdout
    digest = images.digest_of(data)
    out(here, "leases", "create", "--id", "collect")
    out(here, "leases", "rm", "--sync", "collect")
    assert "a=b" in out(here, "content", "label", digest)
    out(here, "content", "rm", digest)


def test_snapshots_unpack(here: Host) -> None:
    digest = images.build().digest
    line = f"unpacking {digest} (application/vnd.oci.image.manifest.v1+json)...done\n"
    assert out(here, "snapshots", "--snapshotter", "native", "unpack", digest) == line
    assert images_chain() in out(here, "snapshots", "--snapshotter", "native", "ls")
    assert out(here, "snapshots", "unpack", "sha256:" + "0" * 64, code=1) == (
        "ctr: manifest not found\n"
    )


def test_content_edit(here: Host, tmp_path: Path) -> None:
    digest = images.build().config_digest
    editor = tmp_path / "editor"
    # as editors do: another file in the place of the one they were given
    editor.write_text('#!/bin/sh\nsed "s/$1/$2/" "$3" > "$3.new" && mv "$3.new" "$3"\n')
    editor.chmod(0o755)
    made = out(here, "content", "edit", "--editor", f"{editor} hello goodbye", digest).strip()
    assert blob(here, made) == blob(here, digest).replace(b"hello", b"goodbye")
    assert out(here, "content", "edit", "--editor", "true", digest).strip() == digest
    assert "exit status 1" in out(here, "content", "edit", "--editor", "false", digest, code=1)
    assert "not supported" in out(here, "content", "edit", "--validate", "json", digest, code=1)
    assert out(here, "content", "active") == "REF\tSIZE\tAGE\t\n"
    out(here, "content", "rm", made)


def programs() -> images.Image:
    """An image with programs, a library, and names that lead out of where they belong."""
    first = images.layer(
        [
            images.directory("bin"),
            Entry("bin/tool", b"one", mode=0o755),
            Entry("bin/deeper/no", b"x"),
            Entry("bin/../../escaped", b"x"),
            Entry("etc/passwd", b"x"),
        ]
    )
    second = images.layer(
        [
            Entry("./bin/tool", b"two", mode=0o4755),
            images.symlink("bin/alias", "tool"),
            Entry("bin/hard", kind=tarfile.LNKTYPE, link="bin/tool"),
            Entry("bin/.wh.gone", b""),
            Entry("lib/thing.so", b"lib"),
        ]
    )
    return images.build([first, second])


def test_install(here: Host, tmp_path: Path) -> None:
    add(here, programs(), OTHER)
    target = tmp_path / "opt"
    out(here, "install", "--path", str(target), OTHER)
    found = sorted(str(p.relative_to(target)) for p in target.rglob("*"))
    assert found == ["bin", "bin/alias", "bin/hard", "bin/tool"]
    assert (target / "bin/tool").read_bytes() == (target / "bin/hard").read_bytes() == b"two"
    assert stat.S_IMODE((target / "bin/tool").stat().st_mode) == 0o4755
    assert os.readlink(target / "bin/alias") == "tool"
    again = out(here, "install", "--path", str(target), "--libs", OTHER, code=1)
    assert again == f"ctr: cannot replace bin/tool in {target}\n"
    assert not (target / "lib").exists()
    out(here, "install", "--path", str(target), "--libs", "--replace", OTHER)
    assert (target / "lib/thing.so").read_bytes() == b"lib"
    assert not (tmp_path / "escaped").exists()
    remove(here, OTHER)


def test_install_does_not_follow_a_symlink_of_the_target(here: Host, tmp_path: Path) -> None:
    add(here, programs(), OTHER)
    (tmp_path / "opt").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "opt/bin").symlink_to("../elsewhere")
    out(here, "install", "--path", str(tmp_path / "opt"), OTHER, code=1)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    remove(here, OTHER)


def test_install_finds_the_daemons_directory_and_the_daemon_the_program(tmp_path: Path) -> None:
    used = tmp_path / "used"
    script = f'#!/bin/sh\necho "$@" >> {used}\nexec runc "$@"\n'.encode()
    image = images.build([images.layer([Entry("bin/other-runtime", script, mode=0o755)])])
    with host(start=False, image=False) as made:
        path = tmp_path / "opt"
        opt = f'[plugins."io.containerd.internal.v1.opt"]\npath = "{path}"\n'
        made.write_config(f"version = 2\n{opt}")
        made.start()
        made.import_image()
        out(made, "images", "import", "--no-unpack", "-", stdin=images.archive(image, OTHER))
        out(made, "install", OTHER)
        run = ("run", "--rm", "--runc-binary", "other-runtime", IMAGE, "by-opt", "echo", "hello")
        assert out(made, *run) == "hello\n"
    assert " create " in used.read_text()


def test_oci_spec_of_other_platforms(here: Host) -> None:
    assert json.loads(out(here, "oci", "spec", "--platform", "linux/arm64"))["linux"]
    assert "not implemented" in out(here, "oci", "spec", "--platform", "windows/amd64", code=1)


def test_inspect_runtime(here: Host) -> None:
    found = json.loads(out(here, "plugins", "inspect-runtime", "--runc-binary", "runc"))
    assert found["Name"] == "io.containerd.kontti.v1"
    assert found["Options"] == {"binary_name": "runc"}
    assert "CAP_CHOWN" in found["Features"]["linux"]["capabilities"]
    # another program, that knows nothing of the question
    other = ("plugins", "inspect-runtime", "--runtime", "/bin/false")
    assert "failed to run false -info" in out(here, *other, code=1)
    missing = ("plugins", "inspect-runtime", "--runtime", "io.containerd.nothere.v1")
    assert "containerd-shim-nothere-v1" in out(here, *missing, code=1)


def test_skopeo_reads_what_was_converted(here: Host, tmp_path: Path) -> None:
    converted = out(here, "images", "convert", "--uncompress", "--oci", IMAGE, OTHER).strip()
    out(here, "images", "export", str(tmp_path / "out.tar"), OTHER)
    shown = subprocess.run(
        ["skopeo", "inspect", f"oci-archive:{tmp_path / 'out.tar'}:1"],
        check=True, capture_output=True, timeout=30,
    ).stdout  # fmt: skip
    assert json.loads(shown)["Digest"] == converted
    remove(here, OTHER)
